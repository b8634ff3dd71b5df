"""Tests between models: textbook values, scipy, and brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.comparison import (
    compare_cells,
    corrected_resampled_t,
    friedman_test,
    holm,
    nemenyi_critical_difference,
    rank_groups,
    rank_models,
    wilcoxon_signed_rank,
)

# Demsar (2006), table 6: AUC of C4.5, with m, with cf, with both, on 14 data sets. The third decimal of the printed
# tie in row 13 hides that the ranks are 2 and 3.
DEMSAR = np.array([
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.975, 0.9749], [0.957, 0.978, 0.946, 0.970],
])  # fmt: skip
STEPS = st.integers(-6, 6).map(lambda i: i / 100)


def test_corrected_t_by_hand() -> None:
    d = [0.02, 0.05, -0.01, 0.04, 0.00]
    found = corrected_resampled_t(d, 0.25)
    t = 0.02 / np.sqrt((1 / 5 + 1 / 4) * 0.00065)  # mean 0.02, variance 0.0026 / 4
    assert found.difference == pytest.approx(0.02) and (found.n, found.df, found.n_undefined) == (5, 4, 0)
    assert found.t == pytest.approx(t) and found.p == pytest.approx(2 * stats.t.sf(t, 4))
    margin = 2.7764451 * 0.02 / t  # quantile of Student's t with 4 degrees of freedom, from a printed table
    assert (found.low, found.high) == pytest.approx((0.02 - margin, 0.02 + margin))
    assert found.undefined == ""


@given(st.lists(STEPS, min_size=2, max_size=12), st.floats(0.01, 2))
def test_corrected_t_is_the_plain_one_shrunk(d: list[float], ratio: float) -> None:
    """scipy's one-sample t times sqrt(1/J / (1/J + ratio)); the sign turns with the order of the models."""
    found, turned = corrected_resampled_t(d, ratio), corrected_resampled_t([-v for v in d], ratio)
    if len(set(d)) == 1:
        assert found.t is found.p is found.low is None and "no variance" in found.undefined
        return
    plain = stats.ttest_1samp(d, 0)
    j = len(d)
    assert found.t == pytest.approx(plain.statistic * np.sqrt(1 / j / (1 / j + ratio)))
    assert found.p >= plain.pvalue - 1e-12 and turned.p == pytest.approx(found.p)
    assert turned.difference == pytest.approx(-found.difference) and turned.low == pytest.approx(-found.high)
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_p_vanishes_as_the_interval_leaves_zero() -> None:
    wide = corrected_resampled_t([0.1, 0.3, 0.2], 0.5, level=0.5)
    assert 0 < wide.low < wide.high and wide.p < 0.5


def test_undefined_tests_say_why() -> None:
    for d, words in (
        ([], "0 folds only"),
        ([0.1], "1 fold only"),
        ([0.1, None, float("nan")], "1 fold only"),
        ([0.0, 0.0, 0.0], "is 0 in each of the 3 folds"),
        ([0.3 - 0.1, 0.2, 0.5 - 0.3], "is +0.2 in each of the 3 folds"),  # equal but for rounding
    ):
        found = corrected_resampled_t(d, 0.25)
        assert words in found.undefined and found.t is found.p is found.low is found.high is None
    assert corrected_resampled_t([], 0.25).difference is None
    assert corrected_resampled_t([0.2, 0.2], 0.25).difference == pytest.approx(0.2)
    part = corrected_resampled_t([0.1, None, 0.2, 0.4], 0.25)
    assert (part.n, part.df, part.n_undefined) == (3, 2, 1)
    assert part.t == pytest.approx(corrected_resampled_t([0.1, 0.2, 0.4], 0.25).t)


def test_bad_arguments() -> None:
    for ratio in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="test_train_ratio"):
            corrected_resampled_t([0.1, 0.2], ratio)
    with pytest.raises(ConfigError, match="level"):
        corrected_resampled_t([0.1, 0.2], 0.25, level=1.0)


