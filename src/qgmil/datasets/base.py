"""What every named data set shares: its card, what loading it gives, and where its files are looked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from qgmil.bags.dataset import BagDataset
from qgmil.bags.splits import Split
from qgmil.errors import ReadError

ROOT_VARIABLE = "QGMIL_DATA"


class AbsentDatasetError(ReadError):
    """The data set is not on this machine; the message says where it comes from and where to put it."""


@dataclass(frozen=True)
class DatasetInfo:
    """The card of a data set.

    Args:
        name: as `load_dataset` takes it.
        title: one line.
        task: what is predicted, of what, from what.
        classes: the labels, sorted.
        bags: how many there are, or None where that depends on options or on the copy.
        licence: of the data as published; "see provider" where it is not stated openly.
        citation: the paper or record to cite.
        url: where to get it.
        split: the official or recommended split, in words.
        layout: the files that are read, relative to the data set's folder.
        folders: other names its folder may have, in lower case.
    """

    name: str
    title: str
    task: str
    classes: tuple[str, ...]
    bags: int | None
    licence: str
    citation: str
    url: str
    split: str
    layout: str
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class NamedDataset:
    """A loaded data set.

    Args:
        info: its card.
        bags: the bags.
        recipe: makes `splits`; called when they are first asked for, because a part of a data set may be too small.
        path: the file or folder that was read.
        split_columns: names of the published splits that can be used as they are, one for each of `splits`; empty
            where `splits` are only recommended.
        published: published splits that are not recommended (they leak patients), as they are.
        notes: what was left out, and what to know.
    """

    info: DatasetInfo
    bags: BagDataset
    recipe: Callable[[], tuple[Split, ...]] = field(repr=False)
    path: Path
    split_columns: tuple[str, ...] = ()
    published: tuple[Split, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def splits(self) -> tuple[Split, ...]:
        """The official splits, or the recommended ones where there are none that hold.

        Raises:
            SplitError: too few patients in this copy of the data.
        """
        return self.recipe()


def data_root(root: str | os.PathLike[str] | None) -> Path | None:
    """The folder of data sets: the argument, else the environment variable ``QGMIL_DATA``, else None.

    Raises:
        ReadError: it is no folder.
    """
    chosen = root if root is not None else os.environ.get(ROOT_VARIABLE) or None
    if chosen is None:
        return None
    path = Path(chosen).expanduser()
    if not path.is_dir():
        source = "the root" if root is not None else f"{ROOT_VARIABLE} names"
        raise ReadError(f"{path}: is no folder, but {source} must be the folder that holds the data sets")
    return path


def find_folder(info: DatasetInfo, root: Path | None) -> Path | None:
    """The data set's folder in `root`, whatever the case of its name, or `root` itself if it has that name."""
    if root is None:
        return None
    names = {info.name, *info.folders}
    inside = sorted(p for p in root.iterdir() if p.name.lower() in names and p.is_dir())
    if inside:
        return inside[0]
    return root if root.resolve().name.lower() in names else None


def find_marked(info: DatasetInfo, root: Path | None, *markers: str, deep: bool = True) -> Path | None:
    """As `find_folder`, if the folder has one of these files (`deep`: or a folder in it has, as archives unpack)."""
    folder = find_folder(info, root)
    if folder is None:
        return None
    places = [folder, *(p for p in sorted(folder.iterdir()) if deep and p.is_dir())]
    return folder if any((place / marker).is_file() for place in places for marker in markers) else None


def absent(info: DatasetInfo, root: Path | None) -> AbsentDatasetError:
    """The error for a data set that is not here."""
    place = root / info.name if root is not None else f"ROOT/{info.name}"
    where = "" if root is not None else f", and set {ROOT_VARIABLE}=ROOT or give --root ROOT (root='ROOT' in Python)"
    return AbsentDatasetError(
        f"{info.name} is not on this machine: get it from {info.url}, put it into {place}{where}. "
        f"Expected there: {info.layout}"
    )


def nested(path: Path, marker: str) -> Path:
    """The folder that has the file `marker`: `path` or a folder in it (archives unpack into one of their own).

    Raises:
        ReadError: it is in none of them, or in several.
    """
    if (path / marker).is_file():
        return path
    found = sorted(p for p in path.iterdir() if p.is_dir() and (p / marker).is_file())
    if len(found) == 1:
        return found[0]
    said = "is in several folders" if found else "is neither there nor one folder deeper"
    raise ReadError(f"{path}: {marker} {said}; unpack the published archive as it is")
