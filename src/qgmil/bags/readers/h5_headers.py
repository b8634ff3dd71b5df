"""Headers of HDF5 objects, read from the bytes of the file: what must be known before HDF5 itself may open one.

Opening a virtual data set makes HDF5 follow lists of other files, and a broken list makes it loop for ever.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import h5py

from qgmil.errors import ReadError

EXTERNAL, LAYOUT, ATTRIBUTE, CONTINUATION = 0x07, 0x08, 0x0C, 0x10  # kinds of messages in an object's header
VIRTUAL = 3  # class of a layout
SHARED = 0x02  # the message lies elsewhere
MAX_HEADER = 2**22  # bytes of one object's headers
MAX_BLOCKS = 4096  # in which they lie
BLOCK = struct.Struct("<QQ")  # address and length of a continuation


def leads_out(file: h5py.File, address: int) -> bool:
    """Whether the object whose headers start at `address` keeps its data in other files. Nothing is opened for that."""
    with Path(file.filename).open("rb") as handle:
        for kind, _, body in messages(handle, file.userblock_size, address):
            # Layouts name their class in the second byte since version 3; older ones know no virtual data sets.
            if kind == EXTERNAL or (kind == LAYOUT and len(body) > 1 and body[0] > 2 and body[1] == VIRTUAL):
                return True
    return False


def messages(handle: IO[bytes], base: int, address: int) -> Iterator[tuple[int, int, bytes]]:
    """Kind, flags and content of each message of an object whose headers start at `address`.

    Raises:
        ReadError: headers without end.
    """
    head = read_at(handle, base + address, 64)
    modern = head[:4] == b"OHDR"
    if modern:
        flags = head[5]
        at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        size, start = int.from_bytes(head[at : at + width], "little"), address + at + width
        prefix = struct.Struct("<BHBxx" if flags & 0x04 else "<BHB")
    else:
        size, start = int.from_bytes(head[8:12], "little"), address + 16
        prefix = struct.Struct("<HHB3x")
    blocks = [(start, size)]
    total = done = 0
    while done < len(blocks):
        block = read_at(handle, base + blocks[done][0], min(blocks[done][1], MAX_HEADER + 1))
        total, done = total + len(block), done + 1
        if total > MAX_HEADER or done > MAX_BLOCKS:
            raise ReadError(f"{handle.name}: an object has headers of more than {MAX_HEADER:,} bytes; make it again")
        at = 0
        while at + prefix.size <= len(block):
            kind, length, flags = prefix.unpack_from(block, at)
            at += prefix.size
            body = block[at : at + length]
            at += length
            if kind == CONTINUATION and len(body) >= BLOCK.size:
                where, size = BLOCK.unpack_from(body)
                # Newer ones carry a signature in front and a checksum behind.
                blocks.append((where + 4, max(size - 8, 0)) if modern else (where, size))
            else:
                yield kind, flags, body


def read_at(handle: IO[bytes], offset: int, size: int) -> bytes:
    """At most `size` bytes from a position, which may be anything."""
    handle.seek(min(offset, 2**62))
    return handle.read(size)
