"""The files of a store as they grow, one bag at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from qgmil.bags import hints
from qgmil.bags.bag import Bag
from qgmil.bags.manifest import BagRecord
from qgmil.bags.source import Item
from qgmil.bags.store.index import Index
from qgmil.bags.store.layout import (
    CHECKSUMS,
    COORDS,
    DIGEST_BYTES,
    FEATURES,
    HEADER,
    INDEX,
    INSTANCE_IDS,
    INSTANCE_LABELS,
    MAX_INDEX,
    MEMBERS,
    OFFSETS,
    SOURCES,
    Header,
    Member,
    dtype_name,
)
from qgmil.errors import BagError, ManifestError

CHUNK = 2**22  # elements converted at a time


@dataclass
class Rounding:
    """The largest error that converting features made, and where.

    Args:
        error: absolute difference; 0: every value is as it was.
        value: the value before.
        bag_id: the bag in which it happened; None where nothing was rounded.
    """

    error: float = 0.0
    value: float = 0.0
    bag_id: str | None = None


class FeatureFile:
    """``features.bin`` as it is written: rows in one type, a checksum a bag.

    Args:
        path: the file to make.
        dtype: type of the rows.
    """

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.path, self.dtype = path, dtype
        self.sizes: list[int] = []
        self.width = 0
        self.digests: list[bytes] = []
        self.rounding = Rounding()
        self.file: IO[bytes] = path.open("wb")

    def add(self, bag: Bag) -> None:
        """Append the features of a bag (finite), converted.

        Raises:
            BagError: a value that the type cannot hold, by bag, instance and column.
        """
        self.width = bag.width
        state = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for first, rows in _chunks(bag.features):
            self._write(self._converted(bag.bag_id, rows, first), state)
        self.sizes.append(len(bag))
        self.digests.append(state.digest())

    def widen(self, dtype: torch.dtype) -> None:
        """Rewrite what is there in a type that holds every value of the present one."""
        self.file.close()
        narrow = self.path.with_name(f"{FEATURES}.narrow")
        self.path.replace(narrow)
        sizes, before = self.sizes, self.dtype
        self.sizes, self.digests, self.dtype, self.file = [], [], dtype, self.path.open("wb")
        with narrow.open("rb") as old:
            for size in sizes:
                state = hashlib.blake2b(digest_size=DIGEST_BYTES)
                step = max(1, CHUNK // self.width)
                for first in range(0, size, step):
                    count = min(step, size - first) * self.width
                    raw = bytearray(old.read(count * before.itemsize))
                    self._write(torch.frombuffer(raw, dtype=before).to(dtype), state)
                self.sizes.append(size)
                self.digests.append(state.digest())
        narrow.unlink()

    def _converted(self, bag_id: str, rows: Tensor, first: int) -> Tensor:
        if rows.dtype == self.dtype:
            return rows
        result = rows.to(self.dtype)
        exact = rows.float()
        error = (result.float() - exact).abs()
        lost = error.argmax()  # infinite where a value overflows
        largest = float(error.flatten()[lost])
        if largest == float("inf"):
            row, column = divmod(int(lost), rows.shape[1])
            wider = ["bfloat16", "float32"] if self.dtype == torch.float16 else ["float32"]
            raise BagError(
                f"bag {bag_id!r}: feature {column} of instance {first + row} is {float(exact[row, column]):g}, and "
                f"{dtype_name(self.dtype)} ends at {torch.finfo(self.dtype).max:g}; pack with "
                + " or ".join(hints.option("dtype", name) for name in wider)
            )
        if largest > self.rounding.error:
            self.rounding = Rounding(largest, float(exact.flatten()[lost]), bag_id)
        return result

    def _write(self, rows: Tensor, state: Any) -> None:
        raw = rows.contiguous().view(torch.uint8).numpy().data
        state.update(raw)
        self.file.write(raw)


@dataclass
class StoreWriter:
    """All files of a store in `folder`, which is there and empty; `finish` makes it one.

    Args:
        folder: where to write.
        features: its ``features.bin``.
        index: what is known of the bags so far.
    """

    folder: Path
    features: FeatureFile
    index: Index = field(default_factory=Index)

    def __post_init__(self) -> None:
        self._open = {name: (self.folder / name).open("wb") for name in (COORDS, INSTANCE_LABELS, INSTANCE_IDS)}

    def add(self, item: Item, bag: Bag) -> None:
        """Append a bag, and the columns of its record.

        Raises:
            BagError: features that the type cannot hold.
        """
        self.features.add(bag)
        index = self.index
        number = len(index.bag_ids)
        index.bag_ids.append(bag.bag_id)
        index.labels.append(bag.label)
        index.patient_ids.append(bag.patient_id)
        index.coord_unit.append(bag.coord_unit)
        for name, facts in index.tile_facts.items():
            facts.append(getattr(bag, name))
        index.coords.append(self._numbers(COORDS, bag.coords))
        index.instance_labels.append(int(self._numbers(INSTANCE_LABELS, bag.instance_labels) is not None))
        names = b"" if bag.instance_ids is None else json.dumps(list(bag.instance_ids)).encode()
        self._open[INSTANCE_IDS].write(names)
        index.instance_ids.append(len(names))
        if isinstance(item, BagRecord):
            self._columns(number, item)

    def _numbers(self, name: str, values: Tensor | None) -> str | None:
        if values is None:
            return None
        values = values.double() if values.is_floating_point() else values.long()
        self._open[name].write(values.contiguous().numpy().tobytes())
        return dtype_name(values.dtype)

    def _columns(self, number: int, record: BagRecord) -> None:
        extra = self.index.extra
        for column in (*record.extra, *record.conflicts):
            extra.setdefault(column, [])
        for column, values in extra.items():
            values += [None] * (number - len(values))
            values.append(record.extra.get(column))
        if record.conflicts:
            self.index.conflicts[number] = record.conflicts
        if record.merged:
            self.index.merged[number] = record.merged

    def finish(self, sources: list[dict[str, Any]], packed: dict[str, Any]) -> Header:
        """Write the index, checksums and, last, the marker; everything is on the disk afterwards.

        Raises:
            ManifestError: so many columns that no store could be opened quickly.
        """
        for values in self.index.extra.values():  # bags that are no records follow none
            values += [None] * (len(self.index.bag_ids) - len(values))
        known = self.index.to_json()
        if len(known) > MAX_INDEX:
            raise ManifestError(
                f"the table's columns have {len(known):,} bytes and a store holds {MAX_INDEX:,}; "
                "take columns that are not needed out of the manifest"
            )
        features = self.features
        for file in (features.file, *self._open.values()):
            _close(file)
        offsets = np.concatenate(([0], np.cumsum(features.sizes))).astype("<i8")
        for name, content in (
            (OFFSETS, offsets.tobytes()),
            (CHECKSUMS, b"".join(features.digests)),
            (INDEX, known),
            (SOURCES, json.dumps(sources, indent=0).encode()),
        ):
            self._whole(name, content)
        members = {name: _member(self.folder / name, hashed=name != FEATURES) for name in MEMBERS}
        header = Header(features.dtype, len(features.sizes), int(offsets[-1]), features.width, members, packed)
        self._whole(HEADER, (json.dumps(header.to_json(), indent=2, allow_nan=False) + "\n").encode())
        sync_folder(self.folder)
        return header

    def close(self) -> None:
        """Close the files of a store that will not be finished."""
        for file in (self.features.file, *self._open.values()):
            with contextlib.suppress(OSError):  # a full disk, said before
                file.close()

    def _whole(self, name: str, content: bytes) -> None:
        with (self.folder / name).open("wb") as file:
            file.write(content)
            _close(file)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _close(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _member(path: Path, hashed: bool) -> Member:
    if not hashed:
        return Member(path.stat().st_size, None)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()
    return Member(path.stat().st_size, digest)


def _chunks(features: Tensor) -> Iterator[tuple[int, Tensor]]:
    step = max(1, CHUNK // features.shape[1])
    for first in range(0, features.shape[0], step):
        yield first, features[first : first + step]
