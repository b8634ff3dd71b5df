"""`Store`: an open store. Its bags are views of the mapped files."""

from __future__ import annotations

import json
import mmap
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from qgmil.bags.bag import Bag, merge_bags
from qgmil.bags.ids import LazyIds
from qgmil.bags.manifest import BagRecord, records_per_patient
from qgmil.bags.problems import Problem
from qgmil.bags.readers.base import guarded
from qgmil.bags.store.index import Index, as_counts, read_index
from qgmil.bags.store.layout import (
    AGAIN,
    COORDS,
    FEATURES,
    INSTANCE_IDS,
    INSTANCE_LABELS,
    OFFSETS,
    Header,
    open_member,
    read_header,
    read_member,
)
from qgmil.errors import ReadError

# Linux reserves memory for a private map that may be written, and so would refuse a store larger than memory. Older
# Pythons have no name for the flag against that.
_USUAL = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000 if _USUAL else 0)

FEW_ROWS = 16  # a row in so many is wanted: the system's own reading ahead around each is less than the whole bag


@dataclass(frozen=True, init=False, eq=False)
class StoredRecord(BagRecord):
    """A bag of a store, as a row of its manifest. What training rarely asks for is put together when it is asked for.

    Args:
        store: the open store.
        parts: positions in the store of the bags that make it up: one, or those of a patient.
    """

    store: Store = field(default=cast(Any, None), repr=False)  # always given; the fields before it have defaults
    parts: tuple[int, ...] = ()

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)  # ten thousand of them are made on opening: no setattr for each field

    @cached_property  # type: ignore[misc]
    def files(self) -> tuple[Path, ...]:
        """The file of all features."""
        return (self.store.path / FEATURES,)

    @cached_property  # type: ignore[misc]
    def extra(self) -> dict[str, str]:
        """The other columns of the manifest, as far as the parts agree on them."""
        return {c: v[0] for c, v in self._values.items() if len(v) == 1}

    @cached_property  # type: ignore[misc]
    def conflicts(self) -> dict[str, tuple[str, ...]]:
        """The columns on which what was merged disagrees, with the values."""
        return {c: v for c, v in self._values.items() if len(v) > 1}

    @property
    def _values(self) -> dict[str, tuple[str, ...]]:
        """Column -> its different values over the parts, and over what was merged into a part on packing."""
        index, found = self.store.index, {}
        for column, values in index.extra.items():
            seen: list[str] = []
            for part in self.parts:
                value = values[part]
                clash = index.conflicts.get(part, {}).get(column)
                seen += clash or (() if value is None else (value,))
            if seen:
                found[column] = tuple(dict.fromkeys(seen))
        return found

    def read(self) -> Bag:
        """The bag: features are a view of the file where there is one part. They were found finite on packing."""
        parts = [
            self.store.bag(i, bag_id=self.bag_id, label=self.label, patient_id=self.patient_id) for i in self.parts
        ]
        return parts[0] if len(parts) == 1 else merge_bags(parts, self.bag_id)


def stored_per_patient(records: Sequence[StoredRecord]) -> tuple[tuple[StoredRecord, ...], list[Problem]]:
    """As `records_per_patient`, for the bags of a store."""
    rows: dict[str, list[StoredRecord]] = {}
    for record in records:
        rows.setdefault(record.group, []).append(record)
    merged, problems = records_per_patient(records)
    return tuple(_merged(m, rows[m.bag_id]) for m in merged), problems


def _merged(patient: BagRecord, rows: Sequence[StoredRecord]) -> StoredRecord:
    return StoredRecord(
        bag_id=patient.bag_id,
        label=patient.label,
        patient_id=patient.patient_id,
        merged=tuple(i for row in rows for i in row.merged or (row.bag_id,)),
        store=rows[0].store,
        parts=tuple(i for row in rows for i in row.parts),
    )


