"""The benchmark's figures. Each returns a matplotlib Figure, or None where the results do not define it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from qgmil.benchmark.collect import Task
from qgmil.benchmark.notes import grid_text
from qgmil.benchmark.rank_diagram import critical_difference_figure
from qgmil.benchmark.summary import BenchmarkSummary, Line
from qgmil.evaluation.style import FAINT, GRID, INK, PALETTE, new_figure, plain, save_figure
from qgmil.evaluation.text import shorten_all

__all__ = [
    "calibration_figure",
    "concentration_figure",
    "critical_difference_figure",
    "draw_figures",
    "macro_f1_figure",
]

COLUMNS = 4  # panels side by side
NAME, TITLE = 30, 28  # characters of a model's and a data set's name
KINDS: dict[str, dict[str, Any]] = {
    "QG-MIL": {"color": PALETTE[0], "marker": "o"},
    "other aggregators": {"color": PALETTE[1], "marker": "D"},
    "controls": {"color": FAINT, "marker": "s"},
}
SIZE = {"o": 6.5, "D": 5.5, "s": 5.5}


def draw_figures(summary: BenchmarkSummary, folder: Path) -> list[Path]:
    """Write all figures that the results define as PNG, and remove those of before that they do not.

    Raises:
        OSError: the folder cannot be written.
    """
    written = []
    for name, draw in (
        ("critical_difference.png", lambda s: critical_difference_figure(s.overall)),
        ("macro_f1.png", macro_f1_figure),
        ("concentration.png", concentration_figure),
        ("calibration.png", calibration_figure),
    ):
        fig = draw(summary)
        if fig is None:
            (folder / name).unlink(missing_ok=True)
        else:
            written.append(save_figure(fig, folder / name))
    return written


def macro_f1_figure(summary: BenchmarkSummary) -> Figure | None:
    """Macro F1 of every model, a panel a data set: mean ± sd over cells, the mean of each fold as a faint dot."""

    def draw(ax: Axes, y: float, task: Task, line: Line, look: dict[str, Any]) -> None:
        scores = task.scores(line["model"])
        folds = [[v for (f, _), v in scores.items() if f == fold and v is not None] for fold in {f for f, _ in scores}]
        dots = sorted(float(np.mean(values)) for values in folds if values)
        ax.plot(dots, [y + 0.27] * len(dots), ".", color=look["color"], alpha=0.5, markersize=6.5, markeredgewidth=0)
        _whisker(ax, y, line["macro_f1_mean"], line["macro_f1_sd"], look)

    grids = sorted({grid_text(task) for task in summary.tasks})
    over = grids[0] if len(grids) == 1 else "folds and seeds"
    key: dict[str, dict[str, Any]] = {
        f"mean ± sd over {over}": {"marker": "o", "whisker": True},
        "mean of a fold over seeds": {"marker": "."},
    }
    return _panels(summary, "macro_f1_mean", "macro F1", draw, key)


def concentration_figure(summary: BenchmarkSummary) -> Figure | None:
    """Attention mass of the top 10 % of instances, a panel a data set; models without attention are left out."""

    def draw(ax: Axes, y: float, task: Task, line: Line, look: dict[str, Any]) -> None:
        _whisker(ax, y, line["top_10pct"], line["top_10pct_sd"], look)

    def finish(ax: Axes) -> None:
        ax.axvline(0.1, color=INK, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
        ax.set_xlim(0, 1.02)

    key: dict[str, dict[str, Any]] = {
        "mean ± sd over cells": {"marker": "o", "whisker": True},
        "uniform attention": {"linestyle": (0, (4, 3))},
    }
    return _panels(summary, "top_10pct", "attention mass of the top 10 % of instances", draw, key, finish)


def calibration_figure(summary: BenchmarkSummary) -> Figure | None:
    """ECE of pooled predictions before (hollow) and after (filled) temperature scaling, a panel a data set."""

    def draw(ax: Axes, y: float, task: Task, line: Line, look: dict[str, Any]) -> None:
        before, after = line["ece"], line["ece_calibrated"]
        size = SIZE[look["marker"]]
        if after is not None:
            ax.plot([before, after], [y, y], color=look["color"], linewidth=1.6, alpha=0.6, zorder=2)
            ax.plot(after, y, linestyle="", markersize=size, **look, zorder=4)
        ax.plot(
            before, y, linestyle="", markersize=size, markerfacecolor="white", markeredgewidth=1.4, **look, zorder=3
        )

    def finish(ax: Axes) -> None:
        ax.set_xlim(left=0)

    key: dict[str, dict[str, Any]] = {
        "before": {"marker": "o", "hollow": True},
        "after temperature scaling": {"marker": "o"},
    }
    return _panels(summary, "ece", "expected calibration error, pooled", draw, key, finish)


def _whisker(ax: Axes, y: float, mean: float, sd: float | None, look: dict[str, Any]) -> None:
    if sd is not None:
        ax.plot([mean - sd, mean + sd], [y, y], color=look["color"], linewidth=1.8, zorder=2)
    ax.plot(mean, y, linestyle="", markersize=SIZE[look["marker"]], **look, zorder=3)


def _kind(task: Task, model: str) -> str:
    return "QG-MIL" if task.in_family(model) else "controls" if task.is_control(model) else "other aggregators"


def _panels(
    summary: BenchmarkSummary,
    needed: str,
    xlabel: str,
    draw: Callable[[Axes, float, Task, Line, dict[str, Any]], None],
    key: dict[str, dict[str, Any]],
    finish: Callable[[Axes], None] = lambda ax: None,
) -> Figure | None:
    """Small multiples: a panel a data set, a row a model, the same rows everywhere, best average rank on top.

    Only models and data sets with the figure `needed` are drawn; None if there are none.
    """
    lines = {
        task.name: {line["model"]: line for line in summary.lines[task.name] if line[needed] is not None}
        for task in summary.tasks
    }
    tasks = [task for task in summary.tasks if lines[task.name]]
    models = [s.model for s in summary.overall.standings if any(s.model in found for found in lines.values())]
    if not tasks:
        return None
    across = min(COLUMNS, len(tasks))
    down = math.ceil(len(tasks) / across)
    names = [plain(name) for name in shorten_all(models, NAME)]
    titles = [plain(name) for name in shorten_all([task.name for task in tasks], TITLE)]
    fig = new_figure(0.6 + 0.075 * max(map(len, names)) + 2.55 * across, 0.75 + down * (0.75 + 0.27 * len(models)))
    fig.set_layout_engine("constrained", w_pad=0.09, h_pad=0.09)
    axes = fig.subplots(down, across, sharey=True, squeeze=False)
    kinds: set[str] = set()
    for ax, task, title in zip(axes.flat, tasks, titles, strict=False):
        for row, model in enumerate(models):
            line = lines[task.name].get(model)
            if line is not None:
                kind = _kind(task, model)
                kinds.add(kind)
                draw(ax, row, task, line, KINDS[kind])
        _style(ax, title)
        finish(ax)
    for ax in axes.flat[len(tasks) :]:
        ax.set_visible(False)
    axes[0, 0].set_yticks(range(len(models)), names)
    axes[0, 0].set_ylim(len(models) - 0.4, -0.6)
    fig.supxlabel(xlabel, fontsize=10.5, color=INK)
    _key(fig, [kind for kind in KINDS if kind in kinds], key)
    return fig


def _style(ax: Axes, title: str) -> None:
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, pad=6)
    ax.tick_params(axis="x", labelsize=8.5, colors=INK, length=3, color=FAINT)
    ax.tick_params(axis="y", labelsize=9, labelcolor=INK, length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(FAINT)
    ax.grid(True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _key(fig: Figure, kinds: Sequence[str], key: dict[str, dict[str, Any]]) -> None:
    """One legend above the panels: who, and what a mark means."""
    handles = [Line2D([], [], linestyle="", markersize=7, label=kind, **KINDS[kind]) for kind in kinds]
    for label, look in key.items():
        line = look.get("linestyle", "-" if look.get("whisker") else "")
        handles.append(
            Line2D(
                *([], []),
                label=label,
                color=INK if "linestyle" in look else FAINT,
                linestyle=line,
                linewidth=1.4,
                marker=look.get("marker", ""),
                markerfacecolor="white" if look.get("hollow") else FAINT,
                markersize=6,
            )
        )
    ncols = min(len(handles), max(1, int(fig.get_figwidth() / 1.9)))
    fig.legend(handles=handles, loc="outside upper left", ncols=ncols, frameon=False, fontsize=9, labelcolor=INK)
