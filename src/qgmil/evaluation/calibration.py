"""Temperature scaling (Guo et al. 2017, 1706.04599): one number, fitted on validation predictions only."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.special import softmax as scipy_softmax

from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.checks import FloatArray, check_labels, check_matrix

TEMPERATURE_BOUNDS = (0.05, 20.0)

logger = logging.getLogger(__name__)


def softmax(logits: ArrayLike) -> FloatArray:
    """Probabilities ``(n, C)`` of logits ``(n, C)``, exp(z_c) / sum exp(z), in float64.

    Raises:
        MetricError: not a finite matrix with at least two columns.
    """
    return np.asarray(scipy_softmax(check_matrix(logits, "logits"), axis=1), dtype=np.float64)


def expand_binary(logits: ArrayLike) -> FloatArray:
    """Two columns ``[0, z]`` of the one logit z, ``(n, 1)`` or ``(n,)``.

    Their softmax is ``[1 - sigmoid(z), sigmoid(z)]``. Logits of two columns or more come back as they are, so that
    the same code serves every model.

    Raises:
        MetricError: not a vector or matrix of finite numbers, or no rows.
    """
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim == 1 or (z.ndim == 2 and z.shape[1] == 1):
        z = np.stack([np.zeros(z.size), z.reshape(-1)], axis=1)
    return check_matrix(z, "logits")


def calibration_problem(logits: ArrayLike, labels: ArrayLike) -> str | None:
    """Why no temperature can be fitted, or None if one can.

    The reasons: fewer than two bags; one class only among the labels; logits that are the same for all classes
    (any temperature gives the same); no bag wrong, where the likelihood rises without end as T falls to 0, and the
    data say nothing on overconfidence.

    Args and errors as `fit_temperature`.
    """
    z = check_matrix(logits, "logits")
    y = check_labels(labels, *z.shape)
    if len(y) < 2:
        return f"only {len(y)} validation bag"
    if (y == y[0]).all():
        return f"all {len(y)} validation bags are of class {y[0]}"
    if (z == z[:, :1]).all():
        return "the logits of every bag are the same for all classes"
    if (z <= np.take_along_axis(z, y[:, None], axis=1)).all():
        return f"none of the {len(y)} validation bags is misclassified"
    return None


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The T that minimises the mean negative log-likelihood of softmax(logits / T).

    The likelihood is convex in 1/T, so that it has one minimum in ln T, and the bounded search over T in [0.05, 20]
    finds it. T > 1 means that the model was overconfident. Returns 1.0 (no change) and logs a warning where
    `calibration_problem` gives a reason.

    Args:
        logits: validation logits ``(n, C)``; one-logit models through `expand_binary`.
        labels: ``(n,)`` class indices.

    Raises:
        MetricError: logits that are no finite matrix, labels that are no class index.
    """
    z = check_matrix(logits, "logits")
    y = check_labels(labels, *z.shape)
    problem = calibration_problem(z, y)
    if problem is not None:
        logger.warning("temperature not fitted, 1.0 used: %s", problem)
        return 1.0
    z = z - np.take_along_axis(z, y[:, None], axis=1)  # the true class's logit is 0

    def mean_nll(log_temperature: float) -> float:
        log_p = log_softmax(z * np.exp(-log_temperature), axis=1)
        return -float(np.take_along_axis(log_p, y[:, None], axis=1).mean())

    low, high = np.log(TEMPERATURE_BOUNDS)
    found = minimize_scalar(mean_nll, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    return float(np.clip(np.exp(found.x), *TEMPERATURE_BOUNDS))


def apply_temperature(logits: ArrayLike, temperature: float) -> FloatArray:
    """Probabilities ``(n, C)``: softmax(logits / T). The most probable class never changes.

    Raises:
        ConfigError: a temperature that is not a positive finite number.
        MetricError: logits that are no finite matrix.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"temperature must be a positive number, got {temperature!r}")
    with np.errstate(over="ignore"):
        scaled = check_matrix(logits, "logits") / temperature
    if not np.isfinite(scaled).all():
        raise MetricError(f"logits divided by the temperature {temperature:g} overflow: the temperature is too small")
    return softmax(scaled)
