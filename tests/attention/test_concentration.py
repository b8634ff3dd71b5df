"""Concentration figures and mass curves: by hand, at the extremes, and their properties."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qgmil.attention.concentration import (
    SHARES,
    TOP_PERCENT,
    attention_mass_curve,
    check_attention,
    concentration,
    mass_curves,
    mean_mass_curve,
)
from qgmil.errors import ConfigError, MetricError

weights = (
    st.integers(1, 80)
    .flatmap(lambda n: arrays(np.float64, n, elements=st.floats(0, 1)))
    .filter(lambda a: a.sum() > 1e-3)
    .map(lambda a: a / a.sum())
)


def test_by_hand() -> None:
    c = concentration([0.1, 0.5, 0.25, 0.15])
    assert c["n_instances"] == 4 and c["top_1"] == 0.5
    assert c["top_5"] == c["top_10"] == pytest.approx(1)
    assert c["top_1pct"] == c["top_20pct"] == 0.5 and c["top_50pct"] == pytest.approx(0.75)
    entropy = -sum(a * np.log(a) for a in (0.1, 0.5, 0.25, 0.15))
    assert c["entropy"] == pytest.approx(entropy / np.log(4))
    assert c["effective_number"] == pytest.approx(np.exp(entropy))
    assert c["effective_share"] == pytest.approx(np.exp(entropy) / 4)
    assert c["ess"] == pytest.approx(1 / (0.01 + 0.25 + 0.0625 + 0.0225))
    assert c["ess_share"] == pytest.approx(c["ess"] / 4)
    pairs = sum(abs(a - b) for a in (0.1, 0.5, 0.25, 0.15) for b in (0.1, 0.5, 0.25, 0.15))
    assert c["gini"] == pytest.approx(pairs / (2 * 4 * 4 * 0.25))  # mean absolute difference over twice the mean
    assert c["max_over_uniform"] == 2.0
    json.dumps(c, allow_nan=False)


def test_top_percent_rounds_up() -> None:
    a = np.arange(1, 202) / np.arange(1, 202).sum()  # N = 201
    c, ordered = concentration(a), np.sort(a)[::-1]
    for p, k in zip(TOP_PERCENT, (3, 11, 21, 41, 101), strict=True):
        assert c[f"top_{p}pct"] == pytest.approx(ordered[:k].sum())


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_uniform(n: int) -> None:
    c = concentration(np.full(n, 1 / n))
    assert c["entropy"] == pytest.approx(1) and c["gini"] == pytest.approx(0, abs=1e-12)
    assert c["effective_number"] == pytest.approx(n) and c["ess"] == pytest.approx(n)
    assert c["ess_share"] == pytest.approx(1) and c["max_over_uniform"] == pytest.approx(1)
    np.testing.assert_allclose(attention_mass_curve(np.full(n, 1 / n)), SHARES, atol=1e-12)


def test_collapsed() -> None:
    c = concentration(np.eye(100)[3])
    assert c["top_1"] == c["top_1pct"] == 1 and c["entropy"] == 0 and c["gini"] == pytest.approx(0.99)
    assert c["effective_number"] == c["ess"] == 1 and c["max_over_uniform"] == 100


@given(weights)
def test_bounds_and_order(a: np.ndarray) -> None:
    c, n = concentration(a), len(a)
    assert 0 <= c["gini"] < 1 and 0 <= c["entropy"] <= 1 and 1 / n - 1e-12 <= c["top_1"] <= 1
    assert 1 <= c["ess"] <= c["effective_number"] + 1e-9 <= n + 1e-6  # Renyi entropies fall with their order
    assert 1 - 1e-12 <= c["max_over_uniform"] <= n + 1e-9
    mass = [c[f"top_{p}pct"] for p in TOP_PERCENT]
    assert mass == sorted(mass) and c["top_1"] <= c["top_5"] <= c["top_10"] <= 1


@given(weights, st.randoms())
def test_order_of_instances_does_not_matter(a: np.ndarray, random: object) -> None:
    shuffled = list(a)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert concentration(shuffled) == pytest.approx(concentration(a), abs=1e-9)
    np.testing.assert_allclose(attention_mass_curve(shuffled), attention_mass_curve(a), atol=1e-12)


@given(weights)
def test_mass_curve_is_monotone_concave_and_above_the_diagonal(a: np.ndarray) -> None:
    grid = np.linspace(0, 1, 57)
    curve = attention_mass_curve(a, grid)
    assert curve[0] == 0 and curve[-1] == 1
    assert (np.diff(curve) >= -1e-12).all() and (np.diff(curve, 2) <= 1e-9).all() and (curve >= grid - 1e-9).all()


@given(weights)
def test_gini_is_twice_the_area_between_curve_and_diagonal(a: np.ndarray) -> None:
    knots = np.arange(len(a) + 1) / len(a)
    area = np.trapezoid(attention_mass_curve(a, knots) - knots, knots)
    assert concentration(a)["gini"] == pytest.approx(2 * area, abs=1e-9)


@given(weights, st.integers(2, 5))
def test_normalised_figures_do_not_change_when_every_instance_is_doubled(a: np.ndarray, copies: int) -> None:
    one, more = concentration(a), concentration(np.repeat(a, copies) / copies)
    for key in ("effective_share", "ess_share", "gini", "max_over_uniform"):
        assert one[key] == pytest.approx(more[key], abs=1e-9)
    np.testing.assert_allclose(attention_mass_curve(np.repeat(a, copies) / copies), attention_mass_curve(a), atol=1e-9)


def test_half_precision_is_renormalised_in_double() -> None:
    a = np.full(300, 1 / 300, dtype=np.float16)
    checked = check_attention(a)
    assert checked.dtype == np.float64 and checked.sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("a", "says"),
    [
        ([0.5, 0.4], "sums to 0.9"),
        ([1.5, -0.5], "negative at instance 1"),
        ([0.5, np.nan, 0.5], "not finite at instance 1"),
        ([np.inf], "not finite"),
        ([], "N >= 1"),
        ([[0.5, 0.5]], r"\(1, 2\)"),
    ],
)
def test_refusals_name_the_bag(a: list, says: str) -> None:
    with pytest.raises(MetricError, match=says) as caught:
        concentration(a, "slide_7")
    assert "slide_7" in str(caught.value)


def test_curves_of_several_bags() -> None:
    bags = [np.array([1.0]), np.array([0.75, 0.25]), np.full(10, 0.1)]
    grid = [0.0, 0.5, 1.0]
    np.testing.assert_allclose(mass_curves(bags, grid), [[0, 0.5, 1], [0, 0.75, 1], [0, 0.5, 1]])
    np.testing.assert_allclose(mean_mass_curve(iter(bags), grid), [0, 1.75 / 3, 1])
    with pytest.raises(MetricError, match="no bags"):
        mean_mass_curve([])
    with pytest.raises(MetricError, match="bag '1'"):
        mean_mass_curve([[1.0], [0.5]])
    for wrong in ([-0.1], [1.1], [], [[0.5]], [np.nan]):
        with pytest.raises(ConfigError, match="grid"):
            attention_mass_curve([1.0], wrong)
