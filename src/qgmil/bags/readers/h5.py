"""HDF5 with a data set of features, and the guard that every HDF5 reader goes through.

An HDF5 file can point at other files (external links, external storage, virtual data sets) and can declare any
size. Nothing here follows a pointer out of the file, and nothing is allocated before the declared size is believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from qgmil.bags import hints
from qgmil.bags.readers.base import (
    FEATURE_NAMES,
    BagFile,
    as_coords,
    as_features,
    as_instance_labels,
    check_expansion,
    choose,
    guarded,
    listing,
)
from qgmil.bags.readers.h5_text import read_texts
from qgmil.errors import ReadError

NAME = "h5"
SUFFIXES = (".h5", ".hdf5")
EXTRAS = ("coords", "instance_labels", "instance_ids")
MAX_OBJECTS = 10_000  # a feature file has a handful
MAX_SOFT_LINKS = 8


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read features and what lies beside them; the unit of the coordinates is unknown.

    Without `dataset`: ``features``, else ``feats``, else the only two-dimensional floating-point data set.
    """
    with open_h5(path) as file:
        features = as_features(path, read_array(path, features_of(path, file, dataset)))
        coords = find(path, file, "coords")
        labels, ids = instance_columns(path, file, features.shape[0])
        return BagFile(
            features,
            coords=None if coords is None else as_coords(path, read_array(path, coords), features.shape[0]),
            instance_labels=labels,
            instance_ids=ids,
        )


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """The shape of the features, without reading them."""
    with open_h5(path) as file:
        return raw_shape(path, features_of(path, file, dataset))


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Open read-only and close always; whatever h5py raises inside becomes a `ReadError` naming the file."""
    with guarded(path, "HDF5"), h5py.File(path, "r", locking="best-effort") as file:
        yield file


def find(path: Path, file: h5py.File, name: str) -> h5py.Dataset | None:
    """The data set of that name in this very file, or None.

    Raises:
        ReadError: the name leads out of the file, or to something that is no data set.
    """
    found = _resolve(path, file, file, name, MAX_SOFT_LINKS)
    if found is not None and not isinstance(found, h5py.Dataset):
        inside = [f"{name}/{n}" for n in found] if isinstance(found, h5py.Group) else []
        raise ReadError(f"{path}: {name!r} is a group, not a data set; it has {listing(inside)}")
    return found


def own(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """What a group holds under a name in this very file, or None: for questions that must not fail on other names."""
    try:
        found = _resolve(Path(), group.file, group, name, MAX_SOFT_LINKS)
    except ReadError:
        return None
    return found if isinstance(found, h5py.Group | h5py.Dataset) else None


def own_dataset(group: h5py.Group, *names: str) -> h5py.Dataset | None:
    """The first of the names under which a group itself holds a data set."""
    return next((found for name in names if isinstance(found := own(group, name), h5py.Dataset)), None)


def raw_shape(path: Path, dset: h5py.Dataset) -> tuple[int, ...]:
    """The shape of a data set, once it is believed."""
    check_storage(path, dset)
    return dset.shape if dset.shape is not None else (0,)


def _resolve(
    path: Path, file: h5py.File, start: h5py.Group, name: str, hops: int
) -> h5py.Group | h5py.Dataset | h5py.Datatype | None:
    """Follow a name link by link. Only the low-level calls look at a link without opening what it leads to."""
    here = file if name.startswith("/") else start
    for part in name.strip("/").split("/"):
        if not isinstance(here, h5py.Group) or not here.id.links.exists(part.encode()):
            return None
        kind = here.id.links.get_info(part.encode()).type
        if kind == h5py.h5l.TYPE_HARD:
            here = here[part]
        elif kind == h5py.h5l.TYPE_SOFT:
            if hops == 0:
                raise ReadError(f"{path}: {name!r} is a chain or a circle of links; copy the data into its place")
            here = _resolve(path, file, here, here.id.links.get_val(part.encode()).decode(), hops - 1)
        else:
            raise ReadError(
                f"{path}: {name!r} is a link to another file; links out of the file are not followed, "
                "copy the data into it"
            )
    return here


def features_of(path: Path, file: h5py.File, dataset: str | None) -> h5py.Dataset:
    """The data set that holds the features.

    Raises:
        ReadError: none, or several that could be meant (all are listed).
    """
    for name in (dataset,) if dataset is not None else FEATURE_NAMES:
        found = find(path, file, name)
        if found is not None:
            return found
    have = _datasets(path, file)
    floats = [n for n, d in have.items() if n not in EXTRAS and not _leads_out(d) and d.dtype.kind == "f"]
    chosen = choose(path, have, dataset, sole=[n for n in floats if len(have[n].shape or ()) == 2])
    return have[chosen]


def _datasets(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every data set by name. Only hard links are followed, each object once."""
    found: dict[str, h5py.Dataset] = {}
    seen = 0

    def visit(name: str, item: object) -> None:
        nonlocal seen
        seen += 1
        if seen > MAX_OBJECTS:
            raise ReadError(
                f"{path}: has more than {MAX_OBJECTS:,} objects; name the features with {hints.option('dataset')}"
            )
        if isinstance(item, h5py.Dataset):
            found[name] = item

    file.visititems(visit)
    return found