def test_seeds_of_the_same_split_are_averaged_first() -> None:
    a = {(0, 0): 0.9, (0, 1): 0.7, (1, 0): 0.8, (1, 1): 0.8, (2, 0): 0.6, (2, 1): 0.9, (3, 0): 0.5}
    b = {(0, 0): 0.7, (0, 1): 0.7, (1, 0): 0.7, (1, 1): 0.5, (2, 0): 0.7, (2, 1): None, (4, 0): 0.5}
    same = compare_cells(a, b, 0.5, same_splits=True)
    assert same.t == pytest.approx(corrected_resampled_t([0.1, 0.2, -0.1], 0.5).t)
    assert same.n == 3  # folds 3 and 4 are of one model alone
    anew = compare_cells(a, b, 0.5, same_splits=False)
    assert (anew.n, anew.n_undefined) == (5, 1)
    assert anew.t == pytest.approx(corrected_resampled_t([0.2, 0.0, 0.1, 0.3, -0.1], 0.5).t)


def test_copies_of_a_seed_give_no_evidence() -> None:
    one = {(fold, 0): v for fold, v in enumerate([0.7, 0.8, 0.9])}
    other = {(fold, 0): v for fold, v in enumerate([0.65, 0.78, 0.8])}
    many = [{(f, s): v for (f, _), v in cells.items() for s in range(9)} for cells in (one, other)]
    assert compare_cells(*many, 0.5, same_splits=True).p == pytest.approx(
        compare_cells(one, other, 0.5, same_splits=True).p
    )


def brute_signed_rank(d: np.ndarray) -> float:
    """Two-sided p over all 2^n signs of Pratt's ranks."""
    ranks = stats.rankdata(np.abs(d))[d != 0]
    seen = ranks[d[d != 0] > 0].sum()
    sums = np.array([ranks[np.array(signs)].sum() for signs in product([False, True], repeat=len(ranks))])
    extreme = np.abs(sums - ranks.sum() / 2) >= abs(seen - ranks.sum() / 2) - 1e-9
    return float(extreme.mean())


@given(st.lists(STEPS, min_size=1, max_size=9))
def test_signed_rank_against_brute_force(d: list[float]) -> None:
    found = wilcoxon_signed_rank(d)
    values = np.array(d)
    if not values.any():
        assert found.p is None and f"equal on all {len(d)} data sets" in found.undefined
        return
    assert found.exact and found.p == pytest.approx(brute_signed_rank(values))
    assert found.least_p == pytest.approx(min(1, 2 * 0.5 ** np.count_nonzero(values))) and found.n_zero == d.count(0)
    assert wilcoxon_signed_rank(-values).p == pytest.approx(found.p)


def test_signed_rank_against_scipy() -> None:
    d = np.random.default_rng(0).normal(0.3, 1, 25)
    expected = stats.wilcoxon(d, method="exact")
    found = wilcoxon_signed_rank(d)
    assert found.p == pytest.approx(expected.pvalue) and min(found.positive, found.negative) == expected.statistic
    many = np.random.default_rng(1).normal(0.1, 1, 60)
    large = wilcoxon_signed_rank(many)
    assert not large.exact and large.p == pytest.approx(stats.wilcoxon(many, method="asymptotic").pvalue)


def test_signed_rank_of_demsar() -> None:
    """His sums are 93 and 12 with the ranks of the two zeros, 1.5 each, split; Pratt's leave them out."""
    found = wilcoxon_signed_rank(DEMSAR[:, 1] - DEMSAR[:, 0])
    assert (found.positive, found.negative, found.n, found.n_zero) == (91.5, 10.5, 14, 2)
    assert found.p < 0.05  # the critical value for 14 is 21


def test_signed_rank_undefined() -> None:
    assert "no data set" in wilcoxon_signed_rank([None, float("nan")]).undefined
    assert wilcoxon_signed_rank([0.1, None, 0.2]).n == 2
    assert wilcoxon_signed_rank([0.1, 0.2, 0.3, 0.4, 0.5]).p == pytest.approx(0.0625)


def test_friedman_of_demsar() -> None:
    found = friedman_test(DEMSAR)
    assert found.average_ranks == pytest.approx((3.143, 2.000, 2.893, 1.964), abs=5e-4) and found.n == 14
    ties = (3 * (2**3 - 2) + (4**3 - 4)) / (14 * (4**3 - 4))  # his 9.28 does not correct for ties, ours and scipy's do
    assert found.chi2 * (1 - ties) == pytest.approx(9.28, abs=5e-3)
    plain = found.chi2 * (1 - ties)
    assert 13 * plain / (14 * 3 - plain) == pytest.approx(3.69, abs=5e-3)
    assert found.f == pytest.approx(13 * found.chi2 / (14 * 3 - found.chi2))
    assert found.f_p == pytest.approx(stats.f.sf(found.f, 3, 39)) and found.f_p < found.chi2_p < 0.05


