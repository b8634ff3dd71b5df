"""MATLAB 5 to 7 files (``.mat``): numbers, texts, sparse matrices, and cells and structs of them.

They are parsed here because what else reads them trusts them: a flipped bit crashes scipy's reader, and a file may hold
objects and functions, inflate to any size, and declare cell arrays of any length. Here nothing is inflated or set aside
that the bytes in the file do not account for.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from qgmil.bags.readers.base import MAX_EXPANSION, check_expansion, check_path, guarded
from qgmil.errors import ReadError

HEADER = 128
COMPRESSED, MATRIX = 15, 14
CELL, STRUCT, CHAR, SPARSE = 1, 2, 4, 5
NUMERIC = range(6, 16)
COMPLEX = 0x0800
MAX_DEPTH = 8
SMALL = 16 * 2**20  # inflated bytes that are not worth refusing
STEP = 2**20  # bytes inflated at a time
LEAST = 8  # bytes that the smallest element takes: its tag
#: numpy's name of each type of stored numbers.
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin-1", 2: "latin-1", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a file by name.

    Returns:
        Numbers (sparse ones filled in) as arrays in MATLAB's shape, texts as arrays of one text a row, cells as object
        arrays, structs as object arrays of dicts.

    Raises:
        ReadError: not a MATLAB 5 to 7 file, objects or functions in it, or sizes that are not there.
    """
    check_path(path)
    with guarded(path, "a MATLAB file"):
        raw = path.read_bytes()
        order = _byte_order(path, raw)
        parser = _Parser(path, _inflated(path, raw, order), order)
        found: dict[str, Any] = {}
        at = 0
        while at < len(parser.data):
            name, value, at = parser.array(at, len(parser.data), 0)
            found[name] = value
        return found


