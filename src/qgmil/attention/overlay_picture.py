"""The picture of a map of scores: colour bar that says what is shown and its range, and a scale bar."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from qgmil.attention.overlay import Overlay
from qgmil.evaluation.style import INK, new_figure, plain, save_figure, wrapped

DPI = 150
#: Inches; below it there would be no room for the words.
NARROWEST = 4.0


def overlay_figure(overlay: Overlay, *, opacity: float = 0.5, title: str = "") -> Figure:
    """The map, one picture pixel a pixel of the figure; below it, so that nothing is hidden, scale bar and colour bar.

    The colours of the bar are as opaque as those of the map, over white.

    Raises:
        ConfigError: an opacity outside 0 to 1.
    """
    picture = overlay.blended(opacity)
    width, height = (edge / DPI for edge in picture.size)
    across = max(width, NARROWEST)
    heading = wrapped(title, across, 11.5) if title else []
    label = [*wrapped(overlay.scores.description, across, 9), *wrapped(overlay.range_name, across, 9)]
    ruler = 0.0 if overlay.mpp is None else 0.32
    below = 0.2 * len(label) + 0.55 + ruler
    total = below + height + 0.24 * len(heading) + (0.1 if heading else 0.0)
    fig = new_figure(across, total)
    fig.set_layout_engine("none")

    def axes(left: float, bottom: float, wide: float, high: float) -> Axes:
        return fig.add_axes((left / across, bottom / total, wide / across, high / total))

    ax = axes(0, below, width, height)
    ax.imshow(np.asarray(picture), interpolation="none")
    ax.set_axis_off()
    if heading:
        words = plain("\n".join(heading))
        fig.text(0, 1, words, ha="left", va="top", fontsize=11.5, fontweight="bold", color=INK)
    _colour_bar(fig, axes(0.2, below - ruler - 0.25, min(across, 7.0) - 0.4, 0.15), overlay, opacity, label)
    if overlay.mpp is not None:
        _scale_bar(axes(0, below - 0.3, width, 0.24), overlay, picture.size[0])
    return fig


def save_overlay(overlay: Overlay, path: Path, *, opacity: float = 0.5, title: str = "") -> Path:
    """Write the figure; see `qgmil.evaluation.style.save_figure`."""
    return save_figure(overlay_figure(overlay, opacity=opacity, title=title), path, dpi=DPI)


def scale_bar(pixels: int, microns_per_pixel: float) -> tuple[float, str]:
    """A round length near a fifth of the picture: its pixels, and its name."""
    most = pixels * microns_per_pixel / 5
    power = 10.0 ** math.floor(math.log10(most))
    length = max(step * power for step in (1, 2, 5) if step * power <= most)
    name = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    return length / microns_per_pixel, name


def _colour_bar(fig: Figure, ax: Axes, overlay: Overlay, opacity: float, label: list[str]) -> None:
    low, high, values = overlay.low, overlay.high, overlay.scores.values
    alike = not high > low  # then all tiles have the middle colour
    if alike:
        around = abs(low) / 2 or 0.5
        low, high = low - around, low + around
    colours = 1 - opacity * (1 - colormaps[overlay.colours](np.linspace(0, 1, 256))[:, :3])
    beyond = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    extend = "neither" if alike else beyond[bool(values.min() < low), bool(values.max() > high)]
    mappable = ScalarMappable(Normalize(low, high), ListedColormap(colours))
    bar = fig.colorbar(mappable, cax=ax, orientation="horizontal", extend=extend)
    round_ones = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    bar.set_ticks([overlay.low] if alike else round_ones)
    bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:.6g}")
    bar.ax.tick_params(labelsize=8)
    bar.set_label(plain("\n".join(label)), fontsize=9, color=INK, loc="left")


def _scale_bar(ax: Axes, overlay: Overlay, across: int) -> None:
    assert overlay.mpp is not None
    pixels, name = scale_bar(across, overlay.mpp / overlay.scale)
    ax.set(xlim=(0, across), ylim=(0, 1))
    ax.set_axis_off()
    ax.add_patch(Rectangle((0, 0.4), pixels, 0.22, facecolor=INK, edgecolor="none"))
    ax.text(pixels + 0.07 * DPI, 0.5, name, ha="left", va="center", fontsize=9, color=INK)