@given(st.integers(0, 10_000), st.integers(3, 6), st.integers(2, 8))
def test_friedman_without_ties_is_the_formula(seed: int, k: int, n: int) -> None:
    scores = np.random.default_rng(seed).permuted(np.tile(np.arange(k, dtype=float), (n, 1)), axis=1)
    found = friedman_test(scores)
    means = np.array(found.average_ranks)
    assert means == pytest.approx((k - scores).mean(axis=0))
    chi2 = 12 * n / (k * (k + 1)) * (np.sum(means**2) - k * (k + 1) ** 2 / 4)
    assert found.chi2 == pytest.approx(chi2, abs=1e-9)
    assert found.chi2 == pytest.approx(stats.friedmanchisquare(*scores.T).statistic, abs=1e-9)
    order = np.random.default_rng(seed + 1).permutation(n)
    assert friedman_test(scores[order]).chi2 == pytest.approx(found.chi2, abs=1e-9)


def test_friedman_undefined() -> None:
    assert "2 models" in friedman_test([[1, 2], [1, 2]]).undefined
    assert "1 data set," in friedman_test([[1, 2, 3]]).undefined
    tied = friedman_test([[1, 1, 1], [2, 2, 2]])
    assert tied.chi2 is None and "equal on every data set" in tied.undefined and tied.average_ranks == (2, 2, 2)
    same = friedman_test([[1, 2, 3], [4, 5, 6]])
    assert same.chi2 == pytest.approx(4) and same.f is same.f_p is None and "rank the models the same" in same.undefined
    for bad in ([1.0, 2.0], [[1.0, np.nan, 2.0]], np.empty((0, 3))):
        with pytest.raises(MetricError, match="matrix of finite numbers"):
            friedman_test(bad)


def test_ranks_average_ties() -> None:
    assert rank_models([[0.9, 0.7, 0.9, 0.1], [0.1, 0.2, 0.3, 0.1 + 1e-15]]).tolist() == [
        [1.5, 3, 1.5, 4],
        [3.5, 2, 1, 3.5],
    ]


# q at 0.05, Demsar (2006), table 5(a)
@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (7, 2.949), (10, 3.164)])
def test_nemenyi_quantiles(k: int, q: float) -> None:
    assert nemenyi_critical_difference(k, 14) == pytest.approx(q * np.sqrt(k * (k + 1) / (6 * 14)), abs=1.5e-3)


def test_nemenyi_of_demsar() -> None:
    assert nemenyi_critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)
    assert nemenyi_critical_difference(4, 14, alpha=0.10) == pytest.approx(1.12, abs=5e-3)
    for bad in ({"n_models": 1, "n_data_sets": 3}, {"n_models": 3, "n_data_sets": 0}):
        with pytest.raises(ConfigError):
            nemenyi_critical_difference(**bad)
    with pytest.raises(ConfigError, match="alpha"):
        nemenyi_critical_difference(3, 3, alpha=0)


def test_groups_by_hand() -> None:
    assert rank_groups([1.0, 2.0, 3.0, 4.0], 1.0) == [(0, 1), (1, 2), (2, 3)]
    assert rank_groups([4.0, 1.0, 2.5, 3.0], 1.6) == [(1, 2), (2, 3, 0)]
    assert rank_groups([1.0, 5.0], 1.0) == [] and rank_groups([1.0, 1.2, 1.4], 9) == [(0, 1, 2)]


@given(st.lists(st.integers(2, 20).map(lambda i: i / 2), min_size=2, max_size=8), st.floats(0.1, 5))
def test_two_models_share_a_group_exactly_if_within_the_difference(ranks: list[float], cd: float) -> None:
    groups = rank_groups(ranks, cd)
    for i in range(len(ranks)):
        for j in range(i):
            together = any(i in group and j in group for group in groups)
            assert together == (abs(ranks[i] - ranks[j]) <= cd + 1e-12)
    assert not any(set(a) < set(b) for a in groups for b in groups)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, None, 0.9]) == [0.8, None, 0.9] and holm([]) == []
    with pytest.raises(MetricError, match="between 0 and 1"):
        holm([1.1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_rejects_as_the_step_down_procedure_does(p: list[float]) -> None:
    corrected = holm(p)
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for place, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[i] * (len(p) - place) > alpha:
                break
            rejected.add(i)
        assert {i for i, value in enumerate(corrected) if value <= alpha} == rejected
