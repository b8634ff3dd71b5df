"""A bag that `qgmil datasets` writes is read as it was."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.datasets import NamedDataset, dataset_info
from qgmil.datasets.export import export
from qgmil.errors import ReadError

FACTS = ("coord_unit", "tile_size", "mpp", "magnification", "tile_mpp")


def written(folder: Path, bags: list[Bag]) -> Path:
    dataset = NamedDataset(dataset_info("glas"), BagDataset(bags), lambda: (), folder)
    return export(dataset, folder / "bags.csv")


@pytest.mark.parametrize(
    "facts",
    [
        ("px", 512.0, 0.25, 20.0, 0.5),
        ("um", 256.0, None, None, 1.25),
        ("grid", 1.0, 0.5, None, None),
        (None, None, None, 40.0, None),
    ],
)
def test_units_and_tiles_survive(tmp_path: Path, facts: tuple[object, ...]) -> None:
    coords = torch.arange(6).reshape(3, 2)
    coords = coords + 0.5 if facts[0] == "um" else coords
    known = dict(zip(FACTS, facts, strict=True))
    labels = torch.tensor([1, 0, 1])
    bags = [
        Bag(
            torch.full((3, 4), float(i)),
            "ab"[i],
            f"b{i}",
            f"p{i}",
            coords,
            instance_labels=labels,
            instance_ids=("x", "y", "zéta"),
            **known,  # type: ignore[arg-type]
        )
        for i in range(2)
    ]
    again = open_bags(written(tmp_path, bags))
    for i, bag in enumerate(bags):
        read = again[i]
        assert {name: getattr(read, name) for name in FACTS} == known
        assert read.coords is not None and read.instance_labels is not None
        assert torch.equal(read.coords, coords.double() if coords.is_floating_point() else coords)
        assert torch.equal(read.features, bag.features) and torch.equal(read.instance_labels, labels)
        assert (read.bag_id, read.label, read.patient_id) == (bag.bag_id, bag.label, bag.patient_id)
        assert tuple(read.instance_ids or ()) == ("x", "y", "zéta")


def test_tiles_are_known_without_coordinates(tmp_path: Path) -> None:
    bags = [Bag(torch.ones(2, 3), "ab"[i], f"b{i}", tile_size=512.0, mpp=0.25) for i in range(2)]
    read = open_bags(written(tmp_path, bags))[0]
    assert (read.coords, read.coord_unit, read.tile_size, read.mpp) == (None, None, 512.0, 0.25)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("coord_unit", np.bytes_("miles"), "coord_unit is 'miles'; it must be one of 'px', 'um', 'grid'"),
        ("mpp", -1.0, "mpp is -1.0; expected a positive number"),
    ],
)
def test_facts_that_cannot_be_are_refused(tmp_path: Path, name: str, value: object, text: str) -> None:
    manifest = written(tmp_path, [Bag(torch.ones(2, 3), "ab"[i], f"b{i}") for i in range(2)])
    with h5py.File(tmp_path / "bags_features" / "b0.h5", "a") as file:
        file["features"].attrs[name] = value
    with pytest.raises(ReadError, match=rf"b0\.h5: {text}"):
        open_bags(manifest)[0]
