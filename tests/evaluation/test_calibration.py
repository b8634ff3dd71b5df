"""Temperature scaling recovers a known temperature, and says when it cannot."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.calibration import (
    TEMPERATURE_BOUNDS,
    apply_temperature,
    calibration_problem,
    expand_binary,
    fit_temperature,
    softmax,
)
from qgmil.evaluation.metrics import evaluate


def drawn(seed: int, n: int, c: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the true distribution of the labels."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, c))
    return z, (softmax(z).cumsum(1) < rng.random((n, 1))).sum(1).clip(max=c - 1)


@given(st.floats(0.2, 6), st.integers(0, 1000))
def test_recovers_a_known_temperature(temperature: float, seed: int) -> None:
    z, y = drawn(seed, 6000)
    assert fit_temperature(z * temperature, y) == pytest.approx(temperature, rel=0.12)


@given(st.floats(0.3, 3), st.integers(0, 1000))
def test_scaling_logits_scales_the_temperature(factor: float, seed: int) -> None:
    z, y = drawn(seed, 100)
    one, other = fit_temperature(z, y), fit_temperature(factor * z, y)
    assert other == pytest.approx(factor * one, rel=1e-4)


def test_is_the_minimum() -> None:
    z, y = drawn(0, 150)
    fitted = fit_temperature(3 * z, y)
    free = minimize(lambda t: -np.log(softmax(3 * z / np.exp(t[0]))[np.arange(150), y]).mean(), [0.0])
    assert fitted == pytest.approx(float(np.exp(free.x[0])), rel=1e-3)


def test_improves_calibration_and_keeps_the_predicted_class() -> None:
    z, y = drawn(1, 2000)
    z = 4 * z
    before, after = softmax(z), apply_temperature(z, fit_temperature(z, y))
    assert (before.argmax(1) == after.argmax(1)).all()
    names = list("abcd")
    assert evaluate(after, y, names)["ece"] < 0.25 * evaluate(before, y, names)["ece"]
    assert evaluate(after, y, names)["nll"] < evaluate(before, y, names)["nll"]


def test_unit_temperature_is_softmax() -> None:
    z, _ = drawn(0, 10)
    np.testing.assert_array_equal(apply_temperature(z, 1.0), softmax(z))


def test_binary_expansion_is_the_sigmoid() -> None:
    z = np.array([[-800.0], [-1.0], [0.0], [2.5], [800.0]])
    p = softmax(expand_binary(z))
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(np.clip(-z[:, 0], -700, 700))), atol=1e-15)
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_array_equal(expand_binary(z[:, 0]), expand_binary(z))
    two = np.array([[1.0, 2.0]])
    np.testing.assert_array_equal(expand_binary(two), two)


def test_worse_than_chance_goes_to_the_upper_bound() -> None:
    z = np.array([[3.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
    assert fit_temperature(z, [1, 0, 1]) == pytest.approx(TEMPERATURE_BOUNDS[1], rel=1e-3)


@pytest.mark.parametrize(
    ("z", "y", "says"),
    [
        ([[1.0, 2.0]], [1], "only 1"),
        ([[1.0, 2.0], [3.0, 1.0]], [1, 1], "class 1"),
        ([[1.0, 1.0], [2.0, 2.0]], [0, 1], "same for all classes"),
        ([[1.0, 2.0], [3.0, 1.0]], [1, 0], "misclassified"),
        ([[1.0, 1.0], [3.0, 1.0], [0.0, 2.0]], [1, 0, 1], "misclassified"),
    ],
)
def test_what_cannot_be_fitted_stays_at_one(
    z: list[list[float]], y: list[int], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    problem = calibration_problem(z, y)
    assert problem is not None and says in problem
    with caplog.at_level(logging.WARNING):
        assert fit_temperature(z, y) == 1.0
    assert says in caplog.text


def test_no_problem_where_there_is_none() -> None:
    assert calibration_problem(*drawn(0, 50)) is None


def test_refusals() -> None:
    with pytest.raises(MetricError, match="row 1, class 0"):
        fit_temperature([[0.0, 1.0], [np.nan, 1.0]], [0, 1])
    with pytest.raises(MetricError, match="label of row 0 is 7"):
        fit_temperature([[0.0, 1.0], [1.0, 1.0]], [7, 1])
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="temperature"):
            apply_temperature([[0.0, 1.0]], wrong)
    with pytest.raises(MetricError, match="overflow"):
        apply_temperature([[0.0, 1e300]], 1e-300)
    with pytest.raises(MetricError):
        expand_binary(np.zeros((2, 2, 2)))
