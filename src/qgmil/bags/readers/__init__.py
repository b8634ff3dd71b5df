"""Readers of feature files. A new layout is one new file here with ``NAME``, ``SUFFIXES`` and ``read``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from os import PathLike
from pathlib import Path

from qgmil.bags import hints
from qgmil.bags.readers.base import (
    BagFile,
    EmptyBagError,
    LockedFileError,
    MissingFileError,
    Reader,
    check_path,
    guarded,
    listing,
    matrix_shape,
)
from qgmil.errors import ReadError

__all__ = [
    "BagFile",
    "EmptyBagError",
    "LockedFileError",
    "MissingFileError",
    "Reader",
    "bag_file_shape",
    "feature_suffixes",
    "read_bag_file",
    "readers",
]


@cache
def readers() -> dict[str, Reader]:
    """Every reader by name. Modules of this package without ``NAME`` are helpers."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if hasattr(module, "NAME"):
            recognises, shape = getattr(module, "recognises", None), getattr(module, "shape", None)
            found[module.NAME] = Reader(module.NAME, tuple(module.SUFFIXES), module.read, recognises, shape)
    return found


def feature_suffixes() -> frozenset[str]:
    """The file endings that some reader knows, with their dots, in lower case."""
    return frozenset(suffix for reader in readers().values() for suffix in reader.suffixes)


def read_bag_file(path: str | PathLike[str], *, format: str | None = None, dataset: str | None = None) -> BagFile:
    """Read the instances of one file.

    Args:
        path: the file.
        format: name of the reader; None chooses by ending and, where several share one, by content.
        dataset: name of the array that holds the features, for files with several.

    Returns:
        Features ``(N, D)`` in float16, bfloat16 or float32 with whatever else the file knows of its instances.

    Raises:
        ReadError: missing, broken, unsafe, unfinished, or of an unknown layout.
        EmptyBagError: no instances (a `BagError`).
    """
    path = Path(path)
    check_path(path)
    with guarded(path, format or f"a {path.suffix} file"):
        reader = _reader_for(path, format)
        with guarded(path, reader.name):
            return reader.read(path, dataset)


def bag_file_shape(
    path: str | PathLike[str], *, format: str | None = None, dataset: str | None = None
) -> tuple[int, int]:
    """``(N, D)`` of a file, without reading its features where the layout allows; N is 0 where it is empty.

    Raises:
        ReadError: as `read_bag_file`.
    """
    path = Path(path)
    check_path(path)
    with guarded(path, format or f"a {path.suffix} file"):
        reader = _reader_for(path, format)
        with guarded(path, reader.name):
            if reader.shape is not None:
                return matrix_shape(path, reader.shape(path, dataset))
            try:
                rows, width = reader.read(path, dataset).features.shape
            except EmptyBagError:
                return 0, 0
            return rows, width


def _reader_for(path: Path, format: str | None) -> Reader:
    known = readers()
    if format is not None:
        if format not in known:
            raise ReadError(f"{path}: there is no format {format!r}; known formats: {listing(sorted(known))}")
        return known[format]
    fitting = [r for r in known.values() if path.suffix.lower() in r.suffixes]
    if not fitting:
        formats = "; ".join(f"{r.name} ({', '.join(r.suffixes)})" for r in known.values())
        raise ReadError(f"{path}: unknown kind of file {path.suffix!r}; known formats: {formats}")
    certain = [r for r in fitting if r.recognises is not None and r.recognises(path)]
    if len(certain) > 1:
        raise ReadError(
            f"{path}: could be any of {listing(r.name for r in certain)}; choose with {hints.option('format')}"
        )
    general = [r for r in fitting if r.recognises is None]
    if not certain and not general:
        raise ReadError(f"{path}: is not of the layout {listing(r.name for r in fitting)}")
    return (certain or general)[0]
