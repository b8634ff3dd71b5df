"""Is the difference between models more than chance: within a data set, over data sets, over many models.

Pure functions over numbers. A test that the data do not define has p None, and `undefined` says why: two models that
are equal in every fold are not "p = NaN", and not "p = 1" either.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.checks import FloatArray, check_count

ROUNDING = 1e-12  # differences of metrics within this are equal: sums in another order differ by less
EXACT_UP_TO = 50  # pairs; above it the normal approximation is as good


@dataclass(frozen=True)
class ResampledT:
    """The corrected resampled t-test of one pair of models on one data set."""

    difference: float | None
    """Mean difference, first minus second."""
    low: float | None
    high: float | None
    """Limits of its confidence interval."""
    t: float | None
    p: float | None
    """Two-sided."""
    df: int
    n: int
    """Differences tested: one a fold, or one a fold and repeat."""
    n_undefined: int
    """Folds left out because the metric of a model is undefined there."""
    undefined: str
    """Why there is no p; empty where there is one."""


def corrected_resampled_t(
    differences: Sequence[float | None] | ArrayLike, test_train_ratio: float, *, level: float = 0.95
) -> ResampledT:
    """t-test of differences over folds whose training sets overlap (Nadeau and Bengio 2003).

    t = mean / sqrt((1/J + n_test/n_train) s^2) with J - 1 degrees of freedom and s^2 the variance (ddof = 1) of the J
    differences. The plain paired t-test, factor 1/J, takes the folds for independent and finds differences where there
    are none. For r times repeated k-fold cross-validation J = k r (Bouckaert and Frank 2004).

    Args:
        differences: ``(J,)``; None and NaN are folds in which a model's metric is undefined. They are left out.
        test_train_ratio: n_test / n_train, 1/(k - 1) in k-fold cross-validation without validation bags.
        level: coverage of the interval.

    Returns:
        The test. With fewer than two defined differences, or all of them equal (no variance to test against), t, p and
        the limits are None.

    Raises:
        ConfigError: a ratio that is not positive, or `level` outside (0, 1).
    """
    from scipy import stats

    if not (math.isfinite(test_train_ratio) and test_train_ratio > 0):
        raise ConfigError(f"test_train_ratio must be a positive number, got {test_train_ratio!r}")
    if not 0 < level < 1:
        raise ConfigError(f"level must lie between 0 and 1, got {level!r}")
    d = _defined(differences)
    lost = len(list(differences)) - len(d)  # type: ignore[arg-type]
    n = len(d)
    mean = float(d.mean()) if n else None
    reason = ""
    if n < 2:
        reason = f"a difference in {n} fold{'' if n == 1 else 's'} only, and the test needs two"
    elif _equal(d):
        reason = f"the difference is {_signed(d[0])} in each of the {n} folds: no variance to test against"
    if reason or mean is None:
        return ResampledT(mean, None, None, None, None, max(n - 1, 0), n, lost, reason)
    error = math.sqrt((1 / n + test_train_ratio) * float(d.var(ddof=1)))
    t = mean / error
    margin = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return ResampledT(mean, mean - margin, mean + margin, t, float(2 * stats.t.sf(abs(t), n - 1)), n - 1, n, lost, "")


def compare_cells(
    first: Mapping[tuple[int, int], float | None],
    second: Mapping[tuple[int, int], float | None],
    test_train_ratio: float,
    *,
    same_splits: bool,
    level: float = 0.95,
) -> ResampledT:
    """The corrected resampled t-test of two models over the (fold, seed) cells that both have.

    Where all seeds were trained on the same splits their differences are averaged in each fold first, J = folds: the
    seeds of a fold share its training and test bags, so that they say nothing new about the choice of bags, and
    counting each as a fold of its own would shrink 1/J and add degrees of freedom for nothing. Averaging keeps what
    they do bring, less noise of initialisation. Where each seed drew its own splits, every cell counts, J = folds x
    seeds, as in repeated cross-validation.

    Args:
        first: {(fold, seed): metric}, None where undefined.
        second: likewise; cells of one model alone are not used.
        test_train_ratio: n_test / n_train.
        same_splits: whether a fold is the same split under all seeds.
        level: coverage of the interval.

    Raises:
        ConfigError: as `corrected_resampled_t`.
    """
    groups: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for cell in sorted(first.keys() & second.keys()):
        a, b = first[cell], second[cell]
        group = groups[cell[:1] if same_splits else cell]
        if a is not None and b is not None and math.isfinite(a - b):
            group.append(a - b)
    differences = [float(np.mean(values)) if values else None for values in groups.values()]
    return corrected_resampled_t(differences, test_train_ratio, level=level)


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank test of one pair of models over data sets."""

    difference: float | None
    """Mean difference, first minus second."""
    positive: float
    """Sum of the ranks of the positive differences."""
    negative: float
    """Of the negative ones; ranks of zeros are in neither."""
    p: float | None
    """Two-sided."""
    least_p: float | None
    """The smallest p that so many data sets can give: 0.0625 for five."""
    n: int
    n_zero: int
    exact: bool
    undefined: str


