"""The files below a folder: listed once, never followed out of it."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from qgmil.bags.layouts.names import IMAGES, SLIDES
from qgmil.bags.readers import feature_suffixes, is_companion, reader_for
from qgmil.bags.tabular import TABLE_SUFFIXES, os_errors
from qgmil.errors import ManifestError, QGMILError

LOCK = ".lock"
TRIED = 5  # broken files before a layout is given up on


@dataclass(frozen=True)
class Tree:
    """What lies below a folder, hidden files apart.

    Args:
        root: the folder, absolute.
        files: feature files by the readers' endings, finished and of this very folder, in order.
        locked: feature files that are still being written (a ``.lock`` lies beside them).
        outside: links that lead out of the folder, and linked folders: none of them is followed.
        unreadable: folders below the root that cannot be listed.
        others: number of other files of each ending.
        pattern: which files the user chose by their names.
        dataset: the bag that is meant inside each h5 file, where the user named it.
        has_table: labels come from a table, so that folders need not be classes.
    """

    root: Path
    files: tuple[Path, ...]
    locked: tuple[Path, ...] = ()
    outside: tuple[Path, ...] = ()
    unreadable: tuple[Path, ...] = ()
    others: Counter[str] = field(default_factory=Counter)
    dataset: str | None = None
    has_table: bool = False
    pattern: str | None = None

    @classmethod
    def scan(
        cls, folder: Path, *, pattern: str | None = None, dataset: str | None = None, has_table: bool = False
    ) -> Tree:
        """List a folder, or the single file that holds a whole data set.

        Args:
            folder: what the user named; it may be a link itself.
            pattern: only feature files whose name matches, as in a shell ("*.h5").
            dataset, has_table: as for the class.

        Raises:
            ManifestError: not there, or not readable.
        """
        if "\0" in str(folder):
            raise ManifestError(f"{str(folder)!r}: a path cannot contain a zero byte; correct the path")
        with os_errors(folder):
            if not folder.exists():
                raise ManifestError(f"{folder}: no such folder; name the folder of feature files")
            root = Path(os.path.abspath(folder))  # noqa: PTH100 as it is named, so that paths below it stay short
            if not root.samefile(folder):  # ".." behind a link
                root = folder.resolve()
            if not root.is_dir():
                return cls(root.parent, (root,), dataset=dataset, has_table=has_table)
            found = _Listing(root, feature_suffixes() - TABLE_SUFFIXES, pattern)
            found.walk()
        locked = {f for f in found.files if f"{f}{LOCK}" in found.locks}
        files = tuple(sorted(f for f in found.files if f not in locked))
        return cls(
            root,
            files,
            locked=tuple(sorted(locked)),
            outside=tuple(sorted(found.outside)),
            unreadable=tuple(sorted(found.unreadable)),
            others=found.others,
            dataset=dataset,
            has_table=has_table,
            pattern=pattern,
        )

    def inside(self, file: Path) -> str:
        """The name of a file below the root, without its ending."""
        return file.relative_to(self.root).with_suffix("").as_posix()

    def under(self, folder: Path) -> list[Path]:
        """The feature files directly in a folder."""
        return [f for f in self.files if f.parent == folder]

    def folders(self, name: str) -> list[Path]:
        """The folders of that name (as in a shell) that hold feature files directly."""
        return [f for f in dict.fromkeys(f.parent for f in self.files) if fnmatch.fnmatchcase(f.name, name)]

    @cached_property
    def kind(self) -> str | None:
        """The reader of the first file that can be opened."""
        for file in self.files[:TRIED]:
            try:
                return reader_for(file).name
            except QGMILError:  # said when the bag is read
                continue
        return None

    def check_some(self) -> None:
        """Raise `ManifestError` where there are no feature files, and say what there is instead."""
        if self.files:
            return
        images = sum(n for suffix, n in self.others.items() if suffix in (*SLIDES, *IMAGES))
        why = f"it has {images} images, but no features: make features of them first" if images else ""
        if self.locked:
            why = f"all {len(self.locked)} are still being written (a {LOCK} lies beside them)"
        elif self.outside:
            raise ManifestError(f"{self.root}: {self.about_links()}")
        elif self.unreadable:
            why = f"{self.unreadable[0]} cannot be opened; check its permissions"
        known = ", ".join(sorted(feature_suffixes() - TABLE_SUFFIXES))
        raise ManifestError(f"{self.root}: there are no feature files ({known}){'; ' * bool(why)}{why}")

    def about_links(self) -> str:
        """That links are not followed, and what to do."""
        number, first = len(self.outside), self.outside[0].relative_to(self.root)
        what = "1 link leads" if number == 1 else f"{number:,} links lead"
        are, they = ("is", "it leads") if number == 1 else ("are", "they lead")
        return f"{what} out of the folder and {are} not followed (first: {first}); name the folder {they} to"


class _Listing:
    """Walks without following a link to a folder, or one out of the root."""

    def __init__(self, root: Path, suffixes: frozenset[str], pattern: str | None) -> None:
        self.root, self.real_root, self.suffixes, self.pattern = root, root.resolve(), suffixes, pattern
        self.files: list[Path] = []
        self.locks: set[str] = set()
        self.outside: list[Path] = []
        self.unreadable: list[Path] = []
        self.others: Counter[str] = Counter()

    def walk(self) -> None:
        """List everything below the root; a folder in it that cannot be listed is remembered."""
        waiting = [self.root]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(folder) as entries:
                    found = list(entries)
            except OSError:
                if folder == self.root:
                    raise
                self.unreadable.append(folder)
                continue
            for entry in found:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    self._file(entry)

    def _file(self, entry: os.DirEntry[str]) -> None:
        path = Path(entry.path)
        suffix = path.suffix.lower()
        if entry.is_symlink() and not self._stays(path):
            if path.is_dir() or self._wanted(path):
                self.outside.append(path)
        elif suffix == LOCK:
            self.locks.add(entry.path)
        elif self._wanted(path) and not is_companion(path) and _is_regular(path):
            self.files.append(path)
        else:
            self.others[suffix] += 1

    def _stays(self, link: Path) -> bool:
        try:
            return not link.is_dir() and link.resolve().is_relative_to(self.real_root)
        except (OSError, RuntimeError):  # a circle of links
            return False

    def _wanted(self, path: Path) -> bool:
        fits = self.pattern is None or fnmatch.fnmatchcase(path.name, self.pattern)
        return fits and path.suffix.lower() in self.suffixes


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a broken link
        return False