class Store:
    """An open store of B bags; made by `open_store`.

    Pickling carries the path alone: the copy opens the store again and refuses one with other content.

    Args:
        path: its folder, absolute.
        header, index: what the store says of itself, checked.
        offsets: ``(B + 1,)`` int64; bag b is rows ``offsets[b]`` to ``offsets[b + 1]`` of the features.
    """

    def __init__(self, path: Path, header: Header, index: Index, offsets: np.ndarray) -> None:
        self.path, self.header, self.index, self.offsets = path, header, index, offsets
        self._maps = {n: _map(path, n, header.members[n].size) for n in (FEATURES, COORDS, INSTANCE_LABELS)}
        sizes = np.diff(offsets)
        self._coord_rows = _ends(path, COORDS, sizes * np.array([k is not None for k in index.coords]), 16, header)
        self._label_rows = _ends(path, INSTANCE_LABELS, sizes * as_counts(index.instance_labels), 8, header)
        self._id_bytes = _ends(path, INSTANCE_IDS, as_counts(index.instance_ids), 1, header)
        self._row_bytes = header.width * header.dtype.itemsize

    def __len__(self) -> int:
        return self.header.bags

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path, self.header.identity)

    def records(self, labels: Sequence[str | None], patient_ids: Sequence[str | None]) -> tuple[StoredRecord, ...]:
        """A record of every bag, with the given labels and patients (the packed ones, or those of another column)."""
        rows = zip(self.index.bag_ids, labels, patient_ids, strict=True)
        merged = self.index.merged
        return tuple(
            StoredRecord(bag_id=b, label=y, patient_id=p, merged=merged.get(i, ()), store=self, parts=(i,))
            for i, (b, y, p) in enumerate(rows)
        )

    def bag(self, index: int, *, bag_id: str, label: str | None, patient_id: str | None) -> Bag:
        """Bag number `index`: its features ``(N, D)`` share the memory of the file (writing to them copies a page).

        Raises:
            ReadError: names of instances that cannot be read.
        """
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        known = self.index
        kind = known.coords[index]
        names: Any = None
        if known.instance_ids[index]:
            names = LazyIds(partial(self._names, index), stop - start)
        return Bag(
            features=self._view(FEATURES, start * self._row_bytes, stop * self._row_bytes, self.header.dtype).view(
                -1, self.header.width
            ),
            label=label,
            bag_id=bag_id,
            patient_id=patient_id,
            coords=None if kind is None else self._rows(COORDS, self._coord_rows, index, 16, kind).view(-1, 2),
            coord_unit=known.coord_unit[index],
            **{name: values[index] for name, values in known.tile_facts.items()},
            instance_labels=self._rows(INSTANCE_LABELS, self._label_rows, index, 8, "int64")
            if known.instance_labels[index]
            else None,
            instance_ids=names,
        )

    def will_need(self, indices: Iterable[int], rows: int | None = None) -> None:
        """Ask the system to start reading the features of these bags from disk, without waiting for it.

        Args:
            indices: bags.
            rows: how many rows of each are wanted, anywhere in it; of a bag with far more, nothing is asked for.
        """
        found = self._maps[FEATURES]
        if not isinstance(found, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED"):
            return
        for index in indices:
            if rows is not None and rows * FEW_ROWS < self.offsets[index + 1] - self.offsets[index]:
                continue
            start, stop = (int(self.offsets[i]) * self._row_bytes for i in (index, index + 1))
            start -= start % mmap.PAGESIZE
            found.madvise(mmap.MADV_WILLNEED, start, stop - start)

    def _rows(self, name: str, ends: np.ndarray, index: int, size: int, kind: str) -> Tensor:
        return self._view(name, int(ends[index]) * size, int(ends[index + 1]) * size, getattr(torch, kind))

    def _view(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        # One storage a bag, not one for all: what is sent to another process is a tensor's whole storage.
        found = np.frombuffer(self._maps[name], dtype=np.uint8, count=stop - start, offset=start)
        return torch.from_numpy(found).view(dtype)

    def _names(self, index: int) -> tuple[str, ...]:
        start, stop = (int(i) for i in self._id_bytes[index : index + 2])
        with guarded(self.path / INSTANCE_IDS, "names of instances"):
            with open_member(self.path, INSTANCE_IDS) as file:
                file.seek(start)
                names = json.loads(file.read(stop - start))
            rows = int(self.offsets[index + 1] - self.offsets[index])
            if not isinstance(names, list) or len(names) != rows or not all(isinstance(n, str) for n in names):
                bag = self.index.bag_ids[index]
                raise ReadError(f"{self.path / INSTANCE_IDS}: bag {bag!r} should have {rows} names; {AGAIN}")
        return tuple(names)


def open_store(path: str | os.PathLike[str], identity: str | None = None) -> Store:
    """Open a store; no feature is read.

    Args:
        path: its folder.
        identity: the `Header.identity` that it must have; None: any.

    Raises:
        ReadError: no finished store, broken, or with other content.
    """
    folder = Path(path).absolute()
    with guarded(folder, "a store"):
        header = read_header(folder)
        if identity is not None and header.identity != identity:
            raise ReadError(f"{folder}: is another store than when it was opened first; do not pack over one in use")
        index = read_index(folder, header.bags)
        return Store(folder, header, index, _offsets(folder, header))


def _offsets(folder: Path, header: Header) -> np.ndarray:
    found = np.frombuffer(read_member(folder, OFFSETS), dtype="<i8")
    path = folder / OFFSETS
    if len(found) != header.bags + 1:
        raise ReadError(f"{path}: has {len(found)} entries for {header.bags} bags; {AGAIN}")
    # The limits first: differences of numbers that are out of them might overflow and look right.
    wrong = np.flatnonzero((found < 0) | (found > header.instances))
    if not wrong.size and (found[0] != 0 or found[-1] != header.instances):
        wrong = np.array([0 if found[0] != 0 else header.bags])
    if not wrong.size:
        wrong = np.flatnonzero(np.diff(found) < 1) + 1
    if wrong.size:
        at = int(wrong[0])
        raise ReadError(
            f"{path}: entry {at} is {int(found[at])}; the entries must rise from 0 to {header.instances}, the number "
            f"of instances; {AGAIN}"
        )
    return found


def _ends(folder: Path, name: str, counts: np.ndarray, size: int, header: Header) -> np.ndarray:
    """Where the rows of each bag end in a file that only some bags have rows in ``(B + 1,)``."""
    total = sum(counts.tolist())  # Python's integers do not overflow
    if total * size != header.members[name].size:
        raise ReadError(
            f"{folder / name}: has {header.members[name].size:,} bytes where the index of the bags asks for "
            f"{total * size:,}; {AGAIN}"
        )
    return np.concatenate(([0], np.cumsum(counts)))


def _map(folder: Path, name: str, size: int) -> mmap.mmap | bytes:
    """The mapped file: shared by all processes, and private to this one as soon as it writes."""
    with open_member(folder, name) as file:
        if os.fstat(file.fileno()).st_size != size:
            raise ReadError(f"{folder / name}: has changed while the store was opened; {AGAIN}")
        if size == 0:
            return b""
        if not hasattr(mmap, "MAP_PRIVATE"):
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        flags = mmap.MAP_PRIVATE | NORESERVE
        return mmap.mmap(file.fileno(), size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
