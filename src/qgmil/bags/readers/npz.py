"""NumPy ``.npz``: ``features`` (or the only array), and ``coords``, ``instance_labels``, ``instance_ids`` if any."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from qgmil.bags.readers import npy
from qgmil.bags.readers.base import BagFile, as_coords, as_features, as_instance_labels, check_zip, choose
from qgmil.errors import ReadError

NAME = "npz"
SUFFIXES = (".npz",)
EXTRAS = ("coords", "instance_labels", "instance_ids")


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read the archive; the unit of the coordinates is unknown."""
    members = _members(path)
    with zipfile.ZipFile(path) as archive:
        name = _choose(path, members, dataset)
        features = as_features(path, _load(path, archive, members[name]))
        extras = {k: _load(path, archive, members[k]) for k in EXTRAS if k in members and k != name}
    rows = features.shape[0]
    coords, labels, ids = (extras.get(k) for k in EXTRAS)
    if ids is not None and (ids.dtype.kind not in "US" or ids.shape != (rows,)):
        raise ReadError(f"{path}: instance_ids are {ids.dtype} of shape {ids.shape}; expected {rows} texts")
    return BagFile(
        features,
        coords=None if coords is None else as_coords(path, coords, rows),
        instance_labels=None if labels is None else as_instance_labels(path, labels, rows),
        instance_ids=None if ids is None else tuple(str(i) for i in ids.astype(str)),
    )


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """The declared shape, from the member's header alone."""
    members = _members(path)
    member = members[_choose(path, members, dataset)]
    with zipfile.ZipFile(path) as archive, archive.open(member) as handle:
        return npy.header(path, handle, member.file_size)[0]


def read_array(path: Path, name: str) -> np.ndarray:
    """One array of an archive.

    Raises:
        ReadError: it is not there (the others are listed), or not plain numbers.
    """
    members = _members(path)
    with zipfile.ZipFile(path) as archive:
        return _load(path, archive, members[choose(path, members, name)])


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    return {m.filename.removesuffix(".npy"): m for m in check_zip(path) if m.filename.endswith(".npy")}


def _choose(path: Path, members: dict[str, zipfile.ZipInfo], dataset: str | None) -> str:
    return choose(path, members, dataset, sole=[m for m in members if m not in EXTRAS])


def _load(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as handle:  # zipfile never yields more than the declared file_size
        strings = member.filename == "instance_ids.npy"
        return npy.read_stream(path, handle, member.file_size, strings)
