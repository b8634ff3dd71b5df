"""PathForge: one h5 a slide with several bags, ``bags/<px>px_<mpp>mpp/{coords, features/<extractor>}``.

A bag is named ``<px>px_<mpp>mpp/<extractor>``, or by as much of it as only one has. ``<mpp>`` is the resolution of
the tiles, not of level 0. ``coords`` are (x, y, width, height, level): where all tiles are of level 0, x and y are
level-0 pixels and the width is the tile size; what they count on another level the file does not say, so the unit is
then unknown.
"""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np

from qgmil.bags import hints
from qgmil.bags.readers.base import BagFile, as_coords, as_features, listing, positive
from qgmil.bags.readers.h5 import MAX_OBJECTS, find, names, open_h5, own, own_dataset, raw_shape, read_array
from qgmil.bags.readers.h5 import SUFFIXES as SUFFIXES
from qgmil.errors import ReadError

NAME = "pathforge"
TILING = re.compile(r"([0-9]{1,9})px_([0-9]{1,9}(?:\.[0-9]{1,9})?)mpp")
COLUMNS = 5  # x, y, width, height, level


def recognises(path: Path, file: h5py.File | None) -> bool:
    """Whether ``bags`` holds groups with the names of tilings."""
    return file is not None and own_dataset(file, "features") is None and bool(_tilings(file))


def parts(path: Path) -> dict[str, str | None]:
    """The bags of the file, ``<px>px_<mpp>mpp/<extractor>``. It holds no labels."""
    with open_h5(path) as file:
        return dict.fromkeys(_bags(file))


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read the bag called `dataset`, or the only one.

    Raises:
        ReadError: there are several (they are listed), none of that name, or coordinates that do not fit.
    """
    with open_h5(path) as file:
        tiling, features = _choose(path, file, dataset)
        tensor = as_features(Path(f"{path}::{tiling}"), read_array(path, features))
        rows = tensor.shape[0]
        found = find(path, file, f"bags/{tiling}/coords")
        coords = None if found is None else read_array(path, found)
    mpp = TILING.fullmatch(tiling)
    tile_mpp = positive(path, "the resolution of the tiles", float(mpp.group(2)) if mpp else None)
    if coords is None:
        return BagFile(tensor, tile_mpp=tile_mpp)
    if coords.shape != (rows, COLUMNS) or coords.dtype.kind not in "iu":
        raise ReadError(
            f"{path}: coords of {tiling} are {coords.dtype} of shape {coords.shape} for {rows} instances; expected "
            "whole numbers x, y, width, height, level for each"
        )
    unit, size = _unit_and_size(coords)
    return BagFile(
        tensor,
        coords=as_coords(path, coords[:, :2], rows),
        coord_unit=unit,
        tile_size=positive(path, f"the width of the tiles of {tiling}", size),
        tile_mpp=tile_mpp,
    )


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """The shape of the features, without reading them."""
    with open_h5(path) as file:
        return raw_shape(path, _choose(path, file, dataset)[1])


def _unit_and_size(coords: np.ndarray) -> tuple[str | None, float | None]:
    if (coords[:, 4] != 0).any():
        return None, None
    sizes = np.unique(coords[:, 2:4])
    return "px", float(sizes[0]) if len(sizes) == 1 else None


def _tilings(file: h5py.File) -> list[str]:
    group = own(file, "bags")
    if not isinstance(group, h5py.Group):
        return []
    return [name for name in names(group, MAX_OBJECTS) if TILING.fullmatch(name)]


def _bags(file: h5py.File) -> list[str]:
    found = []
    for tiling in _tilings(file):
        group = own(file, f"bags/{tiling}/features")
        if isinstance(group, h5py.Group):
            found += [f"{tiling}/{name}" for name in names(group, MAX_OBJECTS)]
    return found


def _choose(path: Path, file: h5py.File, dataset: str | None) -> tuple[str, h5py.Dataset]:
    """The tiling and the features of the bag that is meant."""
    have = _bags(file)
    wanted = have if dataset is None else [n for n in have if n == dataset] or _alike(have, dataset)
    if len(wanted) != 1:
        if not have:
            problem = "it has no bags (bags/<px>px_<mpp>mpp/features/<extractor>)"
        elif dataset is None or wanted:
            problem = f"it has the bags {listing(wanted)}: name one with {hints.option('dataset', wanted[0])}"
        else:
            problem = f"it has no bag {dataset!r}; it has {listing(have)}"
        raise ReadError(f"{path}: {problem}")
    tiling, _, extractor = wanted[0].partition("/")
    found = find(path, file, f"bags/{tiling}/features/{extractor}")
    if found is None:
        raise ReadError(f"{path}: the features {wanted[0]!r} lead nowhere; make the file again")
    return tiling, found


def _alike(have: list[str], dataset: str) -> list[str]:
    """Bags of this tiling, of this extractor, or at this path in the file."""
    return [
        name
        for name in have
        if dataset in name.split("/") or dataset.strip("/") == "bags/" + name.replace("/", "/features/", 1)
    ]
