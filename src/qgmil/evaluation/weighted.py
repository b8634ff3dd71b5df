"""Metrics of many weighted samples of the same predictions at once.

A bootstrap resample is the same bags with whole-number weights (how often each was drawn), so R resamples are
a matrix ``(R, n)`` and every metric below is a few array operations over it: 2000 resamples cost one sort. With
one row of ones the functions give the ordinary metric; the tests hold them equal to scikit-learn's. NaN marks a
sample in which the metric is undefined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qgmil.evaluation.checks import FloatArray, IntArray

PROBABILITY_FLOOR = 1e-12
"""Probabilities are clipped to this before the logarithm: one bag costs at most 27.6 nats."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Checked predictions: probabilities ``(n, C)``, labels ``(n,)`` and the bins that ECE uses."""

    probabilities: FloatArray
    labels: IntArray
    n_bins: int

    @property
    def n_classes(self) -> int:
        return self.probabilities.shape[1]

    @property
    def predicted(self) -> IntArray:
        """The most probable class ``(n,)``; of equal ones the first."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> FloatArray:
        """The probability of the predicted class ``(n,)``."""
        return self.probabilities.max(axis=1)


def confusions(sample: Sample, weights: FloatArray) -> FloatArray:
    """Confusion counts ``(R, C, C)``, rows the true class, columns the predicted one."""
    c = sample.n_classes
    cells = np.eye(c * c)[sample.labels * c + sample.predicted]
    return (weights @ cells).reshape(-1, c, c)


def _ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """top / bottom, NaN where bottom is 0, without a warning."""
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan), where=bottom > 0)


def macro_f1(sample: Sample, weights: FloatArray) -> FloatArray:
    """Mean over classes of 2 TP / (2 TP + FP + FN); NaN where a class has no true bag."""
    m = confusions(sample, weights)
    true, called = m.sum(axis=2), m.sum(axis=1)
    f1 = _ratio(2 * m.diagonal(axis1=1, axis2=2), true + called)
    return np.where(true > 0, f1, np.nan).mean(axis=1)


def balanced_accuracy(sample: Sample, weights: FloatArray) -> FloatArray:
    """Mean over classes of the share found; NaN where a class has no true bag."""
    m = confusions(sample, weights)
    return _ratio(m.diagonal(axis1=1, axis2=2), m.sum(axis=2)).mean(axis=1)


def accuracy(sample: Sample, weights: FloatArray) -> FloatArray:
    """Share of bags whose most probable class is the true one."""
    return weights @ (sample.predicted == sample.labels) / weights.sum(axis=1)


def _kappa(sample: Sample, weights: FloatArray, cost: FloatArray) -> FloatArray:
    m = confusions(sample, weights)
    expected = m.sum(axis=2)[:, :, None] * m.sum(axis=1)[:, None, :] / m.sum(axis=(1, 2))[:, None, None]
    return 1 - _ratio((cost * m).sum(axis=(1, 2)), (cost * expected).sum(axis=(1, 2)))


def kappa(sample: Sample, weights: FloatArray) -> FloatArray:
    """Cohen's kappa; NaN where labels and predictions are all of the same one class."""
    return _kappa(sample, weights, 1 - np.eye(sample.n_classes))


def kappa_quadratic(sample: Sample, weights: FloatArray) -> FloatArray:
    """Cohen's kappa with cost (i - j)^2 between classes i and j; meaningful for ordered classes only."""
    steps = np.arange(sample.n_classes, dtype=np.float64)
    return _kappa(sample, weights, (steps[:, None] - steps) ** 2)


