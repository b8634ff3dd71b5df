"""Agreement after random removal, and between seeds: by hand, at the extremes, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qgmil import create_model
from qgmil.attention.scores import instance_scores
from qgmil.attention.stability import rank_correlation, removal_agreement, seed_distance, total_variation
from qgmil.bags.bag import Bag, PackedBags
from qgmil.errors import ConfigError, MetricError
from qgmil.layers.pooling import segment_mean
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput

weights = arrays(np.float64, 7, elements=st.floats(0.01, 1)).map(lambda a: a / a.sum())


@given(weights, weights)
def test_total_variation_is_a_distance(a: np.ndarray, b: np.ndarray) -> None:
    found = total_variation(a, b)
    assert 0 <= found <= 1
    assert found == pytest.approx(total_variation(b, a))
    assert found == pytest.approx(np.clip(a - b, 0, None).sum(), abs=1e-12)  # what would have to be moved
    assert total_variation(a, a) == 0


def test_total_variation_of_disjoint_ones_and_of_other_lengths() -> None:
    assert total_variation([1, 0], [0, 1]) == 1
    with pytest.raises(MetricError, match="one length"):
        total_variation([1, 0], [1])


def test_seeds_by_hand() -> None:
    p = [[0.5, 0.5], [0.9, 0.1], [0.5, 0.5]]
    a = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    said, attended = seed_distance(p, a)
    assert said == pytest.approx((0.4 + 0.0 + 0.4) / 3)
    assert attended == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert seed_distance(p)[1] is None
    with pytest.raises(MetricError, match="at least two models"):
        seed_distance([[0.5, 0.5]])


def bag(n: int) -> Bag:
    return Bag(torch.randn(n, 5, generator=torch.Generator().manual_seed(3)), bag_id="b")


def uniform(one: Bag) -> np.ndarray:
    return np.full(len(one), 1 / len(one))


def test_attention_pooling_over_instances_alone_never_moves() -> None:
    """ABMIL's weights on what stays are its old ones, renormalised, whatever goes."""
    torch.manual_seed(0)
    model = create_model("abmil_gated", in_dim=5, num_classes=2).eval()
    found = removal_agreement([model], bag(40), lambda b: instance_scores(model, b).values)
    assert [r.fraction for r in found] == [0.1, 0.5]
    for removal in found:
        assert removal.attention_tv == pytest.approx(0, abs=1e-6)
        assert removal.attention_rank == pytest.approx(1)
    assert found[1].probability_tv > found[0].probability_tv > 0


def test_a_map_that_ignores_the_bag_is_far_from_itself() -> None:
    """All weight on the first row that there is: a removed first row moves all of it."""

    def first(one: Bag) -> np.ndarray:
        return np.eye(len(one))[0]

    model = create_model("mean", in_dim=5, num_classes=2).eval()
    (found,) = removal_agreement([model], bag(2), first, fractions=(0.5,), repeats=50)
    # either row goes; if the first one does, what stays had no weight before
    assert 0.2 < found.attention_tv < 0.8


def test_removals_are_the_same_for_the_same_seed() -> None:
    model = create_model("mean", in_dim=5, num_classes=2).eval()
    a, b, c = (removal_agreement([model], bag(30), uniform, seed=s) for s in (0, 0, 1))
    assert a == b
    assert a != c
    assert all(r.attention_tv == pytest.approx(0) for r in a)


class FirstFeature(Aggregator):
    """The logit of class 1 is the mean of the first feature."""

    has_attention = False

    def __init__(self) -> None:
        super().__init__(5, 2)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        z = segment_mean(bags.features, bags.sizes)[:, :1] * self.scale
        return BagOutput(torch.cat([torch.zeros_like(z), z], dim=1), z)


def test_predictions_by_hand() -> None:
    """Of two instances, 3 and -1, one stays: with 3 the class is kept, with -1 it is lost."""
    x = torch.zeros(2, 5)
    x[:, 0] = torch.tensor([3.0, -1.0])
    (found,) = removal_agreement([FirstFeature()], Bag(x, bag_id="b"), uniform, fractions=(0.5,), repeats=40)
    p = {z: 1 / (1 + np.exp(-z)) for z in (3.0, 1.0, -1.0)}
    assert 0.2 < found.same_class < 0.8
    kept = found.same_class
    assert found.probability_tv == pytest.approx(kept * (p[3.0] - p[1.0]) + (1 - kept) * (p[1.0] - p[-1.0]), rel=1e-5)
    assert found.attention_rank is None  # of one instance


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation([1, 2, 3, 10], [0.1, 0.2, 0.3, 0.4]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # ranks 1.5 1.5 3 and 1 2 3: covariance 1.5, variances 1.5 and 2
    assert rank_correlation([5, 5, 9], [1, 2, 3]) == pytest.approx(1.5 / np.sqrt(1.5 * 2))
    assert rank_correlation([1, 1], [1, 2]) is None
    assert rank_correlation([1], [2]) is None
    with pytest.raises(MetricError, match="one length"):
        rank_correlation([1, 2], [1])


def test_a_map_that_turns_round_is_ranked_the_other_way() -> None:
    """Weights fall with the row in the whole bag and rise in every part of it."""

    def turning(one: Bag) -> np.ndarray:
        weights = np.arange(1, len(one) + 1, dtype=float)
        return (weights[::-1] if len(one) == 20 else weights) / weights.sum()

    model = create_model("mean", in_dim=5, num_classes=2).eval()
    for removal in removal_agreement([model], bag(20), turning):
        assert removal.attention_rank == pytest.approx(-1)


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (1, {}, "bag 'b' has one instance"),
        (5, {"fractions": (0.0,)}, "between 0 and 1"),
        (5, {"fractions": ()}, "between 0 and 1"),
        (5, {"repeats": 0}, "repeats"),
    ],
)
def test_bad_arguments_are_named(n: int, options: dict, message: str) -> None:
    model = create_model("mean", in_dim=5, num_classes=2).eval()
    with pytest.raises(ConfigError, match=message):
        removal_agreement([model], bag(n), uniform, **options)
