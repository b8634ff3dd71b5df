"""Deletion and insertion on aggregators whose answers are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qgmil.attention.faithfulness import (
    SHARES,
    Advantage,
    advantage,
    faithfulness,
    predict_subsets,
    verdict,
)
from qgmil.bags.bag import Bag, PackedBags
from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.bootstrap import Interval
from qgmil.layers.pooling import segment_mean
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput


class MeanOfFirst(Aggregator):
    """The logit of class 1 is the mean of the first feature."""

    has_attention = False

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(2, 2)
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.asked: list[int] = []

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        self.asked += bags.sizes
        z = segment_mean(bags.features, bags.sizes)[:, :1] * self.scale
        return BagOutput(torch.cat([torch.zeros_like(z), z], dim=1), z)


def bag(values: list[float] | np.ndarray, bag_id: str = "b") -> Bag:
    x = torch.zeros(len(values), 2)
    x[:, 0] = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    return Bag(x, bag_id=bag_id)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def test_curves_by_hand() -> None:
    """Values 99 to 0: without the top k the mean is (99 - k) / 2, of the top k alone 99 - (k - 1) / 2."""
    values = np.arange(100)[::-1].copy()
    found = faithfulness([MeanOfFirst(0.1)], bag(values), values)
    counts = np.array([0, 1, 2, 5, 10, 20, 50, 80])
    np.testing.assert_allclose(found.deletion, sigmoid(0.1 * (99 - counts) / 2), rtol=1e-5)
    kept = np.maximum(counts, 1)
    np.testing.assert_allclose(found.insertion, sigmoid(0.1 * (99 - (kept - 1) / 2)), rtol=1e-5)
    assert found.target == 1
    assert found.probability == pytest.approx(sigmoid(np.array(4.95)))
    assert tuple(found.shares) == SHARES
    assert found.random_deletion.shape == found.random_insertion.shape == (5, 8)


def test_areas_are_mean_heights() -> None:
    found = faithfulness([MeanOfFirst(0.0)], bag([1.0, 2.0, 3.0]), [1, 2, 3])
    assert found.deletion_area == found.insertion_area == found.random_deletion_area == pytest.approx(0.5)
    assert found.deletion_advantage == found.insertion_advantage == pytest.approx(0)


def test_scores_that_are_right_beat_random_and_their_reverse_loses() -> None:
    values = np.random.default_rng(0).normal(size=60)
    one = bag(values + 1)
    right = faithfulness([MeanOfFirst()], one, values)
    wrong = faithfulness([MeanOfFirst()], one, -values)
    assert right.deletion_advantage > 0.05
    assert right.insertion_advantage > 0.05
    assert wrong.deletion_advantage < -0.05
    assert wrong.insertion_advantage < -0.05


def test_other_scores_of_a_bag_meet_the_same_random_orders_and_other_bags_do_not() -> None:
    values = np.random.default_rng(0).normal(size=60)
    a = faithfulness([MeanOfFirst()], bag(values), values)
    b = faithfulness([MeanOfFirst()], bag(values), -values)
    np.testing.assert_array_equal(a.random_deletion, b.random_deletion)
    c = faithfulness([MeanOfFirst()], bag(values, "other"), values)
    assert not np.array_equal(a.random_deletion, c.random_deletion)
    d = faithfulness([MeanOfFirst()], bag(values), values, seed=1)
    assert not np.array_equal(a.random_deletion, d.random_deletion)


def test_the_class_and_several_models() -> None:
    one = bag([2.0, 1.0, 3.0, 0.5])
    models = [MeanOfFirst(1.0), MeanOfFirst(-0.1)]
    found = faithfulness(models, one, [1, 2, 3, 4], target=0)
    mean = 6.5 / 4
    assert found.probability == pytest.approx(np.mean([1 - sigmoid(mean), 1 - sigmoid(-0.1 * mean)]))


def test_a_bag_of_one_stays_whole() -> None:
    found = faithfulness([MeanOfFirst()], bag([2.0]), [1.0])
    np.testing.assert_allclose(found.deletion, sigmoid(np.array(2.0)))
    np.testing.assert_allclose(found.random_insertion, sigmoid(np.array(2.0)))


def test_equal_parts_are_asked_once_and_never_empty() -> None:
    model = MeanOfFirst()
    faithfulness([model], bag([1.0, 2.0]), [2, 1], repeats=3)
    assert sorted(model.asked) == [1, 1, 2]


def test_parts_are_predicted_as_bags_of_their_own() -> None:
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    one = Bag(x, bag_id="b")
    rows = [np.array([0, 3]), np.arange(10), np.array([7])]
    said = predict_subsets([MeanOfFirst()], one, rows)
    np.testing.assert_allclose(said[:, 1], [sigmoid(x[r, 0].double().mean().numpy()) for r in rows], rtol=1e-6)


@given(st.permutations(range(12)))
def test_the_order_of_instances_changes_nothing(order: list[int]) -> None:
    values = np.linspace(-1, 2, 12) ** 2
    a = faithfulness([MeanOfFirst()], bag(values), values, repeats=1)
    b = faithfulness([MeanOfFirst()], bag(values[order]), values[order], repeats=1)
    np.testing.assert_allclose(a.deletion, b.deletion, atol=1e-6)
    np.testing.assert_allclose(a.insertion, b.insertion, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": [1, 2]}, MetricError, r"bag 'b': scores of shape \(2,\) for 3 instances"),
        ({"scores": [1, np.nan, 2]}, MetricError, r"bag 'b': the score of instance 1 is nan"),
        ({"shares": [0, 0.5, 0.2]}, ConfigError, "shares must increase"),
        ({"shares": [0, 1.0]}, ConfigError, "less than 1"),
        ({"repeats": 0}, ConfigError, "repeats"),
        ({"target": 2}, ConfigError, "target class 2"),
        ({"models": []}, ConfigError, "at least one model"),
    ],
)
def test_bad_arguments_are_named(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"models": [MeanOfFirst()], "bag": bag([1.0, 2.0, 3.0]), "scores": [1, 2, 3], **change}
    with pytest.raises(error, match=message):
        faithfulness(**arguments)


def test_the_advantage_over_bags_and_its_words() -> None:
    rng = np.random.default_rng(0)
    random = rng.uniform(0.6, 0.8, size=30)
    own = random - rng.uniform(0.02, 0.1, size=30)
    patients = [f"p{i // 2}" for i in range(30)]
    better = advantage(own, random, patients, kind="deletion")
    assert better.advantage == pytest.approx((random - own).mean())
    assert (better.bags, better.patients, better.verdict) == (30, 15, "better")
    worse = advantage(own, random, patients, kind="insertion")
    assert worse.advantage == pytest.approx((own - random).mean())
    assert worse.verdict == "worse"
    same = advantage(random, random, patients, kind="insertion")
    assert (same.advantage, same.p, same.verdict) == (0.0, None, "no better")
    assert verdict(better, same).startswith(
        "Faithful by one of two measures. Removing the most attended instances lowers"
    )
    assert verdict(same, same).startswith("No better than random: a picture, not an explanation.")
    assert "p undefined" in verdict(same, same)
    assert verdict(better, worse).startswith("Divided: the prediction needs what is attended to")
    assert verdict(worse, better).startswith("Divided: what is attended to is enough")
    assert verdict(worse, same).startswith("Misleading")


def test_all_good_is_faithful_and_few_bags_are_never_enough() -> None:
    few = advantage([0.5, 0.5], [0.9, 0.9], ["a", "b"], kind="deletion")
    assert few.verdict == "too few"
    assert few.p == pytest.approx(0.5)
    assert verdict(few, few).startswith(
        "Too few patients to tell (2; the test needs 6). Removing the most attended instances lowers the predicted "
        "class's probability on average more than at random (mean 0.500 against 0.900"
    )
    good = Advantage(0.5, 0.9, 0.4, Interval(0.3, 0.5, 2000), 0.001, 40, 40)
    assert verdict(good, good).startswith("Faithful: the prediction rests on what is attended to.")
    one = advantage([0.5, 0.4], [0.9, 0.9], ["a", "a"], kind="deletion")
    assert (one.interval.low, one.verdict) == (None, "too few")


@pytest.mark.parametrize(("patients", "expected"), [(5, "too few"), (6, "better")])
def test_six_patients_are_the_fewest_that_can_say_anything(patients: int, expected: str) -> None:
    """All of them in favour: p is 2 / 2^n."""
    own = [0.5 - 0.01 * i for i in range(patients)]
    found = advantage(own, [0.9] * patients, range(patients), kind="deletion")
    assert found.p == pytest.approx(2 / 2**patients)
    assert found.p is not None
    assert (found.p < 0.05, found.verdict) == (expected == "better", expected)


def test_batches_are_bounded_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=40)
    whole = faithfulness([MeanOfFirst()], bag(values), values)
    batches: list[int] = []

    class Counting(MeanOfFirst):
        def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
            batches.append(sum(bags.sizes))
            assert len(bags.sizes) == 1 or batches[-1] <= 50
            return super().forward_packed(bags, return_attention)

    monkeypatch.setattr("qgmil.attention.faithfulness.BATCH", 50)
    cut = faithfulness([Counting()], bag(values), values)
    assert len(batches) > 10
    for name in ("deletion", "insertion", "random_deletion", "random_insertion"):
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), rtol=1e-6)


def test_a_model_comes_back_as_it_was() -> None:
    model = MeanOfFirst().train()
    faithfulness([model], bag([1.0, 2.0]), [1, 2])
    assert model.training


def test_bad_lists_are_named() -> None:
    with pytest.raises(MetricError, match="2 areas, 1 of random order and 2 patients"):
        advantage([1, 2], [1], ["a", "b"], kind="deletion")
    with pytest.raises(ConfigError, match="unknown kind of curve 'removal'"):
        advantage([1], [1], ["a"], kind="removal")
