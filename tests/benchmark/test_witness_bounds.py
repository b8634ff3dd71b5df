"""The bounds of the witness task: against brute force, closed forms and other software."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from sklearn.metrics import average_precision_score, f1_score

from qgmil.benchmark.witness_bounds import (
    SimulatedBags,
    Task,
    average_precision,
    bayes_scores,
    bounds,
    chance_interval,
    confusion,
    f1_draws,
    log_elementary,
    macro_f1,
    mean_draws,
    mean_scores,
    nearest_mean_f1,
    random_precision,
    simulate,
)
from qgmil.datasets import load_dataset
from qgmil.datasets.witness import witness_count, witness_means


@given(arrays(np.float64, 6, elements=st.floats(-3, 3)), st.integers(1, 4))
def test_elementary_symmetric_polynomials_against_their_definition(logs: np.ndarray, most: int) -> None:
    found = np.exp(log_elementary(np.concatenate([logs, [-np.inf]])[None], most))[0]
    for j in range(most + 1):
        wanted = sum(np.prod([np.exp(logs[i]) for i in chosen]) for chosen in combinations(range(6), j))
        assert found[j] == pytest.approx(wanted)


def test_the_likelihood_of_a_bag_against_the_sum_over_all_places_of_the_witnesses() -> None:
    task = Task(classes=3, prevalence=0.4, separation=1.5, sizes=(5, 7))
    bags = simulate(np.random.default_rng(0), task, 3)
    scores = bayes_scores(bags, task)
    assert not scores[:, 0].any()
    for row, (x, _, n, _) in enumerate(bags.rows()):
        k = witness_count(n, 0.4)
        for c in (1, 2):
            means = np.zeros((comb(n, k), n, 2))
            for i, chosen in enumerate(combinations(range(n), k)):
                means[i, list(chosen), c - 1] = 1.5
            given_places = norm.logpdf(x[:n], means).sum(axis=(1, 2))
            wanted = np.log(np.exp(given_places - norm.logpdf(x[:n]).sum()).mean())
            assert scores[row, c] == pytest.approx(wanted)


def test_the_simulated_bags_are_those_of_the_data_set() -> None:
    """Bayes, computed on the real features along the true directions, is as good as its bound says."""
    options = {"classes": 3, "prevalence": 0.1, "separation": 3.0, "bags_per_class": 300, "sizes": (10, 30)}
    task = Task(**options)  # type: ignore[arg-type]
    loaded = load_dataset("witness", **options)
    directions = witness_means(3, 16, 3.0, 0) / 3.0
    read = [loaded.bags[i] for i in range(len(loaded.bags))]
    x = np.zeros((len(read), 30, 2))
    for i, bag in enumerate(read):
        x[i, : len(bag)] = bag.features.numpy() @ directions.T
    labels = np.array([int(str(bag.label)) for bag in read])
    bags = SimulatedBags(x, np.zeros(x.shape[:2], bool), np.array([len(b) for b in read]), labels)
    simulated = simulate(np.random.default_rng(1), task, 1000)
    for scores in (bayes_scores, mean_scores):
        real = (scores(bags, task).argmax(axis=1) == labels).mean()
        made = (scores(simulated, task).argmax(axis=1) == simulated.labels).mean()
        assert abs(real - made) < 4 * np.sqrt(made * (1 - made) * (1 / len(labels) + 1 / 3000))


def test_bayes_on_the_means_errs_as_theory_says() -> None:
    """Two classes, bags of one size: error Phi(-p s sqrt(n) / 2)."""
    task = Task(classes=2, prevalence=0.1, separation=3.0, sizes=(20, 20))
    bags = simulate(np.random.default_rng(0), task, 20_000)
    error = (mean_scores(bags, task).argmax(axis=1) != bags.labels).mean()
    assert error == pytest.approx(norm.cdf(-0.1 * 3 * np.sqrt(20) / 2), abs=4 * np.sqrt(0.25 / 40_000))
    whole = (bayes_scores(bags, task).argmax(axis=1) != bags.labels).mean()
    assert whole < error - 0.02


def test_the_nearest_mean_errs_as_theory_says_where_training_bags_abound() -> None:
    task = Task(classes=2, prevalence=0.1, separation=3.0, sizes=(20, 20), bags_per_class=400, width=2)
    found = nearest_mean_f1(np.random.default_rng(0), task, 60)
    assert found.mean() == pytest.approx(norm.cdf(0.1 * 3 * np.sqrt(20) / 2), abs=0.004)
    few = nearest_mean_f1(np.random.default_rng(0), Task(**{**vars(task), "bags_per_class": 10, "width": 50}), 60)
    assert few.mean() < found.mean() - 0.05


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_macro_f1_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, said = (np.array(column) for column in zip(*pairs, strict=True))
    table = np.zeros((3, 3))
    np.add.at(table, (truth, said), 1)
    wanted = f1_score(truth, said, labels=range(3), average="macro", zero_division=0)
    assert macro_f1(table) == pytest.approx(wanted)


@given(arrays(np.float64, 12, elements=st.floats(0, 1), unique=True), st.integers(1, 11))
def test_average_precision_is_that_of_scikit_learn(scores: np.ndarray, k: int) -> None:
    truth = np.arange(12) < k
    wanted = average_precision_score(truth, scores)
    assert average_precision(scores, truth, np.random.default_rng(0)) == pytest.approx(wanted)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (10, 1), (10, 3), (25, 5), (4, 4)])
def test_a_random_order_has_the_expected_precision(n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    drawn = [average_precision(np.zeros(n), np.arange(n) < k, rng) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(random_precision(n, k), abs=4 * np.std(drawn) / np.sqrt(4000) + 1e-12)


def test_the_interval_of_chance_is_that_of_the_permutations() -> None:
    """Four bags, two of each class: the six deals of the labels can be listed."""
    said, truth = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    every = []
    for ones in combinations(range(4), 2):
        labels = np.isin(np.arange(4), ones).astype(int)
        every.append(f1_score(labels, said, average="macro", zero_division=0))
    low, high = chance_interval(np.random.default_rng(0), said, truth, 2)
    assert (low, high) == (pytest.approx(min(every)), pytest.approx(max(every)))
    constant = chance_interval(np.random.default_rng(0), np.zeros(4, int), truth, 2)
    assert constant == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_chance_covers_what_chance_gives() -> None:
    rng = np.random.default_rng(3)
    truth = np.repeat(np.arange(3), 12)
    outside = 0
    for _ in range(15):
        said = rng.integers(0, 3, size=36)
        low, high = chance_interval(rng, said, truth, 3)
        outside += not low <= f1_score(truth, said, average="macro", zero_division=0) <= high
    assert outside == 0  # 0.015 expected
    low, high = chance_interval(rng, np.roll(truth, 3), truth, 3)
    assert f1_score(truth, np.roll(truth, 3), average="macro") > high


def test_draws_have_the_mean_and_spread_of_what_they_are_drawn_from() -> None:
    rng = np.random.default_rng(0)
    shares = confusion([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], 2)
    np.testing.assert_allclose(shares, [[0.75, 0.25], [0, 1]])
    assert f1_draws(rng, shares, 4000).mean() == pytest.approx(macro_f1(shares), abs=1e-3)
    values = rng.random(500)
    drawn = mean_draws(rng, values, 25)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.003)
    assert drawn.std() == pytest.approx(values.std() / 5, rel=0.03)


def test_bounds_are_ordered_and_fall_with_the_prevalence() -> None:
    many, few = (bounds(Task(classes=2, prevalence=p, separation=3.0), 10) for p in (0.3, 0.05))
    for found in (many, few):
        assert found.f1_low < found.f1_typical < found.f1_linear <= found.f1_high
        assert found.ap_random[0] < found.ap_random[1] < found.ap_high <= 1
    assert few.f1_low < 0.5 < many.f1_low
    assert few.ap_high < many.ap_high or few.ap_random[0] < many.ap_random[0]
    assert bounds(Task(classes=2, prevalence=0.3, separation=3.0), 10) == many


def test_no_order_finds_witnesses_better_than_the_likelihood_ratio() -> None:
    """All orders of bags of five instances, expected precision over the truth given the features."""
    from itertools import permutations

    rng = np.random.default_rng(0)
    for _ in range(5):
        ratio = np.exp(2 * rng.normal(size=5))
        sets = list(combinations(range(5), 2))
        weight = np.array([ratio[list(s)].prod() for s in sets])
        truths = [np.isin(np.arange(5), s) for s in sets]

        def expected(order: tuple[int, ...], weight: np.ndarray = weight, truths: list[np.ndarray] = truths) -> float:
            scores = -np.argsort(order).astype(float)
            values = [average_precision(scores, t, rng) for t in truths]
            return float(np.average(values, weights=weight))

        best = max(permutations(range(5)), key=expected)
        assert expected(best) == pytest.approx(expected(tuple(np.argsort(-ratio).tolist())))
