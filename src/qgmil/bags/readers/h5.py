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
from h5py import h5o, h5pl
from h5py._objects import phil
from torch import Tensor

from qgmil.bags import hints
from qgmil.bags.readers.base import (
    FEATURE_NAMES,
    BagFile,
    as_coords,
    as_features,
    as_instance_labels,
    choose,
    guarded,
    listing,
)
from qgmil.bags.readers.h5_chunks import check_chunks, read_chunks
from qgmil.bags.readers.h5_facts import read_facts
from qgmil.bags.readers.h5_headers import leads_out
from qgmil.bags.readers.h5_text import read_texts
from qgmil.errors import ReadError

NAME = "h5"
SUFFIXES = (".h5", ".hdf5")
EXTRAS = ("coords", "instance_labels", "instance_ids")
MAX_OBJECTS = 2_000  # a feature file has a handful
MAX_SOFT_LINKS = 8


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read features and what lies beside them; the unit of the coordinates is unknown unless it is noted (`h5_facts`).

    Without `dataset`: ``features``, else ``feats``, else the only two-dimensional floating-point data set.
    """
    with open_h5(path) as file:
        stored = features_of(path, file, dataset)
        features = as_features(path, read_array(path, stored))
        coords = find(path, file, "coords")
        labels, ids = instance_columns(path, file, features.shape[0])
        return BagFile(
            features,
            coords=None if coords is None else as_coords(path, read_array(path, coords), features.shape[0]),
            instance_labels=labels,
            instance_ids=ids,
            **read_facts(path, stored),
        )


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """The shape of the features, without reading them."""
    with open_h5(path) as file:
        return raw_shape(path, features_of(path, file, dataset))


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Open read-only and close always; whatever h5py raises inside becomes a `ReadError` naming the file."""
    with guarded(path, "HDF5"):
        with _without_plugins():
            opened = h5py.File(path, "r", locking="best-effort")
        with opened as file:
            yield file


@contextmanager
def _without_plugins() -> Iterator[None]:
    """Hide the folders of plug-ins: HDF5 loads every library in them when it cannot open a file by itself."""
    with phil:  # h5py's own lock, so that no other thread misses them meanwhile
        folders = [h5pl.get(i) for i in range(h5pl.size())]
        try:
            for _ in folders:
                h5pl.remove(0)
            yield
        finally:
            for folder in folders:
                h5pl.append(folder)


def find(path: Path, file: h5py.File, name: str) -> h5py.Dataset | None:
    """The data set of that name in this very file, or None.

    Raises:
        ReadError: the name leads out of the file, or to something that is no data set.
    """
    found = _resolve(path, file, file, name, MAX_SOFT_LINKS)
    if found is not None and not isinstance(found, h5py.Dataset):
        inside = [f"{name}/{n}" for n in names(found, 21)] if isinstance(found, h5py.Group) else []
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


def names(group: h5py.Group, most: int) -> list[str]:
    """At most so many of the names in a group, sorted: h5py lists all of them, which may be a million."""
    found: list[bytes] = []

    def take(name: bytes) -> bool | None:
        found.append(name)
        return True if len(found) == most else None

    group.id.links.iterate(take, order=h5py.h5.ITER_NATIVE)
    return sorted(name.decode("utf-8", "surrogateescape") for name in found)


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
        link = here.id.links.get_info(part.encode())  # its address is known without a look at what is there
        if link.type == h5py.h5l.TYPE_HARD:
            if leads_out(file, link.u):
                raise ReadError(f"{path}: {name!r} keeps its data in other files; copy the data into this one")
            here = here[part]
        elif link.type == h5py.h5l.TYPE_SOFT:
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
    floats = {n: d for n, d in have.items() if d is not None and n not in EXTRAS and d.dtype.kind == "f"}
    chosen = have[choose(path, have, dataset, sole=[n for n, d in floats.items() if len(d.shape or ()) == 2])]
    if chosen is None:
        raise ReadError(f"{path}: {dataset!r} keeps its data in other files; copy the data into this one")
    return chosen


def _datasets(path: Path, file: h5py.File) -> dict[str, h5py.Dataset | None]:
    """Every data set by name, None for those elsewhere. Only hard links are followed, each object once."""
    found: dict[str, h5py.Dataset | None] = {}
    seen = {h5o.get_info(file.id).addr}
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    looked_at = 0
    while waiting:
        prefix, group = waiting.pop()
        for name in names(group, MAX_OBJECTS + 1):
            looked_at += 1
            if looked_at > MAX_OBJECTS:
                raise ReadError(
                    f"{path}: has more than {MAX_OBJECTS:,} objects; name the features with {hints.option('dataset')}"
                )
            raw = name.encode("utf-8", "surrogateescape")
            link = group.id.links.get_info(raw)
            if link.type != h5py.h5l.TYPE_HARD or link.u in seen:
                continue
            seen.add(link.u)
            item = None if leads_out(file, link.u) else group[name]
            if item is None or isinstance(item, h5py.Dataset):
                found[prefix + name] = item
            elif isinstance(item, h5py.Group):
                waiting.append((f"{prefix}{name}/", item))
    return dict(sorted(found.items()))


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
    if dset.chunks is not None and 0 not in dset.shape:
        return read_chunks(path, dset)
    array: np.ndarray = dset[()]
    return array


def check_storage(path: Path, dset: h5py.Dataset) -> None:
    """Refuse data that lie elsewhere, are incomplete, or are declared far larger than what is stored.

    Raises:
        ReadError: naming the data set and both sizes.
    """
    created = dset.id.get_create_plist()  # what HDF5 itself took the headers for
    if created.get_layout() == h5py.h5d.VIRTUAL or created.get_external_count() > 0:
        raise ReadError(f"{path}: {dset.name!r} keeps its data in other files; copy the data into this one")
    if dset.shape is None or math.prod(dset.shape) == 0:
        return
    declared = math.prod(dset.shape) * dset.dtype.itemsize
    what = f"data set {dset.name!r} of shape {dset.shape}"
    if dset.chunks is None:
        stored = min(dset.id.get_storage_size(), path.stat().st_size)
        if declared > stored:
            raise ReadError(
                f"{path}: {what} declares {declared:,} bytes but {stored:,} are stored; it was never fully written, "
                "make it again"
            )
        return
    check_chunks(path, dset, declared, what)