def instance_columns(path: Path, file: h5py.File, rows: int) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """``instance_labels`` and ``instance_ids``, where the file has them."""
    labels, ids = find(path, file, "instance_labels"), find(path, file, "instance_ids")
    if ids is not None:
        check_storage(path, ids)
    return (
        None if labels is None else as_instance_labels(path, read_array(path, labels), rows),
        None if ids is None else read_texts(path, ids, rows),
    )


def read_array(path: Path, dset: h5py.Dataset) -> np.ndarray:
    """The numbers of a data set, once its size is believed.

    Raises:
        ReadError: not numbers, stored elsewhere, incomplete, or declared far larger than it is.
    """
    check_storage(path, dset)
    if dset.dtype.kind not in "fiub":
        raise ReadError(f"{path}: {dset.name!r} is of type {dset.dtype}; expected numbers")
    if dset.shape is None:
        return np.zeros((0,), dtype=np.float32)
    array: np.ndarray = dset[()]
    return array


def check_storage(path: Path, dset: h5py.Dataset) -> None:
    """Refuse data that lie elsewhere, are incomplete, or are declared far larger than what is stored.

    Raises:
        ReadError: naming the data set and both sizes.
    """
    if _leads_out(dset):
        raise ReadError(f"{path}: {dset.name!r} keeps its data in other files; copy the data into this one")
    if dset.shape is None or math.prod(dset.shape) == 0:
        return
    declared = math.prod(dset.shape) * dset.dtype.itemsize
    size = path.stat().st_size
    what = f"data set {dset.name!r} of shape {dset.shape}"
    if dset.chunks is None:
        stored = min(dset.id.get_storage_size(), size)
        if declared > stored:
            raise ReadError(
                f"{path}: {what} declares {declared:,} bytes but {stored:,} are stored; it was never fully written, "
                "make it again"
            )
        return
    # The file size first: counting chunks would already walk an index as long as the declared size.
    check_expansion(path, declared, size, what)
    check_expansion(path, math.prod(dset.chunks) * dset.dtype.itemsize, size, f"one chunk of {dset.name!r}")
    expected = math.prod(-(-n // c) for n, c in zip(dset.shape, dset.chunks, strict=True))
    written = dset.id.get_num_chunks()
    if written < expected:
        raise ReadError(
            f"{path}: {what} has {written:,} of {expected:,} chunks; it was never fully written, make it again"
        )


def _leads_out(dset: h5py.Dataset) -> bool:
    """External storage or a virtual data set. Looked up before the shape, which a virtual one reads elsewhere."""
    creation = dset.id.get_create_plist()
    return bool(creation.get_layout() == h5py.h5d.VIRTUAL or creation.get_external_count() > 0)
