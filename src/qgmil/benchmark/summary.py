"""The results table summed up: one line a data set and model, and the comparison over data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from qgmil.benchmark.collect import Place, Task, collect
from qgmil.benchmark.overall import Overall, compare_over_tasks
from qgmil.benchmark.pooled import pooled_figures, seed_distance
from qgmil.benchmark.ranking import best_baseline, shared_means, task_ranks
from qgmil.evaluation.comparison import ResampledT, compare_cells

OVER_CELLS = ("macro_f1", "auroc", "balanced_accuracy", "accuracy", "average_precision")
ATTENTION = ("top_1pct", "top_10pct", "entropy", "effective_share", "gini", "instance_auroc", "instance_ap")
COSTS = ("parameters", "epochs", "seconds", "peak_mb")

Line = dict[str, Any]


@dataclass(frozen=True, eq=False)
class BenchmarkSummary:
    """What every table and figure is drawn from."""

    tasks: list[Task]
    lines: dict[str, list[Line]]
    """{task: one line a model}, best mean macro F1 first, controls last."""
    overall: Overall


def summarise_benchmark(rows: pl.DataFrame, *, reference: str | None = None, resamples: int = 2000) -> BenchmarkSummary:
    """Sum up a results table.

    Args:
        rows: one row a cell, as the benchmark writes them; without the list columns the figures of pooled predictions
            are undefined.
        reference: the model that the others are compared with over data sets; None for the first QG-MIL by name.
        resamples: of the bootstrap.

    Raises:
        MetricError: a table that cannot be read (`collect`).
        ConfigError: a reference that is no model of the table.
    """
    tasks = collect(rows)
    overall = compare_over_tasks(tasks, reference)
    return BenchmarkSummary(tasks, {task.name: task_lines(task, resamples=resamples) for task in tasks}, overall)


def task_lines(task: Task, *, resamples: int = 2000) -> list[Line]:
    """One flat line a model of the task, of plain numbers, texts and None (undefined).

    ``cells`` of ``expected_cells`` and ``missing``; over cells NAME_mean and NAME_sd (ddof = 1); ``macro_f1_seed_sd``;
    the figures of `pooled_figures`; ``seed_distance``; means of the attention figures over cells; medians of the costs;
    ``rank`` among ``rank_models`` models on ``rank_cells`` cells; and the difference to ``best_baseline``.
    """
    ranks, ranked_cells = task_ranks(task)
    lines = []
    for model in task.models:
        line = _identity(task, model) | _figures(task, model, resamples)
        line |= {"rank": ranks.get(model), "rank_models": len(ranks), "rank_cells": ranked_cells}
        lines.append(line | _against_best(task, model))
    return sorted(lines, key=_by_score)


def _by_score(line: Line) -> tuple[bool, float, str]:
    mean = line["macro_f1_mean"]
    return line["control"], -mean if mean is not None else np.inf, line["model"]


def _identity(task: Task, model: str) -> Line:
    cells, failed = task.finished[model], task.failed[model]
    holes = [_hole(place, failed.get(place)) for place in sorted(task.grid - cells.keys())]
    return {
        "dataset": task.dataset,
        "features": task.features,
        "task": task.name,
        "model": model,
        "aggregator": task.aggregators[model],
        "recipe": ", ".join(sorted({str(row["recipe"]) for row in cells.values() if row.get("recipe")})),
        "control": task.is_control(model),
        "cells": len(cells),
        "expected_cells": len(task.grid),
        "folds": len({fold for fold, _ in task.grid}),
        "seeds": len({seed for _, seed in task.grid}),
        "missing": "; ".join(holes),
    }


def _hole(place: Place, error: str | None) -> str:
    text = f"fold {place[0]} seed {place[1]}"
    return text if error is None else f"{text} failed: {' '.join(error.split()).replace(';', ',')}"


def _figures(task: Task, model: str, resamples: int) -> Line:
    cells = task.finished[model]
    line: Line = {}
    for name in OVER_CELLS:
        values = [v for v in task.scores(model, name).values() if v is not None]
        line |= {f"{name}_mean": _mean(values), f"{name}_sd": _sd(values)}
    line["macro_f1_undefined"] = sum(v is None for v in task.scores(model).values())
    line["macro_f1_seed_sd"] = seed_sd(task.scores(model))
    line |= pooled_figures(cells, {fold for fold, _ in task.grid}, resamples=resamples)
    line["seed_distance"] = None if line["not_pooled"] else seed_distance(cells)
    for name in ATTENTION:
        values = [v for v in task.scores(model, name).values() if v is not None]
        line |= {name: _mean(values), f"{name}_sd": _sd(values)}
    for name in COSTS:
        values = [v for v in task.scores(model, name).values() if v is not None]
        line[name] = float(np.median(values)) if values else None
    return line


def seed_sd(scores: Mapping[Place, float | None]) -> float | None:
    """Standard deviation (ddof = 1) over seeds of the mean over folds.

    Only folds that every seed has count: a mean over other folds would differ for that reason alone.
    """
    seeds = sorted({seed for _, seed in scores})
    shared = [f for f in sorted({f for f, _ in scores}) if all(scores.get((f, s)) is not None for s in seeds)]
    means = [float(np.mean([scores[f, s] for f in shared])) for s in seeds] if shared else []
    return _sd(means)


def _against_best(task: Task, model: str) -> Line:
    baseline = best_baseline(task, model)
    if baseline is None:
        nothing = ResampledT(None, None, None, None, None, 0, 0, 0, "no other model shares a cell with it")
        return _test_line(None, 0, nothing)
    shared = task.finished[model].keys() & task.finished[baseline].keys()
    ratio = float(np.mean([_ratio(task.finished[model][p]) for p in sorted(shared)]))
    test = compare_cells(task.scores(model), task.scores(baseline), ratio, same_splits=task.same_splits)
    return _test_line(baseline, shared_means(task, [model, baseline])[1], test)


def _ratio(row: Mapping[str, Any]) -> float:
    """n_test / n_train. Validation bags do not count as training bags, which makes the test the more careful one."""
    return float(row["n_test"]) / max(float(row["n_train"]), 1.0)


def _test_line(baseline: str | None, cells: int, test: ResampledT) -> Line:
    return {
        "best_baseline": baseline,
        "difference": test.difference,
        "difference_low": test.low,
        "difference_high": test.high,
        "difference_t": test.t,
        "difference_df": test.df,
        "difference_p": test.p,
        "difference_cells": cells,
        "difference_undefined": test.undefined,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _sd(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
