"""Data sets of HDF5 that are stored in chunks.

HDF5 loads the library of any filter that a file names, inflates a chunk until its stream ends, and takes what comes
out for a whole chunk even where it is shorter, so that whatever lies behind it in memory becomes features. Here filters
are known ones, what HDF5 unpacks is measured before, and gzip is unpacked without HDF5.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5t, h5z

from qgmil.bags.readers.base import check_expansion
from qgmil.errors import ReadError

GZIP, LZF, SHUFFLE, SUM = h5z.FILTER_DEFLATE, h5z.FILTER_LZF, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32
NAMES = {GZIP: "gzip", LZF: "lzf", SHUFFLE: "shuffle", SUM: "fletcher32"}
#: Each filter at most once; the checksum last, or HDF5 looks for it in fewer bytes than it has.
ORDERS = [
    [*first, *packer, *last] for first in ([], [SHUFFLE]) for packer in ([], [GZIP], [LZF]) for last in ([], [SUM])
]
SUM_BYTES = 4
AT_ONCE = 4096  # chunks that HDF5 keeps books on while it reads: some kilobytes each
MAX_CHUNKS = 2**20  # CLAM makes one of each instance


def check_chunks(path: Path, dset: h5py.Dataset, declared: int, what: str) -> None:
    """Refuse a data set whose chunks are incomplete, or are stored in other sizes than they can have.

    Args:
        declared: its size in bytes.
        what: names it for messages.

    Raises:
        ReadError: naming the data set and both sizes.
    """
    size, chunk = path.stat().st_size, chunk_bytes(dset)
    # The file size first: counting chunks would already walk an index as long as the declared size.
    check_expansion(path, declared, size, what)
    check_expansion(path, chunk, size, f"one chunk of {dset.name!r}")
    codes = _filters(path, dset)
    shape = dset.chunks
    grid = [-(-n // c) for n, c in zip(dset.shape, shape, strict=True)]
    if math.prod(grid) > min(size, MAX_CHUNKS) or math.prod(grid[1:]) > AT_ONCE:
        raise ReadError(
            f"{path}: {what} is cut into {math.prod(grid):,} chunks of shape {shape}; write it again with larger ones"
        )
    seen = bytearray(math.prod(grid))
    odd: int | None = None

    def look(info: Any) -> bool | None:
        nonlocal odd
        least, most = _stored_sizes(codes, info.filter_mask, chunk)
        if not least <= info.size <= min(most, size):
            odd = info.size
            return True
        at = 0
        for start, length, count in zip(info.chunk_offset, shape, grid, strict=True):
            if start // length >= count:  # a chunk beyond the end, where the data set was made smaller
                return None
            at = at * count + start // length
        seen[at] = 1
        return None

    dset.id.chunk_iter(look)
    if odd is not None:
        raise ReadError(
            f"{path}: a chunk of {dset.name!r} stores {odd:,} bytes for the {chunk:,} that it should have; the file "
            "is broken or hostile, make it again"
        )
    if 0 in seen:
        raise ReadError(
            f"{path}: {what} has {seen.count(1):,} of {len(seen):,} chunks; it was never fully written, make it again"
        )


def read_chunks(path: Path, dset: h5py.Dataset) -> np.ndarray:
    """All of a data set that has been checked.

    Raises:
        ReadError: a chunk unpacks to more or less than it should have.
    """
    codes = _filters(path, dset)
    if GZIP in codes:
        return _inflated(path, dset, codes)
    if LZF in codes:
        _check_lzf(path, dset, codes)
    per_row = math.prod(-(-n // c) for n, c in zip(dset.shape[1:], dset.chunks[1:], strict=True))
    rows = max(1, AT_ONCE // per_row) * dset.chunks[0]
    array = np.empty(dset.shape, dset.dtype)
    for start in range(0, dset.shape[0], rows):
        part = np.s_[start : start + rows]
        dset.read_direct(array, part, part)
    return array


def chunk_bytes(dset: h5py.Dataset) -> int:
    """Bytes of one chunk, unpacked."""
    return math.prod(dset.chunks) * int(dset.dtype.itemsize)


def _filters(path: Path, dset: h5py.Dataset) -> list[int]:
    """The filters in the order in which they are applied.

    Raises:
        ReadError: filters that are not read, in an order in which nobody writes them, or made for other chunks.
    """
    created = dset.id.get_create_plist()
    filters = [created.get_filter(i) for i in range(created.get_nfilters())]
    codes = [f[0] for f in filters]
    if unknown := [c for c in codes if c not in NAMES]:
        raise ReadError(
            f"{path}: {dset.name!r} is packed with the filter {unknown[0]}, which is not read; write it again with "
            "gzip, or unpacked"
        )
    sizes = {code: values for code, _, values, _ in filters}
    shuffled, unpacked = sizes.get(SHUFFLE, ()), sizes.get(LZF, ())[2:]
    if (
        codes not in ORDERS
        or shuffled not in ((), (dset.dtype.itemsize,))
        or max(unpacked, default=0) > chunk_bytes(dset)
    ):
        raise ReadError(
            f"{path}: {dset.name!r} is packed with {', '.join(NAMES[c] for c in codes)} in a way that nothing writes; "
            "write it again with gzip, or unpacked"
        )
    return codes


def _used(code: int, codes: list[int], mask: int) -> bool:
    """Whether a filter was applied to a chunk: those that gain nothing are left out."""
    return code in codes and not mask >> codes.index(code) & 1


def _stored_sizes(codes: list[int], mask: int, chunk: int) -> tuple[int, int]:
    """The least and the most bytes that a chunk can be stored in."""
    end = SUM_BYTES if _used(SUM, codes, mask) else 0
    if _used(GZIP, codes, mask) or _used(LZF, codes, mask):
        return end + 1, end + chunk + chunk // 100 + 1024  # what cannot be packed grows hardly
    return end + chunk, end + chunk


def _inflated(path: Path, dset: h5py.Dataset, codes: list[int]) -> np.ndarray:
    """A data set packed by gzip, whose streams carry checksums of their own."""
    kind, stored = dset.dtype, dset.id.get_type()
    if stored.get_class() in (h5t.INTEGER, h5t.FLOAT) and not stored.equal(h5t.py_create(kind)):
        raise ReadError(f"{path}: {dset.name!r} has numbers of an unusual type ({kind}); write it again as float32")
    raw_kind = np.dtype("u1") if kind.kind == "b" else kind
    array = np.zeros(dset.shape, raw_kind)
    for offset in np.ndindex(*(-(-n // c) for n, c in zip(dset.shape, dset.chunks, strict=True))):
        start = tuple(i * c for i, c in zip(offset, dset.chunks, strict=True))
        mask, packed = dset.id.read_direct_chunk(start)
        block = np.frombuffer(_unpacked(path, dset, codes, mask, packed), raw_kind).reshape(dset.chunks)
        place = tuple(slice(s, s + c) for s, c in zip(start, dset.chunks, strict=True))
        array[place] = block[tuple(slice(0, n) for n in array[place].shape)]
    return array.astype(bool) if kind.kind == "b" else array


def _unpacked(path: Path, dset: h5py.Dataset, codes: list[int], mask: int, packed: bytes) -> bytes:
    """The bytes of one chunk."""
    data, size = packed[: len(packed) - SUM_BYTES * _used(SUM, codes, mask)], chunk_bytes(dset)
    if _used(GZIP, codes, mask):
        inflater = zlib.decompressobj()
        data = inflater.decompress(data, size + 1)
        if len(data) == size and not inflater.eof:  # its checksum is missing
            raise ReadError(f"{path}: a chunk of {dset.name!r} is cut short; copy the file or make it again")
    _check_size(path, dset, len(data), size)
    width = dset.dtype.itemsize
    if not _used(SHUFFLE, codes, mask) or width == 1:
        return data
    return np.frombuffer(data, np.uint8).reshape(width, -1).T.tobytes()


def _check_lzf(path: Path, dset: h5py.Dataset, codes: list[int]) -> None:
    """Refuse chunks that do not unpack to a whole one; HDF5 unpacks them afterwards."""
    for offset in np.ndindex(*(-(-n // c) for n, c in zip(dset.shape, dset.chunks, strict=True))):
        mask, packed = dset.id.read_direct_chunk(tuple(i * c for i, c in zip(offset, dset.chunks, strict=True)))
        if _used(LZF, codes, mask):
            data = packed[: len(packed) - SUM_BYTES * _used(SUM, codes, mask)]
            _check_size(path, dset, _lzf_size(data), chunk_bytes(dset))


def _lzf_size(packed: bytes) -> int:
    """How much lzf would unpack: runs of up to 32 bytes as they are, and copies of what came before."""
    at = size = 0
    while at < len(packed):
        control = packed[at]
        if control < 32:
            at, size = at + control + 2, size + control + 1
        else:
            longer = control >> 5 == 7
            size += (control >> 5) + 2 + (packed[at + 1] if longer and at + 1 < len(packed) else 0)
            at += 2 + longer
    return size if at == len(packed) else 0


def _check_size(path: Path, dset: h5py.Dataset, found: int, size: int) -> None:
    if found != size:
        raise ReadError(
            f"{path}: a chunk of {dset.name!r} unpacks to {'more' if found > size else 'less'} than the {size:,} bytes "
            "that it should have; the file is broken or hostile, make it again"
        )
