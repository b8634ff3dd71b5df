"""Feature files that are still being written: a ``.lock`` lies beside them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from qgmil.bags.check.report import Lock
from qgmil.bags.manifest import BagRecord
from qgmil.bags.problems import Problem
from qgmil.bags.readers import feature_suffixes, split_part
from qgmil.bags.readers.base import listing
from qgmil.bags.source import Item

SUFFIX = ".lock"
DEAD = 24 * 3600  # no slide takes a day: its job has died
UNITS = (("day", 86400), ("hour", 3600), ("minute", 60))


def find_locks(items: Iterable[Item]) -> tuple[list[Lock], Problem | None]:
    """Every locked feature file in the folders of the bags, by name, and a warning about those outside the table.

    (A locked file of the table is a problem of its bag.)
    """
    listed = {on_disk(file) for item in items if isinstance(item, BagRecord) for file in item.files}
    cells = {file for file in listed if _is_folder(file)}
    locks = [lock for folder in sorted({file.parent for file in listed} | cells) for lock in _in_folder(folder)]
    others = [lock for lock in locks if not _is_read(Path(lock.file), listed, cells)]
    if not others:
        return locks, None
    said = listing(f"{Path(lock.file).name} (for {age(lock.age)})" for lock in others)
    what = "1 file" if len(others) == 1 else f"{len(others):,} files"
    are = "is" if len(others) == 1 else "are"
    message = (
        f"{what} beside those of the table {are} still being written: {said}; if they belong to the data "
        "set, wait for the extraction to end and write the table again"
    )
    return locks, Problem("lock", None, message)


def about_lock(text: str, locks: Sequence[Lock]) -> str:
    """The message about a locked file, with the age of its lock."""
    lock = next((lock for lock in locks if f"{lock.file}:" in text), None)
    if lock is None:
        return text
    dead = ": its job has most likely died" if lock.age > DEAD else ""
    return f"{text} [locked for {age(lock.age)}{dead}]"


def on_disk(file: Path) -> Path:
    """The file that a cell of the table means: "all.h5::slide" is a part of all.h5."""
    return split_part(file)[0]


def _is_folder(file: Path) -> bool:
    try:
        return file.is_dir()
    except (OSError, ValueError):  # said when the bag is read
        return False


def _is_read(file: Path, listed: set[Path], cells: set[Path]) -> bool:
    """Whether a file is in the table, or is there in a folder of cells that is: then its bag is said to be locked."""
    return file in listed or (file.parent in cells and file.exists())


def age(seconds: float) -> str:
    """A time in words: "3 minutes"."""
    for name, length in UNITS:
        count = int(seconds // length)
        if count:
            return f"{count} {name}{'s' * (count > 1)}"
    return f"{max(0, int(seconds))} s"


def _in_folder(folder: Path) -> list[Lock]:
    found = []
    now = time.time()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name.removesuffix(SUFFIX)
                if name != entry.name and Path(name).suffix.lower() in feature_suffixes():
                    seconds = max(0.0, now - entry.stat(follow_symlinks=False).st_mtime)
                    found.append(Lock(str(folder / name), round(seconds, 1)))
    except OSError:  # said when the bags of that folder are read
        return []
    return sorted(found, key=lambda lock: lock.file)
