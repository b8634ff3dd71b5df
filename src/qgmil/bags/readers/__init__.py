"""Readers of feature files. A new layout is one new file here with ``NAME``, ``SUFFIXES`` and ``read`` (`Reader`).

A bag is named by a file, by one part of a file that holds several (``file.h5::part``), or by a folder of cells.
"""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import nullcontext
from functools import cache
from os import PathLike
from pathlib import Path

from qgmil.bags import hints
from qgmil.bags.readers import cells, h5, slideflow
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
    split_part,
)
from qgmil.errors import ReadError

__all__ = [
    "BagFile",
    "EmptyBagError",
    "LockedFileError",
    "MissingFileError",
    "Reader",
    "bag_file_shape",
    "bag_files",
    "bag_label",
    "check_bag_path",
    "feature_suffixes",
    "is_companion",
    "parts",
    "read_bag_file",
    "reader_for",
    "readers",
    "split_part",
]


@cache
def readers() -> dict[str, Reader]:
    """Every reader by name. Modules of this package without ``NAME`` are helpers."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if hasattr(module, "NAME"):
            more = {name: getattr(module, name, None) for name in ("recognises", "shape", "parts", "label")}
            folders = getattr(module, "FOLDERS", False)
            found[module.NAME] = Reader(module.NAME, tuple(module.SUFFIXES), module.read, folders=folders, **more)
    return found


def feature_suffixes() -> frozenset[str]:
    """The file endings that some reader knows, with their dots, in lower case."""
    return frozenset(suffix for reader in readers().values() for suffix in reader.suffixes)


def is_companion(path: str | PathLike[str]) -> bool:
    """Whether a file has the ending of a feature file but is only ever read beside one (slideflow's index)."""
    return Path(path).name.lower().endswith(slideflow.INDEX_SUFFIX)


def read_bag_file(path: str | PathLike[str], *, format: str | None = None, dataset: str | None = None) -> BagFile:
    """Read the instances of one file, of one part of a file (``file.h5::part``), or of a folder of cells.

    Args:
        path: the file, part or folder. A file whose own name has ``::`` in it is taken as it is.
        format: name of the reader; None chooses by ending and, where several share one, by content.
        dataset: name of the array that holds the features, for files with several; the same as a part.

    Returns:
        Features ``(N, D)`` in float16, bfloat16 or float32 with whatever else the file knows of its instances.

    Raises:
        ReadError: missing, broken, unsafe, unfinished, or of an unknown layout.
        EmptyBagError: no instances (a `BagError`).
    """
    path, dataset = _located(Path(path), dataset)
    reader = reader_for(path, format)
    with guarded(path, reader.name):
        return reader.read(path, dataset)


def bag_file_shape(
    path: str | PathLike[str], *, format: str | None = None, dataset: str | None = None
) -> tuple[int, int]:
    """``(N, D)`` of a file, without reading its features where the layout allows; N is 0 where it is empty.

    Raises:
        ReadError: as `read_bag_file`.
    """
    path, dataset = _located(Path(path), dataset)
    reader = reader_for(path, format)
    with guarded(path, reader.name):
        if reader.shape is not None:
            return matrix_shape(path, reader.shape(path, dataset))
        try:
            rows, width = reader.read(path, dataset).features.shape
        except EmptyBagError:
            return 0, 0
        return rows, width


def parts(path: str | PathLike[str], *, format: str | None = None) -> dict[str, str | None]:
    """The bags of a file that holds several, each with the label that the file has for it (None: it has none).

    ``f"{path}::{part}"`` names one of them. A file that is one bag has no parts.

    Raises:
        ReadError: as `read_bag_file`.
    """
    path, _ = _located(Path(path), None)
    reader = reader_for(path, format)
    if reader.parts is None:
        return {}
    with guarded(path, reader.name):
        return reader.parts(path)


def bag_label(path: str | PathLike[str], *, format: str | None = None, dataset: str | None = None) -> str | None:
    """The label that a layout keeps in or beside the features of a bag (ACMIL, torchmil, DSMIL), as text.

    Raises:
        ReadError: as `read_bag_file`.
    """
    path, dataset = _located(Path(path), dataset)
    reader = reader_for(path, format)
    if reader.label is None:
        return None
    with guarded(path, reader.name):
        return reader.label(path, dataset)


def bag_files(path: str | PathLike[str]) -> tuple[Path, ...]:
    """The files behind a cell of a manifest: itself, the file of a part, or those of a folder of cells.

    Raises:
        ReadError: a folder without feature files.
    """
    file, _ = split_part(Path(path))
    return tuple(cells.files(file)) if file.is_dir() else (file,)


def check_bag_path(path: str | PathLike[str]) -> None:
    """Refuse what is neither a finished regular file, a part of one, nor a folder of them; nothing is opened.

    Raises:
        MissingFileError, LockedFileError, ReadError.
    """
    _located(Path(path), None)


def reader_for(path: Path, format: str | None = None) -> Reader:
    """The reader of a file (or folder) that is there: the named one, or the one whose layout it has.

    Raises:
        ReadError: an unknown format, an unknown kind of file, or a layout that cannot be told.
    """
    known = readers()
    if format is not None and format not in known:
        raise ReadError(f"{path}: there is no format {format!r}; known formats: {listing(sorted(known))}")
    if path.is_dir():
        return _reader_of_folder(path, format)
    if format is not None:
        return known[format]
    suffix = path.suffix.lower()
    fitting = [r for r in known.values() if suffix in r.suffixes]
    if not fitting:
        formats = "; ".join(f"{r.name} ({', '.join(r.suffixes)})" for r in known.values() if r.suffixes)
        raise ReadError(f"{path}: unknown kind of file {path.suffix!r}; known formats: {formats}")
    # One look into an HDF5 file serves all layouts that share it.
    look = h5.open_h5(path) if suffix in h5.SUFFIXES else nullcontext()
    with guarded(path, f"a {path.suffix} file"), look as file:
        certain = [r for r in fitting if r.recognises is not None and r.recognises(path, file)]
    if len(certain) > 1:
        raise ReadError(
            f"{path}: could be any of {listing(r.name for r in certain)}; choose with {hints.option('format')}"
        )
    general = [r for r in fitting if r.recognises is None]
    if not certain and not general:
        raise ReadError(f"{path}: is not of the layout {listing(r.name for r in fitting)}")
    return (certain or general)[0]


def _reader_of_folder(path: Path, format: str | None) -> Reader:
    fitting = [r for r in readers().values() if r.folders and format in (None, r.name)]
    if not fitting:
        raise ReadError(
            f"{path}: is a folder, not a {format} file; name the file inside it, or read all files in it as the cells "
            f"of one bag with {hints.option('format', cells.NAME)}"
        )
    return fitting[0]


def _located(path: Path, dataset: str | None) -> tuple[Path, str | None]:
    """The file (or folder) and the array in it that are meant, once the file is known to be one."""
    file, part = split_part(path)
    check_path(file, folders=True)
    if part is not None and dataset not in (None, part):
        raise ReadError(
            f"{path}: names the part {part!r}, but {hints.option('dataset', dataset)} another; leave one of them out"
        )
    return file, part if part is not None else dataset
