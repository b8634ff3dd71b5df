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
from qgmil.attention.stability import removal_agreement, seed_distance, total_variation
from qgmil.bags.bag import Bag
from qgmil.errors import ConfigError, MetricError

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
        assert 0 <= removal.same_class <= 1
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