def grouped(values: FloatArray, weights: FloatArray, marked: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Distinct values ascending ``(U,)``; the weight ``(R, U)`` of the bags at each, and of the marked ones."""
    distinct, start, group = np.unique(values, return_index=True, return_inverse=True)
    if len(distinct) == len(values):
        total = weights[:, start]
        return distinct, total, total * marked[start]
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], np.arange(len(distinct)))
    total = np.add.reduceat(weights[:, order], first, axis=1)
    return distinct, total, np.add.reduceat(weights[:, order] * marked[order], first, axis=1)


def _one_vs_rest(sample: Sample, weights: FloatArray, curve: Callable[..., FloatArray]) -> FloatArray:
    """Mean of `curve` over classes, or of the last class alone where there are two; NaN where a class is absent."""
    classes = range(sample.n_classes) if sample.n_classes > 2 else [1]
    onehot = np.eye(sample.n_classes)[sample.labels]
    values = [curve(*grouped(sample.probabilities[:, c], weights, onehot[:, c])[1:]) for c in classes]
    return np.where(((weights @ onehot) > 0).all(axis=1), np.mean(values, axis=0), np.nan)


def _area_under_roc(total: FloatArray, positive: FloatArray) -> FloatArray:
    negative = total - positive
    below = np.cumsum(negative, axis=1) - negative / 2
    return _ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def _average_precision(total: FloatArray, positive: FloatArray) -> FloatArray:
    called = np.cumsum(total[:, ::-1], axis=1)
    hit = np.cumsum(positive[:, ::-1], axis=1)
    precision = np.divide(hit, called, out=np.zeros_like(hit), where=called > 0)
    return _ratio((positive[:, ::-1] * precision).sum(axis=1), positive.sum(axis=1))


def auroc(sample: Sample, weights: FloatArray) -> FloatArray:
    """Area under the ROC curve, ties counted half; macro one-vs-rest for more than two classes."""
    return _one_vs_rest(sample, weights, _area_under_roc)


def average_precision(sample: Sample, weights: FloatArray) -> FloatArray:
    """Average precision, sum of (R_k - R_k-1) P_k; macro one-vs-rest for more than two classes."""
    return _one_vs_rest(sample, weights, _average_precision)


def mass_bins(total: FloatArray, n_bins: int) -> IntArray:
    """Equal-mass bin ``(R, U)`` of each distinct value: floor(bins * mid-rank / n).

    Bags with equal values share their mid-rank and so their bin; the order of the bags cannot matter.
    """
    middle = np.cumsum(total, axis=1) - total / 2
    return np.minimum(n_bins * middle / total.sum(axis=1, keepdims=True), n_bins - 1).astype(np.int64)


def _binned_gap(values: FloatArray, hits: FloatArray, weights: FloatArray, n_bins: int) -> FloatArray:
    """sum_b (n_b / n) |mean hit - mean value| over equal-mass bins of the values."""
    distinct, total, marked = grouped(values, weights, hits)
    bins, gap = mass_bins(total, n_bins), marked - total * distinct
    parts = [np.abs(np.where(bins == b, gap, 0.0).sum(axis=1)) for b in range(n_bins)]
    return np.sum(parts, axis=0) / total.sum(axis=1)


def ece(sample: Sample, weights: FloatArray) -> FloatArray:
    """Expected calibration error of the predicted class (Guo 2017, 1706.04599), equal-mass bins."""
    hits = (sample.predicted == sample.labels).astype(np.float64)
    return _binned_gap(sample.confidence, hits, weights, sample.n_bins)


def classwise_ece(sample: Sample, weights: FloatArray) -> FloatArray:
    """Mean over classes of the calibration error of that class's probability (Kull 2019, 1910.12656)."""
    onehot = np.eye(sample.n_classes)[sample.labels]
    columns = range(sample.n_classes)
    gaps = [_binned_gap(sample.probabilities[:, c], onehot[:, c], weights, sample.n_bins) for c in columns]
    return np.mean(gaps, axis=0)


def brier(sample: Sample, weights: FloatArray) -> FloatArray:
    """Mean over bags of sum_c (p_c - y_c)^2, in 0..2 (twice the one-column form for two classes)."""
    error = ((sample.probabilities - np.eye(sample.n_classes)[sample.labels]) ** 2).sum(axis=1)
    return weights @ error / weights.sum(axis=1)


def nll(sample: Sample, weights: FloatArray) -> FloatArray:
    """Mean over bags of -ln p(true class), probabilities clipped at `PROBABILITY_FLOOR`."""
    true = np.take_along_axis(sample.probabilities, sample.labels[:, None], axis=1)[:, 0]
    return weights @ -np.log(np.clip(true, PROBABILITY_FLOOR, 1.0)) / weights.sum(axis=1)


def mean_confidence(sample: Sample, weights: FloatArray) -> FloatArray:
    """Mean probability of the predicted class."""
    return weights @ sample.confidence / weights.sum(axis=1)


METRICS: dict[str, Callable[[Sample, FloatArray], FloatArray]] = {
    metric.__name__: metric
    for metric in (
        macro_f1,
        accuracy,
        balanced_accuracy,
        auroc,
        average_precision,
        kappa,
        kappa_quadratic,
        ece,
        classwise_ece,
        brier,
        nll,
        mean_confidence,
    )
}
