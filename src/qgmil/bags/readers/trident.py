"""TRIDENT feature files: ``features`` (N, D) and ``coords`` (N, 2) in level-0 pixels with the tile size beside them."""

from __future__ import annotations

from pathlib import Path

import h5py

from qgmil.bags import hints
from qgmil.bags.readers import stamp
from qgmil.bags.readers.base import BagFile, as_coords, as_features, positive
from qgmil.bags.readers.h5 import SUFFIXES as SUFFIXES
from qgmil.bags.readers.h5 import features_of, find, instance_columns, open_h5, own_dataset, read_array
from qgmil.bags.readers.h5 import shape as shape
from qgmil.bags.readers.h5_attributes import number
from qgmil.errors import ReadError

NAME = "trident"
TILED = ("patch_size", "patch_size_level0")
STAMPED = ("tile_size_um", "unit")  # of the file


def recognises(path: Path, file: h5py.File | None) -> bool:
    """Whether ``coords`` carries the attributes that TRIDENT writes."""
    coords = None if file is None else own_dataset(file, "coords")
    if coords is None:
        return False
    has = coords.attrs.__contains__
    return has("patch_size_level0") or (has("patch_size") and has("target_magnification"))


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read features and coordinates, with the tile size in level-0 pixels where the file knows it.

    Raises:
        ReadError: no coordinates, attributes that are not numbers, or the signs of a layout with other coordinates.
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
            coord_unit=unit(path, file, coords),
            tile_size=tile_size(path, coords),
            mpp=positive(path, "mpp", number(path, coords, "level0_mpp") or number(path, coords, "mpp")),
            magnification=positive(path, "target_magnification", number(path, coords, "target_magnification")),
            instance_labels=labels,
            instance_ids=ids,
        )


def unit(path: Path, file: h5py.File, coords: h5py.Dataset) -> str | None:
    """ "px" for the coordinates of a file that is said to be of a layout which counts level-0 pixels.

    None where it does not look like it: fractions, or another name for the features.

    Raises:
        ReadError: the file bears the signs of STAMP, whose coordinates are microns.
    """
    if any(name in coords.attrs for name in TILED):
        return "px"
    if stamp.recognises(path, file) or any(name in file.attrs for name in STAMPED):
        raise ReadError(
            f"{path}: looks like a file of STAMP, whose coordinates are not level-0 pixels; say "
            f"{hints.option('format', stamp.NAME)}, or leave the format out"
        )
    odd = coords.dtype.kind == "f" or own_dataset(file, *stamp.FEATURES) is not None
    return None if odd else "px"


def tile_size(path: Path, coords: h5py.Dataset) -> float | None:
    """Edge of a tile in level-0 pixels, where the attributes of the coordinates tell it."""
    return positive(path, "patch_size_level0", _tile_size(path, coords))


def _tile_size(path: Path, coords: h5py.Dataset) -> float | None:
    at_level0 = number(path, coords, "patch_size_level0")
    if at_level0 is not None:
        return at_level0
    names = ("patch_size", "level0_magnification", "target_magnification")
    size, level0, target = (number(path, coords, name) for name in names)
    return size * level0 / target if size and level0 and target else None