def matrix(path: Path, name: str, value: Any) -> np.ndarray:
    """A variable, if it is a matrix of real numbers ``(rows, columns)``.

    Raises:
        ReadError: it is something else.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.ndim != 2:
        raise ReadError(f"{path}: {name} is {array.dtype} of shape {array.shape}; expected a matrix of real numbers")
    return array


def _byte_order(path: Path, raw: bytes) -> str:
    if raw[:8] == b"\x89HDF\r\n\x1a\n" or raw[:10] == b"MATLAB 7.3":
        raise ReadError(f"{path}: is a MATLAB 7.3 file; save it with save(..., '-v7')")
    order = {b"IM": "<", b"MI": ">"}.get(raw[126:128])
    if order is None or struct.unpack(f"{order}H", raw[124:126])[0] != 0x0100:
        raise ReadError(f"{path}: is not a MATLAB 5 to 7 file; save it with save(..., '-v7')")
    return order


def _inflated(path: Path, raw: bytes, order: str) -> bytes:
    """The elements of the file, none of them compressed."""
    budget = max(SMALL, MAX_EXPANSION * len(raw))
    parser = _Parser(path, raw, order)
    parts: list[bytes] = []
    at = HEADER
    while at < len(raw):
        kind, start, stop, end = parser.tag(at, len(raw))
        part = raw[at:end]
        if kind == COMPRESSED:
            part = _inflate(path, raw[start:stop], budget)
            end = stop  # compressed elements have no padding
        parts.append(part + b"\0" * (-len(part) % 8))
        budget -= len(parts[-1])
        at = end
    return b"".join(parts)


def _inflate(path: Path, packed: bytes, budget: int) -> bytes:
    """Inflate piece by piece: asked for everything at once, zlib takes twice what it gives."""
    inflater = zlib.decompressobj()
    pieces: list[bytes] = []
    while packed and not inflater.eof:
        pieces.append(inflater.decompress(packed, STEP))
        packed = inflater.unconsumed_tail
        budget -= len(pieces[-1])
        if budget < 0:
            break
    if budget < 0 or not inflater.eof:
        said = "inflates to more than any honest data would" if budget < 0 else "is cut short"
        raise ReadError(f"{path}: a variable {said}; the file is broken or hostile, save it again")
    return b"".join(pieces)


class _Parser:
    """Reads one element after another; no position is believed before it is known to lie inside."""

    def __init__(self, path: Path, data: bytes, order: str) -> None:
        self.path, self.data, self.order = path, data, order

    def tag(self, at: int, limit: int) -> tuple[int, int, int, int]:
        """Type of the element at a position, where its data start and stop, and where the next one is."""
        if at + LEAST > limit:
            raise ReadError(f"{self.path}: is cut short at byte {at:,}; copy or save it again")
        first, size = struct.unpack_from(f"{self.order}II", self.data, at)
        if first >> 16:  # a small element: type and size share a word, the data are the next
            kind, size = first & 0xFFFF, first >> 16
            if size > 4:
                raise self._broken(f"a small element of {size} bytes at byte {at:,}")
            return kind, at + 4, at + 4 + size, at + 8
        start = at + 8
        if start + size > limit:
            raise ReadError(
                f"{self.path}: an element at byte {at:,} declares {size:,} bytes but {limit - start:,} follow; "
                "the file is cut short, copy or save it again"
            )
        return first, start, start + size, min(start + size + -size % 8, limit)

    def array(self, at: int, limit: int, depth: int) -> tuple[str, Any, int]:
        """The name and the value of the array at a position, and where the next one is."""
        kind, at_flags, stop, end = self.tag(at, limit)
        if kind != MATRIX:
            raise self._broken(f"an element of type {kind} at byte {at:,} where an array should be")
        if depth > MAX_DEPTH:
            raise ReadError(f"{self.path}: cells inside cells, {depth} deep; save the bags in one plain array")
        if at_flags == stop:
            return "", np.zeros((0, 0)), end
        flags, at = self._numbers(at_flags, stop)
        dims, at = self._numbers(at, stop)
        name, at = self._text(at, stop)
        shape = tuple(int(n) for n in dims)
        if len(flags) != 2 or len(shape) < 2 or min(shape) < 0:
            raise self._broken(f"the array {name!r} of shape {shape}")
        kind = int(flags[0]) & 0xFF
        if kind in (CELL, STRUCT):
            return name, self._nested(kind, shape, at, stop, depth), end
        if int(flags[0]) & COMPLEX:
            raise ReadError(f"{self.path}: {name!r} has complex numbers; save real ones")
        if kind == SPARSE:
            return name, self._sparse(name, shape, at, stop), end
        if kind == CHAR:
            return name, self._chars(shape, at, stop), end
        if kind not in NUMERIC:
            raise ReadError(
                f"{self.path}: {name!r} is a MATLAB object or function, which is not read; "
                "save numbers, cells or structs instead"
            )
        values, _ = self._numbers(at, stop)
        if len(values) != math.prod(shape):
            raise self._broken(f"{name!r} has {len(values):,} numbers for the shape {shape}")
        return name, values.reshape(shape, order="F"), end

    def _nested(self, kind: int, shape: tuple[int, ...], at: int, limit: int, depth: int) -> np.ndarray:
        """A cell or struct array: its elements one after another, in columns."""
        fields: list[str] = []
        if kind == STRUCT:
            fields, at = self._fields(at, limit)
        count = math.prod(shape) * (len(fields) if kind == STRUCT else 1)
        if count * LEAST > limit - at:
            raise ReadError(
                f"{self.path}: a cell or struct array declares {count:,} elements in {limit - at:,} bytes; "
                "the file is broken or hostile, save it again"
            )
        values: list[Any] = []
        for _ in range(count):
            _, value, at = self.array(at, limit, depth + 1)
            values.append(value)
        if kind == STRUCT and fields:
            width = len(fields)
            values = [dict(zip(fields, values[i : i + width], strict=True)) for i in range(0, count, width)]
        found = np.empty(len(values), dtype=object)
        found[:] = values
        return found.reshape(shape if fields or kind == CELL else (0, 0), order="F")

    def _fields(self, at: int, limit: int) -> tuple[list[str], int]:
        """The names of a struct's fields, each in as many bytes as the longest."""
        length, at = self._numbers(at, limit)
        text, at = self._text(at, limit)
        if len(length) != 1 or length[0] < 1:
            raise self._broken("a struct without the length of its field names")
        width = int(length[0])
        return [text[i : i + width].split("\0")[0] for i in range(0, len(text), width)], at

    def _sparse(self, name: str, shape: tuple[int, ...], at: int, limit: int) -> np.ndarray:
        """A sparse matrix, filled in."""
        rows, at = self._numbers(at, limit)
        starts, at = self._numbers(at, limit)
        values, _ = self._numbers(at, limit)
        stored = int(starts[-1]) if len(starts) else 0
        if len(shape) != 2 or len(starts) != shape[1] + 1 or starts[0] != 0 or (np.diff(starts) < 0).any():
            raise self._broken(f"the sparse matrix {name!r} of shape {shape}")
        if stored > min(len(rows), len(values)) or (
            stored and not 0 <= rows[:stored].min() <= rows[:stored].max() < shape[0]
        ):
            raise self._broken(f"the sparse matrix {name!r} of shape {shape} has values outside it")
        check_expansion(self.path, math.prod(shape) * 8, self.path.stat().st_size, f"the sparse matrix {name!r}")
        full = np.zeros(shape)
        full[rows[:stored], np.repeat(np.arange(shape[1]), np.diff(starts))] = values[:stored]
        return full

    def _chars(self, shape: tuple[int, ...], at: int, limit: int) -> np.ndarray:
        """One text a row, without the blanks that fill it up."""
        kind, start, stop, _ = self.tag(at, limit)
        raw = self.data[start:stop]
        text = raw.decode(TEXTS[kind]) if kind in TEXTS else "".join(map(chr, self._numbers(at, limit)[0].tolist()))
        if len(text) != math.prod(shape):
            raise self._broken(f"{len(text):,} characters for the shape {shape}")
        return np.array([text[row :: shape[0]].rstrip() for row in range(shape[0])])

    def _numbers(self, at: int, limit: int) -> tuple[np.ndarray, int]:
        """The numbers of the element at a position, and where the next one is."""
        kind, start, stop, end = self.tag(at, limit)
        if kind not in TYPES:
            raise self._broken(f"an element of type {kind} at byte {at:,} where numbers should be")
        dtype = np.dtype(self.order + TYPES[kind])
        if (stop - start) % dtype.itemsize:
            raise self._broken(f"{stop - start:,} bytes at byte {at:,} for numbers of {dtype.itemsize}")
        return np.frombuffer(self.data[start:stop], dtype).astype(dtype.newbyteorder("=")), end

    def _text(self, at: int, limit: int) -> tuple[str, int]:
        """The name at a position, and where the next element is."""
        _, start, stop, end = self.tag(at, limit)
        return self.data[start:stop].decode("latin-1"), end

    def _broken(self, what: str) -> ReadError:
        return ReadError(f"{self.path}: {what}; the file is broken, copy or save it again")
