"""NumPy ``.npy``: one array ``(N, D)``. Never unpickles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO

import numpy as np

from qgmil.bags import hints
from qgmil.bags.readers.base import BagFile, as_features
from qgmil.errors import ReadError

NAME = "npy"
SUFFIXES = (".npy",)


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read features ``(N, D)``; the file knows nothing else."""
    no_dataset(path, dataset)
    return BagFile(as_features(path, read_array(path)))


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """The declared shape, from the header alone."""
    no_dataset(path, dataset)
    with path.open("rb") as handle:
        return header(path, handle, path.stat().st_size)[0]


def read_array(path: Path) -> np.ndarray:
    """The array of a file."""
    with path.open("rb") as handle:
        return read_stream(path, handle, path.stat().st_size)


def read_stream(path: Path, handle: IO[bytes], size: int, strings: bool = False) -> np.ndarray:
    """The array in a stream of `size` bytes that starts at its magic number (a file, or a member of an archive)."""
    header(path, handle, size, strings)
    handle.seek(0)
    array: np.ndarray = np.lib.format.read_array(handle, allow_pickle=False)
    return array


def header(path: Path, handle: IO[bytes], size: int, strings: bool = False) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type, once they are known to be plain numbers that the stream is long enough to hold.

    Raises:
        ReadError: Python objects, or a size beyond the end of the stream.
    """
    version = np.lib.format.read_magic(handle)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(handle)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(handle)
    else:
        raise ReadError(f"{path}: npy version {version} is not for plain numbers; save it again with numpy.save")
    if dtype.hasobject:
        raise ReadError(
            f"{path}: holds Python objects (a pickle), which could run code when opened; "
            "save one numeric array with numpy.save"
        )
    if dtype.kind not in ("fiubUS" if strings else "fiub"):
        raise ReadError(f"{path}: the array is of type {dtype}; expected numbers")
    declared, stored = math.prod(shape) * dtype.itemsize, size - handle.tell()
    if min(shape, default=0) < 0 or declared > stored:
        raise ReadError(
            f"{path}: the header declares shape {shape} ({declared:,} bytes) but {stored:,} follow; "
            "the file is cut short, copy or make it again"
        )
    return shape, dtype


def no_dataset(path: Path, dataset: str | None) -> None:
    """Refuse the name of a data set: there is none to name.

    Raises:
        ReadError: one is given.
    """
    if dataset is not None:
        raise ReadError(
            f"{path}: a .npy file holds one array without a name; leave out {hints.option('dataset', dataset)}"
        )
