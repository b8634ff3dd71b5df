"""The figures of attention concentration. All return a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from qgmil.attention.concentration import SHARES
from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.checks import FloatArray
from qgmil.evaluation.style import FAINT, legend, line_style, new_figure, plain, save_figure, style_axes, unit_square

__all__ = ["mass_curve_figure", "save_figure"]


def mass_curve_figure(
    curves: Mapping[str, ArrayLike],
    *,
    grid: ArrayLike = SHARES,
    log_share: bool = False,
    title: str = "Attention mass",
) -> Figure:
    """Cumulative attention mass against the share of instances, one line per model.

    Args:
        curves: {model: ``(B, G)`` curves of its bags (`mass_curves`), drawn as their mean with a band from the 10th to
            the 90th percentile over bags; or one curve ``(G,)``}.
        grid: ``(G,)`` shares at which the curves were read.
        log_share: shares on a logarithmic axis, for attention that sits on very few of many instances.
        title: above the figure.

    Raises:
        MetricError: no curves, or values that are no mass between 0 and 1 (the model is named).
        ConfigError: a curve that does not fit the grid (the model is named).
    """
    shares = np.asarray(grid, dtype=np.float64)
    checked = {model: _check_curves(model, values, shares) for model, values in curves.items()}
    if not checked:
        raise MetricError("no attention-mass curves to draw")
    drawn = shares > 0 if log_share else np.ones(shares.shape, dtype=bool)
    fig = new_figure(5.4 if len(checked) <= 6 else 7.2, 5.0)
    ax = fig.subplots()
    ax.plot(shares[drawn], shares[drawn], color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2, label="uniform")
    for number, (model, values) in enumerate(checked.items()):
        style: dict[str, Any] = line_style(number)
        if len(values) > 1:
            low, high = np.quantile(values[:, drawn], [0.1, 0.9], axis=0)
            ax.fill_between(shares[drawn], low, high, color=style["color"], alpha=0.13, linewidth=0)
        ax.plot(shares[drawn], values.mean(axis=0)[drawn], label=plain(model), linewidth=2, **style)
    style_axes(ax, title=title, xlabel="share of instances, most attended first", ylabel="cumulative attention")
    unit_square(ax)
    if log_share:
        ax.set(xscale="log", xlim=(float(shares[drawn].min()), 1.0), aspect="auto")
    ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
    legend(ax, len(checked) + 1, "best" if log_share else "lower right")
    return fig


def _check_curves(model: str, values: ArrayLike, shares: FloatArray) -> FloatArray:
    """The curves of one model as ``(B, G)``."""
    curves = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if curves.ndim != 2 or shares.ndim != 1 or curves.shape[1] != shares.size or len(curves) == 0:
        raise ConfigError(f"model {model!r}: curves of shape {curves.shape} for a grid of {shares.size} shares")
    if not ((curves >= -1e-9) & (curves <= 1 + 1e-9)).all():
        raise MetricError(f"model {model!r}: cumulative attention outside 0 to 1")
    return curves
