"""Percentile intervals by resampling patients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.checks import FloatArray, IntArray, check_classes, check_count, check_predictions
from qgmil.evaluation.metrics import calibration_bins
from qgmil.evaluation.weighted import METRICS, Sample

CHUNK = 2_000_000  # weights held at once: 16 MB, whatever the number of bags


class Interval(NamedTuple):
    """A percentile interval, and in how many resamples the metric was defined."""

    low: float | None
    high: float | None
    n_defined: int


def bootstrap_interval(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[object] | ArrayLike,
    classes: Sequence[str],
    metrics: str | Sequence[str] = "macro_f1",
    *,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile bootstrap (Efron 1979) of one or several metrics, drawing patients, not bags.

    Each resample draws as many patients as there are, with replacement, and takes all bags of each; the bags of a
    patient are not independent, and drawing bags would make the interval too narrow. All metrics see the same
    resamples. The interval covers the choice of patients only: not the training, not the seed.

    Args:
        probabilities: ``(n_bags, C)``.
        labels: ``(n_bags,)`` class indices.
        groups: ``(n_bags,)`` patient of each bag.
        classes: the C names.
        metrics: one or several of `qgmil.evaluation.weighted.METRICS`.
        n: resamples.
        level: coverage, between 0 and 1.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        {metric: (low, high, n_defined)}. Resamples in which the metric is undefined (a class was not drawn) are left
        out; n - n_defined says how many, and with none defined the limits are None.

    Raises:
        MetricError: predictions as in `evaluate`; groups of the wrong length, a blank one, or only one patient.
        ConfigError: unknown metric, `n` below 1, `level` outside (0, 1).
    """
    p, y = check_predictions(probabilities, labels)
    check_classes(classes, p.shape[1])
    names = [metrics] if isinstance(metrics, str) else list(dict.fromkeys(metrics))
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise ConfigError(f"no bootstrap for metric {unknown}; choose from {', '.join(METRICS)}")
    if not 0 < level < 1:
        raise ConfigError(f"level must lie between 0 and 1, got {level!r}")
    check_count(n, "n")
    sample = Sample(p, y, calibration_bins(len(y)))
    patients = _patients(groups, len(y))
    drawn: dict[str, list[FloatArray]] = {name: [] for name in names}
    for weights in _resamples(patients, n, seed):
        for name in names:
            drawn[name].append(METRICS[name](sample, weights))
    return {name: _interval(np.concatenate(values), level) for name, values in drawn.items()}


def mean_interval(
    values: Sequence[float | None] | ArrayLike,
    groups: Sequence[object] | ArrayLike,
    *,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean of one value a bag, drawing patients, not bags.

    Args:
        values: ``(n_bags,)``; None and NaN are bags in which the figure is undefined. They are left out.
        groups: ``(n_bags,)`` patient of each bag.

    Returns:
        (low, high, n_defined), n_defined the resamples with any value; the limits are None with fewer than two
        patients that have one.

    Raises:
        MetricError: groups of the wrong length, or a blank one.
        ConfigError: `n` below 1, `level` outside (0, 1).
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must lie between 0 and 1, got {level!r}")
    check_count(n, "n")
    v = np.array([np.nan if x is None else x for x in values], dtype=np.float64)  # type: ignore[union-attr]
    kept = np.isfinite(v)
    listed = list(groups)  # type: ignore[arg-type]
    if len(listed) != len(v):
        raise MetricError(f"{len(listed)} groups for {len(v)} bags: give the patient of every bag")
    held = [g for g, ok in zip(listed, kept, strict=True) if ok]
    if len({str(g) for g in held}) < 2:
        return Interval(None, None, 0)
    v = v[kept]
    means = [(w @ v) / w.sum(axis=1) for w in _resamples(_patients(held, len(v)), n, seed)]
    return _interval(np.concatenate(means), level)


def _patients(groups: Sequence[object] | ArrayLike, n_bags: int) -> IntArray:
    """The index of each bag's patient, ``(n_bags,)``, patients numbered in sorted order."""
    listed = list(groups)  # type: ignore[arg-type]
    if len(listed) != n_bags:
        raise MetricError(f"{len(listed)} groups for {n_bags} bags: give the patient of every bag")
    for row, group in enumerate(listed):
        if group is None or group != group or str(group).strip() == "":
            raise MetricError(f"group of row {row} is {group!r}: give the patient, or the bag where none is known")
    distinct, index = np.unique([str(group) for group in listed], return_inverse=True)
    if len(distinct) < 2:
        raise MetricError(
            f"all {n_bags} bags belong to patient {distinct[0]!s}: an interval needs at least two patients"
        )
    return index


def _resamples(patients: IntArray, n: int, seed: int) -> Iterator[FloatArray]:
    """Weights ``(rows, n_bags)``: how often each bag's patient was drawn; `n` rows in all."""
    rng = np.random.default_rng(seed)
    n_patients = int(patients.max()) + 1
    rows = max(1, CHUNK // len(patients))
    for start in range(0, n, rows):
        counts = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=min(rows, n - start))
        yield counts[:, patients].astype(np.float64)


def _interval(values: FloatArray, level: float) -> Interval:
    defined = values[np.isfinite(values)]
    if not defined.size:
        return Interval(None, None, 0)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), int(defined.size))