def wilcoxon_signed_rank(differences: Sequence[float | None] | ArrayLike) -> SignedRank:
    """Wilcoxon (1945) signed-rank test, one difference a data set; zeros as Pratt (1959).

    Zeros are ranked with the others and then dropped, so that data sets on which the models are equal weaken the
    evidence instead of vanishing. Up to 50 differences p is exact: the share of all 2^n sign patterns of the ranks at
    hand, average ranks for ties, that are at least as extreme. Above, scipy's normal approximation.

    Args:
        differences: ``(n,)``; None and NaN are left out.
    """
    d = _defined(differences)
    d = np.where(np.abs(d) <= ROUNDING, 0.0, d)
    n, zeros = len(d), int((d == 0).sum())
    mean = float(d.mean()) if n else None
    if n == zeros:
        reason = f"the models are equal on all {n} data sets" if n else "no data set that both models finished"
        return SignedRank(mean, 0.0, 0.0, None, None, n, zeros, True, reason)
    ranks = _ranks(np.abs(d))
    positive, negative = float(ranks[d > 0].sum()), float(ranks[d < 0].sum())
    exact = n <= EXACT_UP_TO
    if exact:
        p = _sign_flip_p(ranks[d != 0], min(positive, negative))
        least = _sign_flip_p(ranks[d != 0], 0.0)
    else:
        from scipy import stats

        p = float(stats.wilcoxon(d, zero_method="pratt", method="asymptotic").pvalue)
        least = None
    return SignedRank(mean, positive, negative, p, least, n, zeros, exact, "")


def _sign_flip_p(ranks: FloatArray, smaller: float) -> float:
    """min(1, 2 P(W <= smaller)), W the sum of the ranks with a positive sign when every sign is a fair coin."""
    doubled = np.rint(2 * ranks).astype(int)  # average ranks are halves
    share = np.ones(1)
    for rank in doubled:
        share = (np.pad(share, (0, rank)) + np.pad(share, (rank, 0))) / 2
    return min(1.0, 2 * float(share[: round(2 * smaller) + 1].sum()))


@dataclass(frozen=True)
class Friedman:
    """Friedman's test over data sets, and what goes with it."""

    average_ranks: tuple[float, ...]
    """One a model; 1 is best."""
    n: int
    """Data sets."""
    chi2: float | None
    chi2_p: float | None
    f: float | None
    """Iman and Davenport's F, less conservative than chi2."""
    f_p: float | None
    undefined: str


