"""How every figure of the package looks, and how it reaches the disk.

Figures are made with matplotlib's object interface: no pyplot, no global state, no display, safe in any thread.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qgmil.errors import ConfigError

# Okabe and Ito (2008), distinguishable with every common form of colour blindness; yellow, too pale, comes last.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#B8A900")
DASHES = ("-", "--", "-.", ":")
INK, FAINT, GRID = "#222222", "#767676", "#E6E6E6"
FORMATS = ("png", "pdf", "svg")


def line_style(number: int) -> dict[str, str]:
    """Colour and dash of the line with this number: the palette, then the palette again with other dashes."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "linestyle": DASHES[number // len(PALETTE) % len(DASHES)],
    }


def plain(name: str) -> str:
    """A user's name as it is written: matplotlib reads $...$ as formulas and hides labels that begin with _."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def wrapped(text: str, inches: float, points: float) -> list[str]:
    """Lines of a text that fit into a width at a size of type; a word that is too long is cut, not lost."""
    return textwrap.wrap(text, max(8, int(inches * 72 / (0.64 * points)))) or [""]


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of this size in inches, laid out so that nothing overlaps or is cut."""
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def style_axes(ax: Axes, *, title: str = "", xlabel: str = "", ylabel: str = "", grid: bool = True) -> None:
    """Title at the left, readable labels, two spines, a light grid behind the data."""
    ax.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK, pad=9)
    ax.set_xlabel(xlabel, fontsize=10, color=INK)
    ax.set_ylabel(ylabel, fontsize=10, color=INK)
    ax.tick_params(labelsize=9, colors=INK, length=3, color=FAINT)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    if grid:
        ax.grid(True, color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)


def unit_square(ax: Axes) -> None:
    """Both axes from 0 to 1, with room for lines that run along the edge, and square."""
    ax.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect="equal")
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    ax.set_xticks(ticks)
    ax.set_yticks(ticks)


def legend(ax: Axes, entries: int, loc: str = "best") -> None:
    """A plain legend: inside the axes for up to six entries, to the right of the figure for more."""
    look: dict[str, Any] = {"fontsize": 9, "labelcolor": INK}
    if entries <= 6:
        look |= {"loc": loc, "framealpha": 0.9, "edgecolor": "none"}
        ax.legend(**look)
        return
    figure = ax.get_figure(root=True)
    assert figure is not None  # axes of new_figure always have one
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, **look)


def save_figure(fig: Figure, path: str | os.PathLike[str], *, dpi: int = 150) -> Path:
    """Write a figure as .png, .pdf or .svg: whole or not at all, and the same bytes for the same figure (svg: nearly).

    Missing folders are made; an existing file is replaced only once the new one is complete.

    Raises:
        ConfigError: another ending.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise ConfigError(f"cannot save a figure as {path.name!r}: use one of .{', .'.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        fig.savefig(
            partial, format=kind, dpi=dpi, facecolor="white", metadata=undated, bbox_inches="tight", pad_inches=0.12
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
