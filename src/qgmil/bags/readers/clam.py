"""CLAM: ``h5_files/<slide>.h5`` or ``pt_files/<slide>.pt``, with the tile size in ``patches/<slide>.h5``.

A .pt holds features alone; its rows are those of the .h5 of the same stem. Looked for, in this order:

- coordinates of a .pt: ``../h5_files/<stem>.h5``, else the patches;
- patches: ``../patches/<stem>.h5`` (in the folder of features), ``../../patches/<stem>.h5`` (beside it); of a file in
  ``h5_files`` or ``pt_files`` also ``../../*/patches/<stem>.h5`` (CLAM's results beside the features), if exactly one
  of those folders has it and its coordinates are those of the features (of a bare .pt: as many).
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import h5py
from torch import Tensor

from qgmil.bags.readers import h5, pt, slideflow, trident
from qgmil.bags.readers.base import BagFile, as_coords, guarded, positive
from qgmil.bags.readers.h5 import find, open_h5, own_dataset, read_array
from qgmil.bags.readers.h5_attributes import number, numbers
from qgmil.bags.readers.siblings import Place, beside, is_beside
from qgmil.errors import ReadError

NAME = "clam"
SUFFIXES = (*h5.SUFFIXES, *pt.SUFFIXES)
FEATURES = ((1, "h5_files"),)
PATCHES = ((1, "patches"), (2, "patches"))
FOLDERS = ("h5_files", "pt_files")
MOST_ENTRIES = 1000  # beside the folder of features: among more nothing is looked for
TILED = frozenset({"patch_size", "patch_size_level0"})  # coords that say this of themselves are of another layout


def recognises(path: Path, file: h5py.File | None) -> bool:
    """Whether it lies in CLAM's folders (or its patches do) and says no more than CLAM's files do."""
    if file is None:
        folder, clam = "pt_files", not slideflow.recognises(path, None)
    else:
        coords = own_dataset(file, "coords")
        tiled = coords is None or any(name in coords.attrs for name in TILED)
        clam = not tiled and own_dataset(file, "features") is not None
        folder = "h5_files"
    return clam and (path.parent.name == folder or is_beside(path, PATCHES, f"{path.stem}.h5"))


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read the features, with coordinates in level-0 pixels and the tile size where they can be found.

    Raises:
        ReadError: the rows of the coordinates are not those of the features, they bear the signs of a layout with
            other coordinates, or a file beside it cannot be used.
    """
    patches = beside(path, PATCHES, f"{path.stem}.h5")
    if path.suffix.lower() in h5.SUFFIXES:
        bag = h5.read(path, dataset)
    else:
        bag = pt.read(path, dataset)
        if bag.coords is None:
            rows = bag.features.shape[0]
            bag = replace(bag, coords=_coords(path, (beside(path, FEATURES, f"{path.stem}.h5"), patches), rows))
    if patches is None and (far := _far_patches(path)) is not None:
        coords = _coords_like(far, bag)
        if coords is not None:
            bag, patches = replace(bag, coords=coords), far
    unit, size = _own_facts(path, bag)
    return replace(bag, coord_unit=unit, tile_size=size if patches is None else tile_size(patches))


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """The shape of the features."""
    return h5.shape(path, dataset) if path.suffix.lower() in h5.SUFFIXES else pt.shape(path, dataset)


def has_patches(path: Path) -> bool:
    """Whether there is a file of patches in one of the places, be it one that can be used or not."""
    return is_beside(path, PATCHES, f"{path.stem}.h5") or bool(_far_places(path))


def _far_patches(path: Path) -> Path | None:
    places = _far_places(path)
    try:
        return beside(path, places, f"{path.stem}.h5") if len(places) == 1 else None
    except ReadError:  # a link, or unfinished
        return None


def _far_places(path: Path) -> list[Place]:
    """Where in the folders beside that of the features there are patches of this slide; no link is followed."""
    above = path.absolute().parents
    if path.parent.name not in FOLDERS or len(above) < 4:  # not in the folders of the root
        return []
    try:
        with os.scandir(above[2]) as entries:
            some = list(islice(entries, MOST_ENTRIES + 1))
    except OSError:  # the features are there all the same
        return []
    folders = sorted(e.name for e in some if e.name != above[1].name and e.is_dir(follow_symlinks=False))
    places = [(2, f"{name}/patches") for name in folders if len(some) <= MOST_ENTRIES]
    return [place for place in places if is_beside(path, (place,), f"{path.stem}.h5")]


def _coords_like(patches: Path, bag: BagFile) -> Tensor | None:
    """Coordinates from beside, unless they are of another run and say nothing of this bag."""
    try:
        coords = _coords(patches, (patches,), bag.features.shape[0])
    except ReadError:
        return None
    same = coords is not None and (bag.coords is None or bool((coords == bag.coords).all()))
    return coords if same else None


def _own_facts(path: Path, bag: BagFile) -> tuple[str | None, float | None]:
    """Unit and tile size as far as the coordinates themselves tell: fractions are no pixels."""
    if path.suffix.lower() in h5.SUFFIXES:
        with open_h5(path) as file:
            coords = find(path, file, "coords")
            if coords is not None:
                return trident.unit(path, file, coords), trident.tile_size(path, coords)
    whole = bag.coords is not None and not bag.coords.is_floating_point()
    return "px" if whole else None, None


def _coords(path: Path, sources: tuple[Path | None, ...], rows: int) -> Tensor | None:
    """The coordinates of the first file that has any."""
    for source in sources:
        if source is None:
            continue
        with open_h5(source) as file:
            found = find(source, file, "coords")
            if found is None:
                continue
            trident.unit(source, file, found)  # which refuses what counts in microns
            array = read_array(source, found)
        if len(array) != rows:
            raise ReadError(
                f"{path}: has {rows} instances but {source} has {len(array)} coordinates; they are not of one run of "
                "the extraction, make both again"
            )
        return as_coords(source, array, rows)
    return None


def tile_size(patches: Path) -> float | None:
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
