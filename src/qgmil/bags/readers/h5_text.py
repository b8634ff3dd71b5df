"""Texts of an HDF5 data set.

Texts of variable length lie in "global heaps". HDF5 believes the length that an element declares before it looks at the
heap, so one flipped bit makes it allocate gigabytes or write past a buffer; the heaps are therefore parsed here.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

import h5py

from qgmil.bags.readers.h5_chunks import read_chunks
from qgmil.errors import ReadError

ELEMENT = struct.Struct("<IQI")  # length, address of the heap, index in it
HEAP = struct.Struct("<4sB3xQ")  # signature, version, size with this header
OBJECT = struct.Struct("<HH4xQ")  # index, references, size


def read_texts(path: Path, dset: h5py.Dataset, rows: int) -> tuple[str, ...]:
    """The texts ``(rows,)`` of a data set whose storage has been checked.

    Raises:
        ReadError: not text, another number of them, or broken.
    """
    kind = h5py.check_string_dtype(dset.dtype)
    if kind is None or dset.shape != (rows,):
        raise ReadError(f"{path}: {dset.name!r} is {dset.dtype} of shape {dset.shape}; expected {rows} texts")
    if kind.length is not None:
        texts = dset[()] if dset.chunks is None or rows == 0 else read_chunks(path, dset)
        return tuple(bytes(t).decode() for t in texts)
    offset = dset.id.get_offset()
    if offset is None or dset.id.get_storage_size() != rows * ELEMENT.size:
        raise ReadError(
            f"{path}: {dset.name!r} holds texts of variable length in chunks; write them with a fixed length "
            "(numpy dtype 'S32') or without chunks"
        )
    with path.open("rb") as handle:
        handle.seek(offset)
        elements = list(ELEMENT.iter_unpack(handle.read(rows * ELEMENT.size)))
        heaps = Heaps(path, handle, dset.file.userblock_size)
        return tuple(heaps.text(*element) for element in elements)


class Heaps:
    """The global heaps of one file, each parsed once. Together they cannot be larger than the file."""

    def __init__(self, path: Path, handle: IO[bytes], base: int) -> None:
        self.path, self.handle, self.base = path, handle, base
        self.left = path.stat().st_size
        self.heaps: dict[int, dict[int, bytes]] = {}

    def text(self, length: int, address: int, index: int) -> str:
        if length == 0:
            return ""
        if address not in self.heaps:
            self.heaps[address] = self._parse(address)
        content = self.heaps[address].get(index)
        if content is None or length > len(content):
            raise ReadError(f"{self.path}: a text of {length:,} bytes is not in its heap; copy or make the file again")
        return content[:length].rstrip(b"\0").decode()

    def _parse(self, address: int) -> dict[int, bytes]:
        self.handle.seek(self.base + min(address, 2**62))
        header = self.handle.read(HEAP.size)
        signature, version, size = HEAP.unpack(header) if len(header) == HEAP.size else (b"", 0, 0)
        self.left -= size
        if signature != b"GCOL" or version != 1 or size < HEAP.size or self.left < 0:
            raise ReadError(f"{self.path}: the texts of the file are broken; copy or make it again")
        body = self.handle.read(size - HEAP.size)
        objects: dict[int, bytes] = {}
        at = 0
        while at + OBJECT.size <= len(body):
            index, _, length = OBJECT.unpack_from(body, at)
            if index == 0:  # the free space at the end
                break
            at += OBJECT.size
            objects[index] = body[at : at + length]
            at += -(-length // 8) * 8
        return objects