def friedman_test(scores: ArrayLike) -> Friedman:
    """Friedman (1937) test that all models rank alike, with the F of Iman and Davenport (1980).

    chi2 is corrected for ties (scipy), F = (N - 1) chi2 / (N (k - 1) - chi2) with k - 1 and (k - 1)(N - 1) degrees of
    freedom (Demsar 2006, section 3.2.2).

    Args:
        scores: ``(N, k)``, data sets x models, higher is better; all defined.

    Raises:
        MetricError: not a matrix of finite numbers.
    """
    from scipy import stats

    table = _score_table(scores)
    n, k = table.shape
    ranks = rank_models(table)
    means = tuple(ranks.mean(axis=0).tolist())
    if n < 2 or k < 3:
        few = f"{k} models" if k < 3 else f"{n} data set{'' if n == 1 else 's'}"
        return Friedman(means, n, None, None, None, None, f"{few}, and the test needs three models and two data sets")
    if (ranks == ranks[:, :1]).all():
        return Friedman(means, n, None, None, None, None, "all models are equal on every data set")
    chi2, p = (float(v) for v in stats.friedmanchisquare(*ranks.T))
    rest = n * (k - 1) - chi2
    if rest <= 1e-9 * n * k:
        reason = f"F is undefined, as all {n} data sets rank the models the same"
        return Friedman(means, n, chi2, p, None, None, reason)
    f = (n - 1) * chi2 / rest
    return Friedman(means, n, chi2, p, f, float(stats.f.sf(f, k - 1, (k - 1) * (n - 1))), "")


def rank_models(scores: ArrayLike) -> FloatArray:
    """Ranks ``(N, k)`` of the models in each data set: 1 is the highest score, ties share their average rank.

    Raises:
        MetricError: not a matrix of finite numbers.
    """
    return np.stack([_ranks(-row) for row in _score_table(scores)])


def nemenyi_critical_difference(n_models: int, n_data_sets: int, *, alpha: float = 0.05) -> float:
    """How far average ranks must lie apart to differ: q sqrt(k (k + 1) / (6 N)) (Nemenyi 1963; Demsar 2006).

    q is the quantile of the studentised range of k models at infinite degrees of freedom, over sqrt 2.

    Raises:
        ConfigError: fewer than two models, no data set, `alpha` outside (0, 1).
    """
    from scipy import stats

    k, n = check_count(n_models, "n_models", 2), check_count(n_data_sets, "n_data_sets")
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must lie between 0 and 1, got {alpha!r}")
    q = float(stats.studentized_range.ppf(1 - alpha, k, np.inf)) / math.sqrt(2)
    return q * math.sqrt(k * (k + 1) / (6 * n))


def rank_groups(average_ranks: Sequence[float], critical_difference: float) -> list[tuple[int, ...]]:
    """The largest groups of models whose average ranks lie within the critical difference; indices, best first.

    Groups of one, and groups inside another, are left out.
    """
    order = sorted(range(len(average_ranks)), key=lambda i: (average_ranks[i], i))
    groups: list[tuple[int, ...]] = []
    reached = 0
    for start, i in enumerate(order):
        end = start
        while end < len(order) and average_ranks[order[end]] - average_ranks[i] <= critical_difference + ROUNDING:
            end += 1
        if end > reached and end - start > 1:
            groups.append(tuple(order[start:end]))
        reached = max(reached, end)
    return groups


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number (Holm 1979): the i-th smallest times m - i + 1, made monotone, at most 1.

    Undefined ones stay None and do not count as comparisons.

    Raises:
        MetricError: a value outside 0 to 1.
    """
    for p in p_values:
        if p is not None and not 0 <= p <= 1:
            raise MetricError(f"p must lie between 0 and 1, got {p!r}")
    defined = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for place, (p, i) in enumerate(defined):
        highest = max(highest, min(1.0, (len(defined) - place) * p))
        corrected[i] = highest
    return corrected


def _defined(values: Sequence[float | None] | ArrayLike) -> FloatArray:
    numbers = np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)  # type: ignore
    return numbers[np.isfinite(numbers)]


def _equal(values: FloatArray) -> bool:
    return bool(np.ptp(values) <= ROUNDING * max(1.0, float(np.abs(values).max())))


def _signed(value: float) -> str:
    return "0" if abs(value) <= ROUNDING else f"{value:+.4g}"


def _ranks(values: FloatArray) -> FloatArray:
    """Average ranks ascending ``(n,)``; values within rounding are ties."""
    from scipy import stats

    return np.asarray(stats.rankdata(np.round(values, 12)), dtype=np.float64)


def _score_table(scores: ArrayLike) -> FloatArray:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape or not np.isfinite(table).all():
        raise MetricError(f"scores must be a data sets x models matrix of finite numbers, got shape {table.shape}")
    return table
