"""Which models of a task can be compared, on which cells, and in which order they come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qgmil.benchmark.collect import Task
from qgmil.evaluation.comparison import rank_models


def task_ranks(task: Task) -> tuple[dict[str, float], int]:
    """Ranks of the models by mean macro F1, 1 the best, ties averaged; and the number of cells behind the means.

    The models that finished every cell are ranked, on all cells; a model that did not has no rank and moves nobody.
    Where fewer than two are complete (a benchmark half done), all models that have begun are ranked on the cells that
    they share. A cell in which the macro F1 of one is undefined counts for none.
    """
    begun = [m for m in task.models if task.is_ranked(m) and task.finished[m]]
    complete = [m for m in begun if task.is_complete(m)]
    means, cells = shared_means(task, complete if len(complete) > 1 else begun)
    if not means:
        return {}, 0
    return dict(zip(means, rank_models([list(means.values())])[0].tolist(), strict=True)), cells


def shared_means(task: Task, models: Sequence[str]) -> tuple[dict[str, float], int]:
    """Mean macro F1 of each model over the cells in which it is defined for all of them; nothing if there are none."""
    scores = {m: task.scores(m) for m in models}
    shared = [p for p in sorted(task.grid) if all(found.get(p) is not None for found in scores.values())]
    if not shared or not models:
        return {}, 0
    table = np.array([[found[p] for p in shared] for found in scores.values()], dtype=np.float64)
    return dict(zip(scores, table.mean(axis=1).tolist(), strict=True)), len(shared)


def best_baseline(task: Task, model: str) -> str | None:
    """The strongest other model that looks at the features, on the cells of `model`; None if there is none.

    The linear probe can be it, as whether attention is worth having is part of the question; the floors cannot.

    Candidates are those that share most cells with the model; the best of them has the highest mean macro F1 on these.
    The baseline of a QG-MIL is no other QG-MIL, unless the task has nothing else: a variant that is as good would hide
    the lead of both.
    """
    others = [m for m in task.models if m != model and task.is_ranked(m)]
    if task.in_family(model):
        others = [m for m in others if not task.in_family(m)] or others
    found = {m: shared_means(task, [model, m]) for m in others}
    most = max((cells for _, cells in found.values()), default=0)
    leads = {m: means[m] - means[model] for m, (means, cells) in found.items() if cells == most and means}
    return min(leads, key=lambda m: (-round(leads[m], 12), m)) if leads else None
