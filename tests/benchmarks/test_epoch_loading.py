"""The epoch script says rightly who waits, and what a pass of prediction is spent on."""

from __future__ import annotations

import time
from pathlib import Path

import h5py
import numpy as np
import torch
from epoch import Loop, Source, forget, untrained_run, watched

from qgmil import Bag
from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.bags.source import Item
from qgmil.training.members import predict_run


def _bags(number: int = 6) -> list[Bag]:
    return [Bag(torch.randn(4 + i, 10), label="ab"[i % 2], bag_id=f"bag {i}") for i in range(number)]


class Slow(BagDataset):
    """Takes 30 ms to read a bag."""

    def _checked(self, item: Item) -> Bag:
        time.sleep(0.03)
        return super()._checked(item)


def _loop(bags: BagDataset) -> Loop:
    return Loop(bags, "abmil", "cpu", "32-true", batch_size=2, sample=None)


def test_waiting_is_the_time_of_slow_bags() -> None:
    quick, slow = BagDataset.from_bags(_bags()), Slow(_bags())
    loop = _loop(quick)
    loop.epoch(Source("memory", lambda: quick, 0))
    total, waited = loop.epoch(Source("memory", lambda: quick, 0))
    assert 0 < waited < total
    slow_total, slow_waited = loop.epoch(Source("slow", lambda: slow, 0))
    assert 6 * 0.03 <= slow_waited < slow_total


def test_an_epoch_trains_on_every_bag() -> None:
    bags = BagDataset.from_bags(_bags())
    loop, seen = _loop(bags), []
    loop.model.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].bag_ids))
    before = [p.detach().clone() for p in loop.model.parameters()]
    loop.epoch(Source("memory", lambda: bags, 0))
    assert sorted(seen) == [f"bag {i}" for i in range(6)]
    assert all(not torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))


def test_prediction_is_split_into_models_and_reading() -> None:
    bags = Slow(_bags(3))
    with watched("cpu") as spent:
        rows = predict_run(untrained_run(bags, 2), bags, batch_size=2, device="cpu", precision="32")
    assert [row["bag_id"] for row in rows] == ["bag 0", "bag 1", "bag 2"]
    assert spent["reads"] >= 3 and spent["reading"] >= 0.03 * spent["reads"] and spent["models"] > 0
    assert BagDataset.__getitem__.__name__ == "__getitem__"  # all is as it was


def test_forgotten_files_are_still_there(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.ones((3, 10), dtype=np.float32)
    (tmp_path / "bags.csv").write_text("bag_id,label,features\na,x,a.h5\n")
    bags = open_bags(tmp_path / "bags.csv")
    forget(bags)
    assert bags[0].features.tolist() == [[1.0] * 10] * 3
