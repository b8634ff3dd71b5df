"""The picture of a map of scores: colour bar that says what is shown and its range, and a scale bar."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qgmil.attention.overlay import Overlay
from qgmil.evaluation.style import INK, new_figure, plain, save_figure

DPI = 150


def overlay_figure(overlay: Overlay, *, opacity: float = 0.5, title: str = "") -> Figure:
    """The map over the slide, one picture pixel a pixel of the figure.

    Raises:
        ConfigError: an opacity outside 0 to 1.
    """
    picture = overlay.blended(opacity)
    width, height = picture.size[0] / DPI, picture.size[1] / DPI
    fig = new_figure(max(width, 3.0) + 1.4, max(height, 2.2) + 0.8)
    ax = fig.subplots()
    ax.imshow(np.asarray(picture), interpolation="none")
    ax.set_axis_off()
    if title:
        ax.set_title(plain(title), loc="left", fontsize=11.5, fontweight="bold", color=INK)
    norm = Normalize(overlay.low, overlay.high if overlay.high > overlay.low else overlay.low + 1e-12)
    bar = fig.colorbar(ScalarMappable(norm, colormaps[overlay.colours]), ax=ax, fraction=0.046, pad=0.02, aspect=30)
    bar.set_label(f"{plain(overlay.scores.description)}\n{overlay.range_name}", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8)
    bar.formatter.set_powerlimits((-3, 3))  # type: ignore[attr-defined]
    if overlay.mpp is not None:
        _scale_bar(ax, overlay, picture.size)
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


def _scale_bar(ax: Axes, overlay: Overlay, size: tuple[int, int]) -> None:
    assert overlay.mpp is not None
    pixels, name = scale_bar(size[0], overlay.mpp / overlay.scale)
    margin, thick = 0.02 * max(size), max(3.0, 0.006 * max(size))
    x, y = margin, size[1] - margin - thick
    box: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    pad = 0.012 * max(size)
    ax.add_patch(Rectangle((x - pad, y - 0.045 * max(size)), pixels + 2 * pad, 0.045 * max(size) + thick + pad, **box))
    ax.add_patch(Rectangle((x, y), pixels, thick, facecolor=INK, edgecolor="none"))
    ax.text(x + pixels / 2, y - 0.006 * max(size), name, ha="center", va="bottom", fontsize=9, color=INK)
