"""TRIDENT feature files: ``features`` (N, D) and ``coords`` (N, 2) in level-0 pixels with the tile size beside them."""

from __future__ import annotations

from pathlib import Path

import h5py

from qgmil.bags import hints
from qgmil.bags.readers.base import BagFile, as_coords, as_features, positive
from qgmil.bags.readers.h5 import SUFFIXES as SUFFIXES
from qgmil.bags.readers.h5 import features_of, find, instance_columns, open_h5, own_dataset, read_array
from qgmil.bags.readers.h5 import shape as shape
from qgmil.bags.readers.h5_attributes import number
from qgmil.errors import ReadError

NAME = "trident"


def recognises(path: Path, file: h5py.File | None) -> bool:
    """Whether ``coords`` carries the attributes that TRIDENT writes."""
    coords = None if file is None else own_dataset(file, "coords")
    if coords is None:
        return False
    return "patch_size_level0" in coords.attrs or {"patch_size", "target_magnification"} <= set(coords.attrs)


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read features and coordinates, with the tile size in level-0 pixels where the file knows it.

    Raises:
        ReadError: no coordinates, or attributes that are not numbers.
    """
    with open_h5(path) as file:
        features = as_features(path, read_array(path, features_of(path, file, dataset)))
        coords = find(path, file, "coords")
        if coords is None:
            raise ReadError(
                f"{path}: has no coords, so it is not a TRIDENT file; read it with {hints.option('format', 'h5')}"
            )
        labels, ids = instance_columns(path, file, features.shape[0])
        return BagFile(
            features,
            coords=as_coords(path, read_array(path, coords), features.shape[0]),
            coord_unit="px",
            tile_size=positive(path, "patch_size_level0", _tile_size(path, coords)),
            mpp=positive(path, "mpp", number(path, coords, "level0_mpp") or number(path, coords, "mpp")),
            magnification=positive(path, "target_magnification", number(path, coords, "target_magnification")),
            instance_labels=labels,
            instance_ids=ids,
        )


def _tile_size(path: Path, coords: h5py.Dataset) -> float | None:
    at_level0 = number(path, coords, "patch_size_level0")
    if at_level0 is not None:
        return at_level0
    names = ("patch_size", "level0_magnification", "target_magnification")
    size, level0, target = (number(path, coords, name) for name in names)
    return size * level0 / target if size and level0 and target else None
