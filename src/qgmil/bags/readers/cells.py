"""A folder with one feature file a cell (DinoBloom's .h5, .npy, ...), or with one file ``(N, D)`` (SCEMILA): one bag.

Files are taken in the natural order of their names (``cell_2`` before ``cell_10``); the names of the instances are
their stems, which is how a gallery finds the images. A file of several rows numbers them: ``features#0``.
Images, tables and sub-folders are left alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from qgmil.bags.readers import h5, npy, npz, pt, safetensors
from qgmil.bags.readers.base import BagFile, EmptyBagError, check_path, guarded, listing, matrix_shape, natural
from qgmil.errors import ReadError

NAME = "cells"
SUFFIXES: tuple[str, ...] = ()
FOLDERS = True
READERS = {suffix: reader for reader in (npy, npz, h5, pt, safetensors) for suffix in reader.SUFFIXES}

T = TypeVar("T")


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read every cell of a folder; `dataset` names the features in each file.

    Raises:
        ReadError: no feature files, one that cannot be used (it is named), two of one stem, or different widths.
    """
    found = files(path)
    if len(found) == 1:
        return _one(found[0], dataset)
    cells = [(file, _each(file, lambda f: READERS[f.suffix.lower()].read(f, dataset))) for file in found]
    first, one = cells[0]
    for file, cell in cells:
        if cell.features.shape[1] != one.features.shape[1]:
            raise _width(file, cell.features.shape[1], first, one.features.shape[1])
    labels = [cell.instance_labels for _, cell in cells]
    return BagFile(
        torch.cat([cell.features for _, cell in cells]),
        instance_labels=torch.cat([x for x in labels if x is not None]) if all(x is not None for x in labels) else None,
        instance_ids=tuple(name for file, cell in cells for name in _names(file, cell)),
    )


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """Rows of all files together and the width of the first, from their headers where those say it."""
    shapes = [_each(f, lambda f: matrix_shape(f, READERS[f.suffix.lower()].shape(f, dataset))) for f in files(path)]
    return sum(rows for rows, _ in shapes), shapes[0][1]


def files(path: Path) -> list[Path]:
    """The feature files of a folder in natural order of their names.

    Raises:
        ReadError: it is no folder or has none, two files of one stem, or a link that leads out of the folder.
    """
    if not path.is_dir():
        raise ReadError(f"{path}: is not a folder; the layout 'cells' is a folder with one feature file a cell")
    with os.scandir(path) as entries:
        found = [e for e in entries if _is_feature_file(e)]
    root = path.resolve()
    if out := [e.name for e in found if e.is_symlink() and not _stays(path / e.name, root)]:
        raise ReadError(
            f"{path / out[0]}: is a link out of the folder; links to files elsewhere are not followed, copy the file"
        )
    names = sorted((e.name for e in found), key=natural)
    if not names:
        raise ReadError(
            f"{path}: is a folder without feature files (endings {', '.join(READERS)}); name a file, or a folder "
            "that has the cells of one bag directly in it"
        )
    by_stem: dict[str, str] = {}
    for name in names:
        other = by_stem.setdefault(Path(name).stem, name)
        if other != name:
            raise ReadError(f"{path}: both {other!r} and {name!r} hold {Path(name).stem!r}; keep one of them")
    return [path / name for name in names]


def _one(file: Path, dataset: str | None) -> BagFile:
    """The bag of a folder with one file: an empty one is an empty bag."""
    check_path(file)
    with guarded(file, NAME):
        cell = READERS[file.suffix.lower()].read(file, dataset)
        return BagFile(cell.features, instance_labels=cell.instance_labels, instance_ids=tuple(_names(file, cell)))


def _is_feature_file(entry: os.DirEntry[str]) -> bool:
    return Path(entry.name).suffix.lower() in READERS and not entry.name.startswith(".") and not Path(entry).is_dir()


def _stays(link: Path, root: Path) -> bool:
    try:
        return link.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a circle of links
        return False


def _each(file: Path, load: Callable[[Path], T]) -> T:
    """Load one file under the rules of any other; an empty one is broken, for it should be a cell."""
    check_path(file)
    with guarded(file, NAME):
        try:
            return load(file)
        except EmptyBagError as error:
            raise ReadError(f"{error} (one cell of the bag {file.parent}); remove the file") from error


def _names(file: Path, cell: BagFile) -> list[str]:
    rows = cell.features.shape[0]
    if rows == 1:
        return [file.stem]
    return [f"{file.stem}#{name}" for name in (cell.instance_ids or range(rows))]


def _width(file: Path, width: int, first: Path, expected: int) -> ReadError:
    return ReadError(
        f"{file}: has {width} features where {first.name} has {expected}; all cells of {listing([file.parent.name])} "
        "must come from one encoder"
    )
