"""What needs the test predictions themselves: pooled out-of-fold figures, and how much they move with the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from qgmil.benchmark.collect import Place, defined
from qgmil.errors import MetricError
from qgmil.evaluation.bootstrap import Interval, bootstrap_interval
from qgmil.evaluation.checks import FloatArray, IntArray, check_predictions
from qgmil.evaluation.metrics import calibration_bins
from qgmil.evaluation.weighted import METRICS as WEIGHTED
from qgmil.evaluation.weighted import Sample

METRICS = ("macro_f1", "auroc", "ece", "brier", "nll")
CALIBRATED = ("ece", "brier", "nll")
COLUMNS = ("classes", "test_bags", "test_patients", "test_labels", "test_probabilities")


@dataclass(frozen=True, eq=False)
class Seed:
    """The test predictions of all folds under one seed."""

    keys: list[tuple[int, str]]
    """(fold, bag) of each of the n predictions."""
    patients: list[str]
    labels: IntArray
    probabilities: FloatArray
    """``(n, C)``."""
    calibrated: FloatArray | None


def pooled_figures(
    cells: Mapping[Place, Mapping[str, Any]], folds: set[int], *, resamples: int = 2000
) -> dict[str, Any]:
    """Figures of one model's pooled out-of-fold predictions on one data set: computed for each seed, then averaged.

    Pooling keeps macro F1 defined where a class is absent from a fold, and gives the calibration error enough bags to
    mean something. Seeds that lack a fold are left out as long as another has all: their figures would be of other
    bags. Where folds share bags or patients (each fold a draw of the data set) all predictions are pooled alike, and
    the interval, which draws patients, takes all predictions of a patient together.

    Args:
        cells: {(fold, seed): row} of the finished cells.
        folds: the folds that a whole seed has.
        resamples: of the bootstrap.

    Returns:
        ``pooled_macro_f1``, ``pooled_auroc``; ``ece``, ``brier``, ``nll`` and the same with ``_calibrated``: means over
        seeds, None where undefined; ``macro_f1_low``, ``macro_f1_high``: the mean over seeds of the limits of the 95 %
        bootstrap interval over patients; ``pooled_seeds``, ``pooled_bags``; ``not_pooled``: why there are none.
    """
    names = [f"pooled_{m}" if m not in CALIBRATED else m for m in METRICS] + [f"{m}_calibrated" for m in CALIBRATED]
    empty: dict[str, Any] = {**dict.fromkeys(names), "macro_f1_low": None, "macro_f1_high": None}
    empty |= {"pooled_seeds": 0, "pooled_bags": 0, "not_pooled": ""}
    if not cells:
        return {**empty, "not_pooled": "no finished cell"}
    if any(row.get(column) is None for row in cells.values() for column in COLUMNS):
        return {**empty, "not_pooled": "the table holds no test predictions (they are in results.parquet)"}
    whole = {seed for _, seed in cells if {f for f, s in cells if s == seed} == folds}
    seeds = sorted(whole or {seed for _, seed in cells})
    classes = next(iter(cells.values()))["classes"]
    try:
        pooled = [_pool(cells, seed) for seed in seeds]
        plain = [_metrics(s.probabilities, s.labels, METRICS) for s in pooled]
        after = [_metrics(s.calibrated, s.labels, CALIBRATED) for s in pooled if s.calibrated is not None]
    except (MetricError, ValueError) as error:
        return {**empty, "not_pooled": str(error)}
    figures = {name: _mean([p[m] for p in plain]) for name, m in zip(names, METRICS, strict=False)}
    figures |= {
        f"{m}_calibrated": _mean([p[m] for p in after]) if len(after) == len(plain) else None for m in CALIBRATED
    }
    low, high = _limits(pooled, classes, resamples)
    figures |= {"macro_f1_low": low, "macro_f1_high": high}
    return {**figures, "pooled_seeds": len(seeds), "pooled_bags": len(pooled[0].labels), "not_pooled": ""}


def seed_distance(cells: Mapping[Place, Mapping[str, Any]]) -> float | None:
    """How far the predictions of a bag move with the seed: mean over bags and pairs of seeds of the total variation
    distance sum_c |p_c - q_c| / 2, from 0 (the same) to 1; None with one seed, or where the table has no predictions.

    Bags are matched by name under whatever fold tested them, so that with splits drawn anew for each seed the change
    of training bags is in it; where a seed tests a bag in several folds, by fold and name.
    """
    if not cells or any(row.get(column) is None for row in cells.values() for column in COLUMNS):
        return None
    pooled = [_pool(cells, seed) for seed in sorted({seed for _, seed in cells})]
    once = all(len({bag for _, bag in s.keys}) == len(s.keys) for s in pooled)
    tables = [{key[1] if once else key: p for key, p in zip(s.keys, s.probabilities, strict=True)} for s in pooled]
    distances = [
        np.abs(one[key] - other[key]).sum() / 2
        for one, other in combinations(tables, 2)
        for key in sorted(one.keys() & other.keys())
    ]
    return float(np.mean(distances)) if distances else None


def _pool(cells: Mapping[Place, Mapping[str, Any]], seed: int) -> Seed:
    folds = sorted(fold for fold, of in cells if of == seed)
    rows = sorted(
        (fold, bag, patient, label, number)
        for fold in folds
        for number, (bag, patient, label) in enumerate(zip(*(cells[fold, seed][c] for c in COLUMNS[1:4]), strict=True))
    )
    labels = [row[3] for row in rows]

    def matrix(column: str) -> FloatArray:
        return check_predictions([cells[row[0], seed][column][row[4]] for row in rows], labels)[0]

    has_calibrated = all(cells[fold, seed].get("test_calibrated") is not None for fold in folds)
    return Seed(
        [row[:2] for row in rows],
        [row[2] for row in rows],
        np.array(labels, dtype=np.int64),
        matrix("test_probabilities"),
        matrix("test_calibrated") if has_calibrated else None,
    )


def _metrics(probabilities: FloatArray, labels: IntArray, names: Sequence[str]) -> dict[str, float | None]:
    """The metrics of checked predictions, as `evaluate` has them."""
    sample, ones = Sample(probabilities, labels, calibration_bins(len(labels))), np.ones((1, len(labels)))
    return {name: defined(WEIGHTED[name](sample, ones)[0]) for name in names}


def _limits(seeds: Sequence[Seed], classes: Sequence[str], resamples: int) -> tuple[float | None, float | None]:
    """The interval of a typical seed: the mean of the seeds' limits."""
    if len(set(seeds[0].patients)) < 2:
        return None, None
    found: list[Interval] = [
        bootstrap_interval(s.probabilities, s.labels, s.patients, classes, n=resamples)["macro_f1"] for s in seeds
    ]
    return _mean([i.low for i in found]), _mean([i.high for i in found])


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None if any is undefined."""
    return float(np.mean([v for v in values if v is not None])) if values and None not in values else None
