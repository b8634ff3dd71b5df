"""CLAM: ``h5_files/<slide>.h5`` or ``pt_files/<slide>.pt``, with the tile size in ``patches/<slide>.h5``.

A .pt holds features alone; its rows are those of the .h5 of the same stem. Looked for, in this order:

- coordinates of a .pt: ``../h5_files/<stem>.h5``, else the patches;
- patches: ``../patches/<stem>.h5`` (in the folder of features), ``../../patches/<stem>.h5`` (beside it).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
from torch import Tensor

from qgmil.bags.readers import h5, pt, slideflow
from qgmil.bags.readers.base import BagFile, as_coords, guarded, positive
from qgmil.bags.readers.h5 import find, open_h5, own_dataset, read_array
from qgmil.bags.readers.h5_attributes import number, numbers
from qgmil.bags.readers.siblings import beside, is_beside
from qgmil.errors import ReadError

NAME = "clam"
SUFFIXES = (*h5.SUFFIXES, *pt.SUFFIXES)
FEATURES = ((1, "h5_files"),)
PATCHES = ((1, "patches"), (2, "patches"))
TILED = frozenset({"patch_size", "patch_size_level0"})  # coords that say this of themselves are of another layout


def recognises(path: Path, file: h5py.File | None) -> bool:
    """Whether it lies in CLAM's folders (or its patches do) and says no more than CLAM's files do."""
    if file is None:
        folder, clam = "pt_files", not slideflow.recognises(path, None)
    else:
        coords = own_dataset(file, "coords")
        clam = coords is not None and own_dataset(file, "features") is not None and not TILED & set(coords.attrs)
        folder = "h5_files"
    return clam and (path.parent.name == folder or is_beside(path, PATCHES, f"{path.stem}.h5"))


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read the features, with coordinates in level-0 pixels and the tile size where they can be found.

    Raises:
        ReadError: the rows of the coordinates are not those of the features, or a file beside it cannot be used.
    """
    patches = beside(path, PATCHES, f"{path.stem}.h5")
    if path.suffix.lower() in h5.SUFFIXES:
        bag = h5.read(path, dataset)
    else:
        bag = pt.read(path, dataset)
        if bag.coords is None:
            rows = bag.features.shape[0]
            bag = replace(bag, coords=_coords(path, (beside(path, FEATURES, f"{path.stem}.h5"), patches), rows))
    return replace(
        bag,
        coord_unit=None if bag.coords is None else "px",
        tile_size=None if patches is None else _tile_size(patches),
    )


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """The shape of the features."""
    return h5.shape(path, dataset) if path.suffix.lower() in h5.SUFFIXES else pt.shape(path, dataset)


def _coords(path: Path, sources: tuple[Path | None, ...], rows: int) -> Tensor | None:
    """The coordinates of the first file that has any."""
    for source in sources:
        if source is None:
            continue
        with open_h5(source) as file:
            found = find(source, file, "coords")
            if found is None:
                continue
            array = read_array(source, found)
        if len(array) != rows:
            raise ReadError(
                f"{path}: has {rows} instances but {source} has {len(array)} coordinates; they are not of one run of "
                "the extraction, make both again"
            )
        return as_coords(source, array, rows)
    return None


def _tile_size(patches: Path) -> float | None:
    """Edge in level-0 pixels: that in pixels of the level, times how far the level is downsampled."""
    with guarded(patches, NAME), open_h5(patches) as file:
        coords = find(patches, file, "coords")
        if coords is None:
            return None
        size, downsample = number(patches, coords, "patch_size"), numbers(coords, "downsample", 2)
        level = number(patches, coords, "patch_level")
    if downsample is None and level == 0:
        downsample = (1.0,)
    if size is None or downsample is None:
        return None
    return positive(patches, "patch_size * downsample", size * downsample[0])
