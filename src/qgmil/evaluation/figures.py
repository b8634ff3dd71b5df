"""The figures of evaluation: reliability, confusion, ROC and training history. All return a matplotlib Figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score, roc_curve

from qgmil.errors import MetricError
from qgmil.evaluation.checks import FloatArray, check_classes, check_predictions
from qgmil.evaluation.metrics import reliability_curve
from qgmil.evaluation.style import (
    FAINT,
    INK,
    PALETTE,
    legend,
    line_style,
    new_figure,
    plain,
    save_figure,
    style_axes,
    unit_square,
)

__all__ = ["confusion_figure", "history_figure", "reliability_figure", "roc_figure", "save_figure"]


def reliability_figure(
    probabilities: ArrayLike | Mapping[str, ArrayLike],
    labels: ArrayLike,
    *,
    n_bins: int | None = None,
    title: str = "Reliability",
) -> Figure:
    """Accuracy against confidence in equal-mass bins, over a histogram of the confidences.

    Args:
        probabilities: ``(n, C)``, or {name: ``(n, C)``} to compare several, such as before and after calibration.
        labels: ``(n,)`` class indices.
        n_bins: bins, or None for `qgmil.evaluation.metrics.calibration_bins`.
        title: above the figure.

    Raises:
        MetricError: as `qgmil.evaluation.evaluate`; nothing to draw.
    """
    named = dict(probabilities) if isinstance(probabilities, Mapping) else {"": probabilities}
    if not named:
        raise MetricError("no probabilities to draw a reliability figure of")
    fig = new_figure(4.8, 5.8)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    top.plot([0, 1], [0, 1], color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1, label="perfect")
    for number, (name, values) in enumerate(named.items()):
        _draw_reliability(top, bottom, name, values, labels, n_bins, number)
    style_axes(top, title=title, ylabel="accuracy")
    top.set(ylim=(-0.015, 1.015), xlim=(-0.015, 1.015))
    legend(top, len(named) + 1, "upper left")
    style_axes(bottom, xlabel="confidence (probability of the predicted class)", ylabel="bags")
    bottom.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    return fig


def _draw_reliability(
    top: Axes, bottom: Axes, name: str, values: ArrayLike, labels: ArrayLike, n_bins: int | None, number: int
) -> None:
    p, _ = check_predictions(values, labels)
    curve = reliability_curve(p, labels, n_bins)
    gap = float((curve.count * np.abs(curve.accuracy - curve.confidence)).sum() / curve.count.sum())
    style = line_style(number)
    label = f"{plain(name)}, ECE {gap:.3f}" if name else f"ECE {gap:.3f}"
    size = 22 + 60 * curve.count / curve.count.sum()
    top.plot(curve.confidence, curve.accuracy, linewidth=1.8, label=label, zorder=2, **style)  # type: ignore[arg-type]
    top.scatter(curve.confidence, curve.accuracy, s=size, color=style["color"], edgecolor="white", zorder=3)
    edges = np.linspace(0, 1, 41)
    bottom.hist(p.max(axis=1), bins=edges, histtype="stepfilled", color=style["color"], alpha=0.25)  # type: ignore[arg-type]
    bottom.hist(p.max(axis=1), bins=edges, histtype="step", color=style["color"], linewidth=1.3)  # type: ignore[arg-type]


def confusion_figure(confusion: ArrayLike, classes: Sequence[str], *, title: str = "Confusion") -> Figure:
    """Confusion matrix: colour is the share of the true class, text the count and that share.

    Args:
        confusion: ``(C, C)`` counts, rows the true class.
        classes: the C names.
        title: above the figure.

    Raises:
        MetricError: not a square matrix of counts.
        ConfigError: class names that do not fit.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not (counts >= 0).all():
        raise MetricError(f"confusion must be a square matrix of counts, got shape {counts.shape}")
    names = [plain(name) for name in check_classes(classes, len(counts))]
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    side = 2.9 + 0.62 * len(names)
    fig = new_figure(side + 0.9, side)
    ax = fig.subplots()
    colours = LinearSegmentedColormap.from_list("share", ["#FFFFFF", "#9CC8E3", "#0072B2", "#003F66"])
    image = ax.imshow(share, cmap=colours, vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(share):
        text = f"{counts[row, column]:g}" + (f"\n{value:.0%}" if total[row] > 0 else "")
        colour = "white" if value > 0.5 else INK
        ax.text(column, row, text, ha="center", va="center", fontsize=9 if len(names) < 12 else 6.5, color=colour)
    style_axes(ax, title=title, xlabel="predicted class", ylabel="true class", grid=False)
    ax.spines[:].set_visible(False)
    slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 7 else {}
    ax.set_xticks(range(len(names)), names, **slanted)  # type: ignore[arg-type]
    ax.set_yticks(range(len(names)), [f"{name} ({n:g})" for name, n in zip(names, total[:, 0], strict=True)])
    ax.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    ax.grid(True, which="minor", color="white", linewidth=2)
    ax.tick_params(which="both", length=0)
    bar = fig.colorbar(image, ax=ax, shrink=0.8, format=PercentFormatter(1, 0))
    bar.set_label("share of the true class", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8.5, colors=INK, length=2)
    bar.outline.set_visible(False)
    return fig


def roc_figure(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    title: str = "ROC, one class against the rest",
) -> Figure:
    """ROC curve of every class against the rest, or of the last class alone where there are two.

    A class with no bag, or with all of them, has no curve and says so in the legend.

    Args:
        probabilities: ``(n, C)``.
        labels: ``(n,)`` class indices.
        classes: the C names.
        title: above the figure.

    Raises:
        MetricError, ConfigError: as `qgmil.evaluation.evaluate`.
    """
    p, y = check_predictions(probabilities, labels)
    names = [plain(name) for name in check_classes(classes, p.shape[1])]
    shown = list(range(len(names))) if len(names) > 2 else [1]
    fig = new_figure(5.2 if len(shown) <= 6 else 7.4, 5.2)
    ax = fig.subplots()
    ax.plot([0, 1], [0, 1], color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2)
    for number, c in enumerate(shown):
        truth = y == c
        style: dict[str, Any] = {"linewidth": 1.9, **line_style(number)}
        if truth.all() or not truth.any():
            ax.plot([], [], label=f"{names[c]}: {'only' if truth.all() else 'no'} bags of this class", **style)
            continue
        false_rate, true_rate, _ = roc_curve(truth, p[:, c], drop_intermediate=False)
        area = roc_auc_score(truth, p[:, c])
        label = f"{names[c]}: AUROC {area:.3f} (n = {truth.sum()})"
        ax.plot(false_rate, true_rate, label=label, **style)
    style_axes(ax, title=title if len(shown) > 1 else f"ROC, {names[1]} against {names[0]}")
    ax.set_xlabel("false positive rate (1 - specificity)")
    ax.set_ylabel("true positive rate (sensitivity)")
    unit_square(ax)
    legend(ax, len(shown), "lower right")
    return fig


def history_figure(rows: Sequence[Mapping[str, Any]], *, title: str = "Training") -> Figure:
    """Losses, and beside them the validation metrics, against the epoch; the best epoch of each metric is marked.

    Args:
        rows: rows of history.csv, as text or numbers: ``epoch`` and any of ``train_loss``, ``val_loss``, other
            ``*_loss`` (left), ``val_macro_f1``, other ``*_f1``, ``*_accuracy``, ``*_auroc``, ``*_kappa`` (right).
            Blanks are gaps.
        title: above the figure.

    Raises:
        MetricError: no rows, no epochs, no column to draw, or a cell that is no number.
    """
    if not rows:
        raise MetricError("the history has no rows: nothing was trained")
    epochs = _column(rows, "epoch")
    names = list(dict.fromkeys(name for row in rows for name in row))
    losses = [name for name in names if name.endswith("_loss")]
    scores = [name for name in names if name.endswith(("_f1", "_accuracy", "_auroc", "_kappa"))]
    panels = [(group, label) for group, label in ((losses, "loss"), (scores, "score")) if group]
    if not panels or not np.isfinite(epochs).all():
        raise MetricError(f"the history needs 'epoch' in every row and a loss or a score to draw; it has {names}")
    fig = new_figure(4.6 * len(panels) + 0.4, 3.7)
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for number, (ax, (group, label)) in enumerate(zip(axes, panels, strict=True)):
        for line, name in enumerate(group):
            _draw_history(ax, epochs, _column(rows, name), name, line)
        style_axes(ax, title=title if number == 0 else " ", xlabel="epoch", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(ax, len(group))
    return fig


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> FloatArray:
    """One column as float64 ``(rows,)``, NaN where blank."""

    def number(row: int, value: Any) -> float:
        try:
            return math.nan if value is None or value == "" else float(value)
        except (TypeError, ValueError):
            raise MetricError(f"history, row {row}, {name}: {value!r} is not a number") from None

    return np.array([number(i, row.get(name)) for i, row in enumerate(rows)], dtype=np.float64)


def _draw_history(ax: Axes, epochs: FloatArray, values: FloatArray, name: str, line: int) -> None:
    held = np.isfinite(values)
    words = {"train": "training", "val": "validation", "f1": "F1", "auroc": "AUROC"}
    label = " ".join(words.get(word, word) for word in name.split("_") if word)
    style: dict[str, Any] = {"linewidth": 1.8, **line_style(line)}
    if name.endswith("_loss") or not held.any():
        ax.plot(epochs[held], values[held], label=label, marker="o" if held.sum() == 1 else None, **style)
        return
    best = int(np.flatnonzero(held)[values[held].argmax()])
    ax.plot(epochs[held], values[held], label=f"{label}, best {values[best]:.3f} at {epochs[best]:g}", **style)
    ax.plot(
        epochs[best], values[best], "o", markersize=6.5, color=PALETTE[line % len(PALETTE)], markeredgecolor="white"
    )
