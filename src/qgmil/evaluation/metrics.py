"""Every figure of one set of predictions, as plain JSON types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_auc_score,
)

from qgmil.errors import ConfigError
from qgmil.evaluation import weighted
from qgmil.evaluation.checks import FloatArray, IntArray, check_classes, check_count, check_predictions

DEFAULT_BINS = 15
BAGS_PER_BIN = 10


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """One entry per bin that holds bags, by rising confidence."""

    confidence: FloatArray
    """Mean probability of the predicted class, ``(B,)``."""
    accuracy: FloatArray
    """Share of the bin's bags that are right, ``(B,)``."""
    count: IntArray
    """Bags in the bin, ``(B,)``."""


def calibration_bins(n: int) -> int:
    """Bins of the calibration errors: 15, or fewer so that a bin has 10 bags, at least 1.

    With few bags to a bin its accuracy is noise, and the error measures the noise.
    """
    return max(1, min(DEFAULT_BINS, n // BAGS_PER_BIN))


def evaluate(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    kappa_weights: Literal["quadratic"] | None = None,
) -> dict[str, Any]:
    """All metrics of one set of predictions; the predicted class is the most probable (of equal ones the first).

    A figure that the labels do not define is None, never a guess, and `undefined` says why. Macro F1, balanced
    accuracy, AUROC and average precision need every class among the labels: a mean over fewer classes in some folds
    is another quantity. (Figures that use all bags come from `qgmil.evaluation.summary.pool`.) A class that is there
    but never predicted has F1 = 0.

    Args:
        probabilities: ``(n, C)``, C >= 2; rows sum to 1 within 1e-3, and are divided by their sum if off by 1e-6.
        labels: ``(n,)`` class indices 0..C-1.
        classes: the C names, in the order of the columns. Of two classes the last is the positive one.
        kappa_weights: which kappa the task quotes, None or "quadratic" (ordered grades). Recorded under the same
            name for the tables; both are always computed.

    Returns:
        ``macro_f1``, ``accuracy``, ``balanced_accuracy``; ``auroc`` and ``average_precision`` (of the positive class
        for two classes, else the mean one-vs-rest); ``kappa``, ``kappa_quadratic``; ``ece`` (top label) and
        ``classwise_ece`` over ``ece_bins`` equal-mass bins (`calibration_bins`); ``brier`` = mean sum_c (p_c - y_c)^2,
        0 to 2; ``nll`` with probabilities clipped at 1e-12; ``mean_confidence``; ``f1_per_class`` {name: value};
        ``confusion`` (rows the true class); ``n``, ``n_per_class``; ``undefined`` {metric: reason}, where the F1 of
        one class goes by "f1_per_class.NAME".

    Raises:
        MetricError: wrong shapes, NaN, probabilities outside 0..1 or not summing to 1, labels that are no class.
        ConfigError: class names that do not fit, unknown `kappa_weights`.
    """
    if kappa_weights not in (None, "quadratic"):
        raise ConfigError(f'kappa_weights must be None or "quadratic", got {kappa_weights!r}')
    p, y = check_predictions(probabilities, labels)
    names = check_classes(classes, p.shape[1])
    sample = weighted.Sample(p, y, calibration_bins(len(y)))
    per_class = np.bincount(y, minlength=len(names))
    absent = [name for name, count in zip(names, per_class, strict=True) if count == 0]

    values, undefined = _classification(sample, names, absent)
    ranking, reasons = _ranking(sample, absent)
    ones = np.ones((1, len(y)))
    result: dict[str, Any] = {"macro_f1": values.pop("macro_f1")}
    result |= values | ranking
    for name in ("ece", "classwise_ece", "brier", "nll", "mean_confidence"):
        result[name] = float(weighted.METRICS[name](sample, ones)[0])
    result["confusion"] = confusion_matrix(y, sample.predicted, labels=range(len(names))).tolist()
    result |= {"n": len(y), "n_per_class": dict(zip(names, per_class.tolist(), strict=True))}
    result |= {"ece_bins": sample.n_bins, "kappa_weights": kappa_weights, "undefined": undefined | reasons}
    return result


def _absent_reason(absent: list[str]) -> str:
    return "no bag of class " + ", ".join(repr(name) for name in absent)


def _classification(
    sample: weighted.Sample, names: list[str], absent: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures of the predicted class: F1, accuracies, kappas."""
    y, predicted = sample.labels, sample.predicted
    options: dict[str, Any] = {"labels": range(len(names)), "average": None, "zero_division": 0}
    scores = f1_score(y, predicted, **options)
    f1 = {name: None if name in absent else float(score) for name, score in zip(names, scores, strict=True)}
    undefined = {f"f1_per_class.{name}": _absent_reason([name]) for name in absent}
    if absent:
        undefined |= dict.fromkeys(("macro_f1", "balanced_accuracy"), _absent_reason(absent))
    values: dict[str, Any] = {
        "macro_f1": None if absent else float(scores.mean()),
        "f1_per_class": f1,
        "accuracy": float(accuracy_score(y, predicted)),
        "balanced_accuracy": None if absent else float(recall_score(y, predicted, **options).mean()),
    }
    if (y == y[0]).all() and (predicted == y[0]).all():
        reason = f"every label and every prediction is {names[y[0]]!r}: agreement by chance is complete"
        values |= {"kappa": None, "kappa_quadratic": None}
        undefined |= {"kappa": reason, "kappa_quadratic": reason}
    else:
        for key, cost in (("kappa", None), ("kappa_quadratic", "quadratic")):
            values[key] = float(cohen_kappa_score(y, predicted, labels=range(len(names)), weights=cost))
    return values, undefined


def _ranking(sample: weighted.Sample, absent: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures of the order of the probabilities: AUROC and average precision."""
    if absent:
        reason = _absent_reason(absent)
        keys = ("auroc", "average_precision")
        return dict.fromkeys(keys, None), dict.fromkeys(keys, reason)
    p, y, c = sample.probabilities, sample.labels, sample.n_classes
    if c == 2:
        positive = p[:, 1]
        return {
            "auroc": float(roc_auc_score(y, positive)),
            "average_precision": float(average_precision_score(y, positive)),
        }, {}
    return {
        "auroc": float(roc_auc_score(y, p, multi_class="ovr", average="macro", labels=range(c))),
        "average_precision": float(np.mean([average_precision_score(y == k, p[:, k]) for k in range(c)])),
    }, {}


def reliability_curve(probabilities: ArrayLike, labels: ArrayLike, n_bins: int | None = None) -> ReliabilityCurve:
    """Confidence against accuracy in equal-mass bins: the reliability diagram (Guo 2017, 1706.04599).

    Bags of equal confidence share a bin, so that their order cannot matter; bins they leave empty are left out.
    sum_b count_b / n |accuracy_b - confidence_b| is the `ece` of `evaluate` for the same bins.

    Args:
        probabilities: ``(n, C)``.
        labels: ``(n,)`` class indices.
        n_bins: bins, or None for `calibration_bins`.

    Raises:
        MetricError: as `evaluate`.
        ConfigError: `n_bins` is not a whole number of at least 1.
    """
    p, y = check_predictions(probabilities, labels)
    n_bins = calibration_bins(len(y)) if n_bins is None else check_count(n_bins, "n_bins")
    sample = weighted.Sample(p, y, n_bins)
    hits = (sample.predicted == y).astype(np.float64)
    distinct, total, marked = weighted.grouped(sample.confidence, np.ones((1, len(y))), hits)
    bins = weighted.mass_bins(total, n_bins)[0]
    count = np.bincount(bins, weights=total[0])
    held = count > 0
    confidence = np.bincount(bins, weights=total[0] * distinct)[held] / count[held]
    return ReliabilityCurve(
        confidence, np.bincount(bins, weights=marked[0])[held] / count[held], count[held].astype(int)
    )
