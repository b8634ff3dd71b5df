"""Scores of a file in the order of the bag: by name, by row, by place; and those that are not the bag's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qgmil.attention.given import GivenScores
from qgmil.bags.bag import Bag
from qgmil.errors import BagError

N = 6
PLACES = [[0, 0], [0, 256], [256, 0], [512, 256], [512, 0], [768, 768]]
MOVED = [*PLACES[:3], [513, 256], *PLACES[4:]]


def bag(**facts: object) -> Bag:
    return Bag(torch.zeros(N, 2), bag_id="b", **facts)  # type: ignore[arg-type]


def scores(n: int = N, **facts: object) -> GivenScores:
    return GivenScores("b", np.arange(n, dtype=np.float64), Path("s.h5"), **facts)  # type: ignore[arg-type]


@given(st.permutations(range(N)))
def test_any_order_comes_back_to_the_bags(order: list[int]) -> None:
    """Score i belongs to row i of the bag; the file has them in another order."""
    truth = np.arange(N, dtype=np.float64)
    shuffled: dict[str, Any] = {"values": truth[order], "bag_id": "b", "path": Path("s.h5")}
    by_row = GivenScores(**shuffled, instances=tuple(str(i) for i in order))
    np.testing.assert_array_equal(by_row.of(bag()), truth)
    names = [f"cell{i}" for i in range(N)]
    by_name = GivenScores(**shuffled, instances=tuple(names[i] for i in order))
    np.testing.assert_array_equal(by_name.of(bag(instance_ids=names)), truth)
    by_place = GivenScores(**shuffled, coords=np.array(PLACES, dtype=np.float64)[order])
    for kind in (torch.int64, torch.float32):
        one = bag(coords=torch.tensor(PLACES, dtype=kind), coord_unit="px", tile_size=256.0)
        np.testing.assert_array_equal(by_place.of(one), truth)


def test_nothing_said_is_the_order_of_the_bag() -> None:
    np.testing.assert_array_equal(scores().of(bag()), np.arange(N))
    np.testing.assert_array_equal(scores(coords=np.array(PLACES) * 1.0).of(bag()), np.arange(N))
    np.testing.assert_array_equal(scores().of(bag(coords=torch.tensor(PLACES), coord_unit="px")), np.arange(N))


def test_names_that_look_like_rows_are_names() -> None:
    """The ids of the bag are numbers, in another order than its rows."""
    ids = ["5", "4", "3", "2", "1", "0"]
    found = scores(instances=("0", "1", "2", "3", "4", "5")).of(bag(instance_ids=ids))
    np.testing.assert_array_equal(found, [5, 4, 3, 2, 1, 0])


def test_places_of_another_unit_are_not_compared() -> None:
    one = bag(coords=torch.tensor(PLACES) // 256, coord_unit="grid")
    np.testing.assert_array_equal(scores(coords=np.array(PLACES) * 1.0).of(one), np.arange(N))


def test_equal_places_in_the_same_order_are_fine_and_in_another_are_not() -> None:
    twice = torch.tensor([[0, 0], [0, 0], [1, 0], [2, 0], [3, 0], [4, 0]])
    one = bag(coords=twice, coord_unit="px")
    np.testing.assert_array_equal(scores(coords=twice.double().numpy()).of(one), np.arange(N))
    with pytest.raises(BagError, match="another order than the bag, and several instances have the same"):
        scores(coords=twice.flip(0).double().numpy()).of(one)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"n": 5}, r"s\.h5: bag 'b' has 5 scores but 6 instances"),
        ({"instances": ("0", "1", "2", "3", "4", "4")}, r"bag 'b' has instance '4' twice"),
        ({"instances": ("1", "2", "3", "4", "5", "6")}, r"instance '6' is not one of the bag's.*rows, 0 to 5"),
        ({"instances": ("c0", "c1", "c2", "c3", "c4", "1")}, r"instance 'c0' is not one of the bag's"),
        (
            {"coords": np.array(MOVED, dtype=np.float64)},
            r"not those of the bag \(instance 3: \[513\.0, 256\.0\], in the manifest's file \[512\.0, 256\.0\]\)",
        ),
    ],
)
def test_scores_of_other_instances_are_refused(facts: dict, message: str) -> None:
    one = bag(coords=torch.tensor(PLACES), coord_unit="px")
    with pytest.raises(BagError, match=message):
        scores(**facts).of(one)
