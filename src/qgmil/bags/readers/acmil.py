"""ACMIL: one h5 for a whole data set, one group a slide with ``feat``, ``coords`` and the attribute ``label``.

A cell of a manifest names a slide as ``file.h5::slide``. Coordinates are level-0 pixels; the tile size is not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py

from qgmil.bags.readers.base import BagFile, as_coords, as_features, listing
from qgmil.bags.readers.h5 import SUFFIXES as SUFFIXES
from qgmil.bags.readers.h5 import find, names, open_h5, own, own_dataset, raw_shape, read_array
from qgmil.bags.readers.h5_attributes import number, text
from qgmil.errors import ReadError

NAME = "acmil"
MAX_SLIDES = 100_000
MAX_OTHERS = 100  # groups that are no slides
LISTED = 200
LOOKED_AT = 8  # names at the root, to recognise the layout: all are slides


def recognises(path: Path, file: h5py.File | None) -> bool:
    """Whether the groups at the root hold ``feat``."""
    return file is not None and own_dataset(file, "features", "feats") is None and any(_slides(file, LOOKED_AT))


def parts(path: Path) -> dict[str, str | None]:
    """The slides of the file, each with its label as text (None where it has none)."""
    with open_h5(path) as file:
        if len(file) > MAX_SLIDES:
            raise ReadError(f"{path}: has {len(file):,} groups, more than any data set has slides; divide the file")
        return {name: _label(path, group) for name, group in _slides(file, MAX_SLIDES)}


def label(path: Path, dataset: str | None = None) -> str | None:
    """The label of the slide called `dataset`, or of the only one."""
    with open_h5(path) as file:
        return _label(path, file[_choose(path, file, dataset)])


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read the slide called `dataset`, or the only one.

    Raises:
        ReadError: there are several, or none of that name (they are listed).
    """
    with open_h5(path) as file:
        name = _choose(path, file, dataset)
        where = Path(f"{path}::{name}")
        features = as_features(where, read_array(path, _features(path, file, name)))
        coords = find(path, file, f"{name}/coords")
        return BagFile(
            features,
            coords=None if coords is None else as_coords(where, read_array(path, coords), features.shape[0]),
            coord_unit=None if coords is None else "px",
        )


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """The shape of the features, without reading them."""
    with open_h5(path) as file:
        return raw_shape(path, _features(path, file, _choose(path, file, dataset)))


def _slides(file: h5py.File, most: int) -> Iterator[tuple[str, h5py.Group]]:
    others = 0
    for name in names(file, most):
        group = own(file, name)
        if isinstance(group, h5py.Group) and own_dataset(group, "feat") is not None:
            yield name, group
            continue
        others += 1
        if others > MAX_OTHERS:
            return


def _choose(path: Path, file: h5py.File, dataset: str | None) -> str:
    if dataset is not None:
        if isinstance(own(file, dataset), h5py.Group):
            return dataset
        have = [name for name, _ in _slides(file, LISTED)]
        raise ReadError(f"{path}: has no slide {dataset!r}; it has {listing(have)}")
    have = [name for name, _ in _slides(file, LISTED)]
    if len(have) != 1:
        raise ReadError(
            f"{path}: holds {'several slides' if have else 'no slide'} ({listing(have)}); name one behind the file, as "
            f"{path.name}::{have[0] if have else 'slide'}"
        )
    return have[0]


def _features(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    found = find(path, file, f"{name}/feat")
    if found is None:
        raise ReadError(f"{path}: {name!r} has no data set 'feat', so it is no slide; name another, or make it again")
    return found


def _label(path: Path, group: h5py.Group) -> str | None:
    value = number(path, group, "label")
    if value is None:
        return text(path, group, "label")
    return str(int(value)) if value.is_integer() else str(value)
