"""What predictions must look like before a figure is computed from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qgmil.errors import ConfigError, MetricError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SUM_TOLERANCE = 1e-3
"""How far from 1 a row of probabilities (or a bag's attention) may sum: half precision and CSV rounding pass."""

ROUNDING = 1e-6  # the sum of a single-precision softmax


def check_classes(classes: Sequence[str], n_classes: int | None = None) -> list[str]:
    """The class names as a list; at least two, all different, as many as there are columns.

    Raises:
        ConfigError: fewer than two names, a name twice, or not one name per column.
    """
    if isinstance(classes, str):
        raise ConfigError(f"classes must be a list of names, got the single text {classes!r}")
    names = [str(name) for name in classes]
    if len(names) < 2:
        raise ConfigError(f"classes must name at least two classes, got {names}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"classes names {repeated[0]!r} more than once: {names}")
    if n_classes is not None and len(names) != n_classes:
        raise ConfigError(f"{len(names)} class names {names} for {n_classes} columns of predictions")
    return names


def check_labels(labels: ArrayLike, n: int, n_classes: int) -> IntArray:
    """The labels as ``(n,)`` int64 in 0..n_classes-1.

    Raises:
        MetricError: wrong shape, not integer, or out of range (the first culprit is named).
    """
    y = np.asarray(labels)
    if y.shape != (n,):
        raise MetricError(f"labels must have shape ({n},), one per row of predictions, got {y.shape}")
    if y.dtype.kind not in "iub":
        raise MetricError(f"labels must be integer class indices, got dtype {y.dtype}")
    y = y.astype(np.int64)
    wrong = np.flatnonzero((y < 0) | (y >= n_classes))
    if wrong.size:
        raise MetricError(f"label of row {wrong[0]} is {y[wrong[0]]}: classes are numbered 0 to {n_classes - 1}")
    return y


def check_matrix(values: ArrayLike, name: str) -> FloatArray:
    """`values` as a finite float64 matrix ``(n, C)`` with n >= 1 and C >= 2.

    Raises:
        MetricError: no rows, wrong shape, not numeric, NaN or infinite (the first culprit is named).
    """
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MetricError(f"{name} are not a matrix of numbers: {error}") from None
    if matrix.ndim != 2 or matrix.shape[1] < 2:
        raise MetricError(
            f"{name} must have shape (n, C) with C >= 2, got {matrix.shape}; "
            "expand one-logit outputs with qgmil.evaluation.calibration.expand_binary"
        )
    if matrix.shape[0] == 0:
        raise MetricError(f"{name} have no rows: there is nothing to evaluate")
    broken = np.argwhere(~np.isfinite(matrix))
    if broken.size:
        row, column = broken[0]
        raise MetricError(f"{name} of row {row}, class {column} are {matrix[row, column]}: they must be finite")
    return matrix


def check_predictions(probabilities: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    """Probabilities ``(n, C)`` and labels ``(n,)``, checked.

    Rows whose sum is off by more than rounding (1e-6) are divided by it; others are left as they are, so that equal
    values stay equal and a second check changes nothing.

    Raises:
        MetricError: wrong shapes, NaN, a value outside 0..1, a row that does not sum to 1 within
            `SUM_TOLERANCE`, labels that are no class index.
    """
    p = check_matrix(probabilities, "probabilities")
    outside = np.argwhere((p < 0) | (p > 1 + SUM_TOLERANCE))
    if outside.size:
        row, column = outside[0]
        raise MetricError(
            f"probability of row {row}, class {column} is {p[row, column]:g}, outside 0 to 1; apply softmax to logits"
        )
    sums = p.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if wrong.size:
        raise MetricError(
            f"probabilities of row {wrong[0]} sum to {sums[wrong[0]]:.6g}, not 1; apply softmax to logits"
        )
    p = np.where(np.abs(sums - 1)[:, None] > ROUNDING, p / sums[:, None], p)
    return p, check_labels(labels, p.shape[0], p.shape[1])


def check_count(value: int, name: str, least: int = 1) -> int:
    """`value` if it is a whole number of at least `least`; ConfigError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)
