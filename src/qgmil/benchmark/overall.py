"""The comparison over data sets: average ranks, Friedman and Nemenyi, Wilcoxon against one model (Demsar 2006)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qgmil.benchmark.collect import Task
from qgmil.benchmark.ranking import shared_means
from qgmil.errors import ConfigError
from qgmil.evaluation.checks import FloatArray
from qgmil.evaluation.comparison import (
    Friedman,
    SignedRank,
    friedman_test,
    holm,
    nemenyi_critical_difference,
    rank_models,
    wilcoxon_signed_rank,
)


@dataclass(frozen=True)
class Standing:
    """One model over all data sets."""

    model: str
    control: bool
    ranked: bool
    """False for the controls that do not look at the features."""
    average_rank: float | None
    """Over the data sets of `Overall.tasks`; None without one, or where not ranked."""
    wins: int | None
    """Data sets of these on which the model is first, or among the first that tie."""
    macro_f1: float | None
    """Mean of the mean macro F1 of these data sets."""
    wilcoxon: SignedRank | None
    """Model minus reference, over the data sets of which both have cells in common; None for the reference."""
    p_holm: float | None
    """Its p corrected for the number of models compared with the reference."""
    family: bool = False
    """Whether it is a QG-MIL, whatever its name."""


@dataclass(frozen=True)
class Overall:
    """The comparison over data sets."""

    reference: str | None
    standings: list[Standing]
    """Best average rank first, what is not ranked last."""
    tasks: list[str]
    """Data sets on which every ranked model finished every cell."""
    left_out: dict[str, str]
    """{data set: why it is not among them}."""
    friedman: Friedman | None
    """Its average ranks are in the order of the ranked standings; None without a data set to rank on."""
    critical_difference: float | None
    """Nemenyi's at 0.05; None where Friedman's test is undefined."""


def compare_over_tasks(tasks: Sequence[Task], reference: str | None = None) -> Overall:
    """Compare all models over the data sets.

    Ranks, wins and Friedman's test use the data sets on which every ranked model is complete, and of these the cells in
    which macro F1 is defined. Wilcoxon's test of a pair uses every data set in which the two share a cell.

    Args:
        tasks: the data sets; two feature sets of one data set count as two, though they are not independent.
        reference: what the others are compared with; None for the first QG-MIL by name, or else the first model that
            is no control.

    Raises:
        ConfigError: a reference that is no ranked model.
    """
    ranked = sorted({m for task in tasks for m in task.models if task.is_ranked(m)})
    floors = sorted({m for task in tasks for m in task.models} - set(ranked))
    controls = {m for task in tasks for m in task.models if task.is_control(m)}
    family = {m for task in tasks for m in task.models if task.in_family(m)}
    reference = _reference(ranked, controls, family, reference)
    used, left_out, scores = _complete(tasks, ranked)
    ranks = rank_models(scores) if used else np.empty((0, len(ranked)))
    order = sorted(range(len(ranked)), key=lambda i: (ranks[:, i].mean() if used else 0.0, ranked[i]))
    friedman = friedman_test(scores[:, order]) if used and ranked else None
    tests = {m: _against(tasks, m, reference) for m in ranked if reference is not None and m != reference}
    corrected = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    standings = [
        Standing(
            ranked[i],
            ranked[i] in controls,
            True,
            float(ranks[:, i].mean()) if used else None,
            int((ranks[:, i] == ranks.min(axis=1)).sum()) if used else None,
            float(scores[:, i].mean()) if used else None,
            tests.get(ranked[i]),
            corrected.get(ranked[i]),
            ranked[i] in family,
        )
        for i in order
    ]
    standings += [Standing(m, True, False, None, None, _floor_mean(tasks, used, m), None, None) for m in floors]
    tested = friedman is not None and friedman.chi2 is not None
    difference = nemenyi_critical_difference(len(ranked), len(used)) if tested else None
    return Overall(reference, standings, used, left_out, friedman, difference)


def _reference(ranked: list[str], controls: set[str], family: set[str], named: str | None) -> str | None:
    if named is not None:
        if named not in ranked:
            raise ConfigError(f"reference {named!r} is no model of the table to compare with: {', '.join(ranked)}")
        return named
    candidates = [*(m for m in ranked if m in family), *(m for m in ranked if m not in controls)]
    return candidates[0] if candidates else None


def _complete(tasks: Sequence[Task], ranked: list[str]) -> tuple[list[str], dict[str, str], FloatArray]:
    """The data sets on which all are complete, why the others are not, and the scores ``(tasks, models)``."""
    used, left_out, scores = [], {}, []
    for task in tasks:
        lacking = [m for m in ranked if not task.is_complete(m)]
        means, _ = shared_means(task, [] if lacking else ranked)
        if lacking:
            counts = (f"{m} has {len(task.finished.get(m, {}))} of {len(task.grid)} cells" for m in lacking)
            left_out[task.name] = ", ".join(counts)
        elif not means:
            left_out[task.name] = "there is no cell in which the macro F1 of all models is defined"
        else:
            used.append(task.name)
            scores.append([means[m] for m in ranked])
    return used, left_out, np.array(scores, dtype=np.float64)


def _against(tasks: Sequence[Task], model: str, reference: str) -> SignedRank:
    differences = []
    for task in tasks:
        if model in task.finished and reference in task.finished:
            means, _ = shared_means(task, [model, reference])
            if means:
                differences.append(means[model] - means[reference])
    return wilcoxon_signed_rank(differences)


def _floor_mean(tasks: Sequence[Task], used: list[str], model: str) -> float | None:
    """Mean macro F1 over the data sets used, if the control is complete on all of them."""
    chosen = [task for task in tasks if task.name in used]
    if not chosen or not all(task.is_complete(model) for task in chosen):
        return None
    means = [shared_means(task, [model])[0].get(model) for task in chosen]
    return float(np.mean([m for m in means if m is not None])) if None not in means else None
