"""Means and spreads over folds and seeds, and pooled out-of-fold predictions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qgmil.errors import MetricError
from qgmil.evaluation.metrics import evaluate
from qgmil.evaluation.summary import FoldPredictions, pool, pool_folds, summarise

VALUES = {(0, 0): 0.5, (0, 1): 0.7, (1, 0): 0.6, (1, 1): 0.9}


def cells(values: dict[tuple[int, int], float | None]) -> list[dict]:
    return [{"seed": seed, "fold": fold, "macro_f1": value} for (seed, fold), value in values.items()]


def test_by_hand() -> None:
    found = summarise(cells(VALUES))
    assert (found["n_cells"], found["n_seeds"], found["n_folds"], found["missing"]) == (4, 2, 2, [])
    m = found["metrics"]["macro_f1"]
    assert m["mean"] == pytest.approx(0.675)
    assert m["sd"] == pytest.approx(np.std([0.5, 0.7, 0.6, 0.9], ddof=1))
    assert m["sd_over_seeds"] == pytest.approx(np.std([0.6, 0.75], ddof=1))
    assert m["sd_over_folds"] == pytest.approx(np.std([0.55, 0.8], ddof=1))
    assert (m["n_defined"], m["n_undefined"]) == (4, 0)


def test_order_of_cells_does_not_matter() -> None:
    forward, backward = summarise(cells(VALUES)), summarise(cells(VALUES)[::-1])
    assert forward["metrics"]["macro_f1"] == pytest.approx(backward["metrics"]["macro_f1"])


def test_undefined_cells_are_counted_and_left_out() -> None:
    found = summarise([*cells({**VALUES, (0, 1): None}), {"seed": 2, "fold": 0}, *cells({(2, 1): float("nan")})])
    m = found["metrics"]["macro_f1"]
    assert (m["n_defined"], m["n_undefined"]) == (3, 3) and m["mean"] == pytest.approx(2 / 3)
    assert m["sd_over_seeds"] == pytest.approx(np.std([0.5, 0.75], ddof=1))
    none = summarise(cells({(0, 0): None}))["metrics"]["macro_f1"]
    assert none["mean"] is None and none["sd"] is None and none["n_undefined"] == 1


def test_one_cell_has_a_mean_and_no_spread() -> None:
    m = summarise(cells({(0, 0): 0.5}))["metrics"]["macro_f1"]
    assert m["mean"] == 0.5 and m["sd"] is m["sd_over_seeds"] is m["sd_over_folds"] is None


def test_takes_the_dicts_of_evaluate() -> None:
    p = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    found = summarise({**evaluate(p, [0, 1, seed], ["a", "b"]), "fold": 0, "seed": seed} for seed in (0, 1))
    assert {"macro_f1", "f1_per_class.a", "nll", "kappa_quadratic"} <= set(found["metrics"])
    assert not {"n", "ece_bins", "kappa_weights", "undefined", "n_per_class.a", "seed"} & set(found["metrics"])
    json.dumps(found, allow_nan=False)


def test_holes_in_the_grid_are_listed() -> None:
    assert summarise(cells({k: v for k, v in VALUES.items() if k != (1, 0)}))["missing"] == [[1, 0]]


def test_bad_cells() -> None:
    with pytest.raises(MetricError, match="no cells"):
        summarise([])
    with pytest.raises(MetricError, match="lacks 'fold' or 'seed'"):
        summarise([{"seed": 0, "macro_f1": 1.0}])
    with pytest.raises(MetricError, match="seed 0, fold 1 is there twice"):
        summarise([*cells({(0, 1): 0.1}), *cells({(0, 1): 0.2})])


def folds(seed: int, bags: tuple[list[str], ...] = (["c", "a"], ["b", "d"])) -> list[FoldPredictions]:
    rng = np.random.default_rng(seed)
    truth = {"a": 0, "b": 1, "c": 1, "d": 0, "e": 1}
    return [
        FoldPredictions(seed, fold, ids, rng.dirichlet([1, 1], len(ids)), [truth[bag] for bag in ids])
        for fold, ids in enumerate(bags)
    ]


def test_pool_equals_evaluating_all_folds_together() -> None:
    parts = folds(0) + folds(1)
    found = pool(parts, ["x", "y"], expected_ids="abcd")
    assert found["n_bags"] == 4 and found["n_seeds"] == 2
    per_seed = []
    for seed in (0, 1):
        mine = [part for part in parts if part.seed == seed]
        p = np.concatenate([part.probabilities for part in mine])
        y = np.concatenate([part.labels for part in mine])
        per_seed.append(evaluate(p, y, ["x", "y"]))
    for seed in (0, 1):
        assert found["per_seed"][seed]["seed"] == seed
        assert found["per_seed"][seed]["nll"] == pytest.approx(per_seed[seed]["nll"])
    nll = [m["nll"] for m in per_seed]
    assert found["metrics"]["nll"]["mean"] == pytest.approx(np.mean(nll))
    assert found["metrics"]["nll"]["sd"] == pytest.approx(np.std(nll, ddof=1))
    assert found["metrics"]["macro_f1"]["n_defined"] == 2
    json.dumps(found, allow_nan=False)


def test_pooled_bags_are_in_order_with_their_own_rows() -> None:
    parts = folds(0)
    whole = pool_folds(parts)[0]
    assert whole.bag_ids == ("a", "b", "c", "d") and whole.labels.tolist() == [0, 1, 1, 0]
    np.testing.assert_allclose(whole.probabilities[2], parts[0].probabilities[0])


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([], "no predictions"),
        (folds(0, (["a", "b"], ["c", "b"])), "bag 'b' is predicted in fold 0 and again in 1, seed 0"),
        (folds(0, (["a", "a"],)), "bag 'a' is predicted in fold 0 and again in 0"),
        (folds(0) + folds(1, (["a", "b"], ["c"])), "bag 'd' is predicted under seed 0 but under no fold of seed 1"),
        (folds(1) + folds(0, (["a", "b"], ["c"])), "bag 'd' is predicted under seed 1 but under no fold of seed 0"),
        ([FoldPredictions(0, 0, ["a"], [[0.5, 0.5], [0.1, 0.9]], [0, 1])], "1 bag ids for 2 predictions"),
        (
            [FoldPredictions(s, 0, ["a", "b"], [[0.5, 0.5], [0.1, 0.9]], [0, s]) for s in (0, 1)],
            "bag 'b' has different labels",
        ),
        (
            [FoldPredictions(0, f, [str(f)], [[1 / (f + 2)] * (f + 2)], [0]) for f in (0, 1)],
            "different numbers of classes",
        ),
    ],
)
def test_each_bag_exactly_once(parts: list[FoldPredictions], says: str) -> None:
    with pytest.raises(MetricError) as caught:
        pool(parts, ["x", "y"])
    assert says in str(caught.value)


def test_expected_bags() -> None:
    with pytest.raises(MetricError, match="bag 'e' is predicted under no fold, seed 0"):
        pool(folds(0), ["x", "y"], expected_ids="abcde")
    with pytest.raises(MetricError, match="bag 'd' is predicted but is not an expected bag"):
        pool(folds(0), ["x", "y"], expected_ids="abc")
