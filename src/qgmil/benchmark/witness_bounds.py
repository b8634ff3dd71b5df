"""What can be learnt of the witness task: figures known before anything is trained, by theory and by simulation.

An instance x of a bag has likelihood ratio ``r_c(x) = exp(m_c . x - |m_c|^2 / 2)`` of being a witness of class c
against being noise, and a bag of n instances with k witnesses in unknown places has

    p(bag | c) / p(bag | 0) = e_k(r_c(x_1), ..., r_c(x_n)) / binom(n, k),

e_k the elementary symmetric polynomial. The class with the largest ratio is Bayes' choice: no model is right more
often. Within a bag, ordering instances by r_c maximises the expected average precision of finding the witnesses:
exchanging two neighbours that are not so ordered gains more often than it loses. The mean of a bag's instances is
N(k m_c / n, I / n): what a model can do that sees nothing but the mean is known as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from qgmil.datasets.witness import witness_count

Floats = NDArray[np.float64]
LEVEL = 0.999  # of every interval, two-sided
BAGS = 1000  # simulated bags of each class
DRAWS = 20_000  # of a figure, for its quantiles
COHORTS = 4000  # simulated data sets to learn from


@dataclass(frozen=True)
class Task:
    """The witness data set that is trained on; fields as the options of `qgmil.datasets.witness`."""

    classes: int = 3
    prevalence: float = 0.2
    separation: float = 5.0
    bags_per_class: int = 60
    sizes: tuple[int, int] = (10, 30)
    width: int = 16
    seed: int = 0
    shuffled: bool = False


@dataclass(frozen=True)
class Bounds:
    """Limits of the figures on the test bags of a task, each of which holds for a sound model with probability 0.9995.

    Args:
        f1_low: what the weakest learner reaches that uses the features: nearest class mean of the bags' means.
        f1_typical: what it reaches in half of the cases.
        f1_linear: the most of any model that sees only the bags' means.
        f1_high: the most of any model (Bayes).
        ap_random: attention AP of weights without any relation to the truth, lower and upper limit.
        ap_high: attention AP of the likelihood ratio, upper limit.
    """

    f1_low: float
    f1_typical: float
    f1_linear: float
    f1_high: float
    ap_random: tuple[float, float]
    ap_high: float


@lru_cache(maxsize=64)
def bounds(task: Task, test_bags: int) -> Bounds:
    """The bounds of a task.

    Args:
        task: as it is trained on; the shuffled task has the bounds of the true labels, which mean nothing there.
        test_bags: of each class.
    """
    rng = np.random.default_rng([task.seed, 31])
    low, high = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    bags = simulate(rng, task, BAGS)
    oracle = confusion(bags.labels, bayes_scores(bags, task).argmax(axis=1), task.classes)
    linear = confusion(bags.labels, mean_scores(bags, task).argmax(axis=1), task.classes)
    positive = [(p[:n, c - 1], t[:n]) for p, t, n, c in bags.rows() if c]
    best = np.array([average_precision(p, t, rng) for p, t in positive])
    blind = np.array([average_precision(np.zeros(len(t)), t, rng) for _, t in positive])
    nearest = nearest_mean_f1(rng, task, test_bags)
    f1_high = float(np.quantile(f1_draws(rng, oracle, test_bags), high))
    n_positive = test_bags * (task.classes - 1)
    random = mean_draws(rng, blind, n_positive)
    return Bounds(
        f1_low=float(np.quantile(nearest, low)),
        f1_typical=float(np.median(nearest)),
        f1_linear=min(f1_high, float(np.quantile(f1_draws(rng, linear, test_bags), high))),
        f1_high=f1_high,
        ap_random=(float(np.quantile(random, low)), float(np.quantile(random, high))),
        ap_high=float(np.quantile(mean_draws(rng, best, n_positive), high)),
    )


@dataclass(frozen=True, eq=False)
class SimulatedBags:
    """Bags as far as they tell anything: their instances along the directions of the witnesses.

    Args:
        projections: ``(B, n_max, C - 1)``; rows beyond the size are padding.
        truth: ``(B, n_max)`` witness or not.
        sizes, labels: ``(B,)``.
    """

    projections: Floats
    truth: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]

    def rows(self) -> zip[tuple[Floats, NDArray[np.bool_], int, int]]:
        """Bag by bag: projections, truth, size, label."""
        return zip(self.projections, self.truth, self.sizes.tolist(), self.labels.tolist(), strict=True)


def simulate(rng: np.random.Generator, task: Task, bags: int) -> SimulatedBags:
    """Draw that many bags of each class. The witnesses come first: nothing here depends on the order."""
    labels = np.tile(np.arange(task.classes), bags)
    sizes = np.repeat(rng.integers(task.sizes[0], task.sizes[1] + 1, size=bags), task.classes)
    counts = _counts(sizes, task.prevalence)
    place = np.arange(task.sizes[1])
    truth = (place < counts[:, None]) & (labels[:, None] > 0)
    x = rng.normal(size=(len(labels), task.sizes[1], task.classes - 1))
    x += task.separation * truth[..., None] * (labels[:, None, None] - 1 == np.arange(task.classes - 1))
    return SimulatedBags(x, truth, sizes, labels)


def bayes_scores(bags: SimulatedBags, task: Task) -> Floats:
    """Log-likelihood of each bag under each class ``(B, C)``, against class 0."""
    valid = np.arange(bags.projections.shape[1]) < bags.sizes[:, None]
    counts = _counts(bags.sizes, task.prevalence)
    n, k = bags.sizes.astype(float), counts.astype(float)
    binomial = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    scores = np.zeros((len(bags.sizes), task.classes))
    for c in range(1, task.classes):
        ratio = task.separation * bags.projections[..., c - 1] - task.separation**2 / 2
        symmetric = log_elementary(np.where(valid, ratio, -np.inf), int(counts.max()))
        scores[:, c] = symmetric[np.arange(len(counts)), counts] - binomial
    return scores


def log_elementary(log_values: Floats, most: int) -> Floats:
    """``log e_0 ... log e_most`` of the elementary symmetric polynomials of each row ``(B, n) -> (B, most + 1)``.

    By ``e_j(x_1..x_i) = e_j(x_1..x_{i-1}) + x_i e_{j-1}(x_1..x_{i-1})``; entries of -inf are values of 0.
    """
    found = np.full((len(log_values), most + 1), -np.inf)
    found[:, 0] = 0.0
    for column in log_values.T:
        found[:, 1:] = np.logaddexp(found[:, 1:], found[:, :-1] + column[:, None])
    return found


def mean_scores(bags: SimulatedBags, task: Task) -> Floats:
    """As `bayes_scores`, for one who sees the mean of the instances and their number only."""
    valid = np.arange(bags.projections.shape[1]) < bags.sizes[:, None]
    mean = (bags.projections * valid[..., None]).sum(axis=1) / bags.sizes[:, None]
    shift = task.separation * _counts(bags.sizes, task.prevalence) / bags.sizes
    scores = bags.sizes[:, None] * (shift[:, None] * mean - shift[:, None] ** 2 / 2)
    return np.concatenate([np.zeros((len(mean), 1)), scores], axis=1)


def nearest_mean_f1(rng: np.random.Generator, task: Task, test_bags: int) -> Floats:
    """Macro F1 of the nearest class mean of bag means, learnt on as many bags as the task has, in many cohorts."""
    train = task.bags_per_class - 2 * max(1, round(0.2 * task.bags_per_class))
    shift, noise = _mean_and_variance(rng, task, train)
    centres = rng.normal(size=(COHORTS, task.classes, task.width)) * np.sqrt(noise.mean(axis=1) / train)[:, None, None]
    for c in range(1, task.classes):
        centres[:, c, c - 1] += shift.mean(axis=1)
    shift, noise = _mean_and_variance(rng, task, test_bags)
    tables = np.zeros((COHORTS, task.classes, task.classes))
    for label in range(task.classes):
        x = rng.normal(size=(COHORTS, test_bags, task.width)) * np.sqrt(noise)[..., None]
        if label:
            x[..., label - 1] += shift
        score = x @ centres.transpose(0, 2, 1) - (centres**2).sum(axis=-1)[:, None] / 2  # (cohorts, bags, C)
        nearest = score.argmax(axis=-1)
        tables[:, label] = np.stack([(nearest == c).sum(axis=1) for c in range(task.classes)], axis=1)
    return macro_f1(tables)


def _mean_and_variance(rng: np.random.Generator, task: Task, bags: int) -> tuple[Floats, Floats]:
    """Where the means of positive bags lie along their direction, and their variance ``(COHORTS, bags)``."""
    every = np.arange(task.sizes[0], task.sizes[1] + 1)
    at = rng.integers(len(every), size=(COHORTS, bags))
    return (task.separation * _counts(every, task.prevalence) / every)[at], (1 / every)[at]


def _counts(sizes: NDArray[np.int64], prevalence: float) -> NDArray[np.int64]:
    return np.array([witness_count(n, prevalence) for n in sizes.tolist()])


def confusion(labels: ArrayLike, predicted: ArrayLike, classes: int) -> Floats:
    """Shares of the predictions ``(C, C)``, each row one true class, summing to 1."""
    table = np.zeros((classes, classes))
    np.add.at(table, (np.asarray(labels), np.asarray(predicted)), 1)
    return table / table.sum(axis=1, keepdims=True)


def f1_draws(rng: np.random.Generator, shares: Floats, per_class: int) -> Floats:
    """Macro F1 of one whose predictions have these shares, on many test sets of `per_class` bags of each class."""
    return macro_f1(np.stack([rng.multinomial(per_class, row, size=DRAWS) for row in shares], axis=1))


def chance_interval(
    rng: np.random.Generator, predicted: ArrayLike, labels: ArrayLike, classes: int
) -> tuple[float, float]:
    """Limits of the macro F1 of these predictions if they have no relation to the labels: labels permuted."""
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    dealt = rng.permuted(np.tile(labels, (DRAWS // 2, 1)), axis=1)
    cell = dealt * classes + predicted
    tables = np.stack([(cell == i).sum(axis=1) for i in range(classes**2)], axis=1).reshape(-1, classes, classes)
    low, high = np.quantile(macro_f1(tables), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def macro_f1(tables: ArrayLike) -> Floats:
    """Macro F1 of confusion tables ``(..., C, C)`` of counts; a class that is never predicted has F1 = 0."""
    tables = np.asarray(tables, dtype=float)
    hits = np.diagonal(tables, axis1=-2, axis2=-1)
    either = tables.sum(axis=-1) + tables.sum(axis=-2)
    return (2 * hits / np.maximum(either, 1e-300)).mean(axis=-1)


def average_precision(scores: ArrayLike, truth: ArrayLike, rng: np.random.Generator) -> float:
    """AP of one bag: the mean over witnesses of the precision down to them. Equal scores are ordered by chance."""
    scores, truth = np.asarray(scores, dtype=float), np.asarray(truth, dtype=bool)
    order = np.lexsort((rng.random(len(scores)), -scores))
    ranks = np.flatnonzero(truth[order]) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).mean())


def random_precision(size: int, witnesses: int) -> float:
    """Expected AP of a random order: ``(H_n + (k - 1) / (n - 1) (n - H_n)) / n``, H_n the harmonic number."""
    harmonic = float((1 / np.arange(1, size + 1)).sum())
    return (harmonic + (witnesses - 1) / max(1, size - 1) * (size - harmonic)) / size


def mean_draws(rng: np.random.Generator, values: Floats, count: int) -> Floats:
    """Means of `count` of the values, drawn with replacement, many times."""
    return rng.choice(values, (DRAWS, count)).mean(axis=1)
