"""Files that belong to a feature file: looked for in a few fixed places beside it, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from qgmil.bags.readers.base import check_path
from qgmil.errors import ReadError

Place = tuple[int, str]
"""How many folders up from the feature file's own, and which folder (or ".") there."""


def beside(path: Path, places: Iterable[Place], name: str) -> Path | None:
    """The first file called `name` in one of the places, or None.

    The places are counted along the path as it was given: where a link to a feature file leads does not matter.

    Raises:
        ReadError: it is a link (or lies behind one) that leads out of the folder in which it should be, or it is no
            finished regular file.
    """
    found = _first(path, places, name)
    if found is None:
        return None
    base, file = found
    check_inside(file, base)
    check_path(file)
    return file


def check_inside(file: Path, base: Path) -> None:
    """Raise `ReadError` for what is a link (or lies behind one) that leads out of a folder, or nowhere."""
    try:
        inside = file.resolve().is_relative_to(base.resolve())
    except (OSError, RuntimeError):  # a circle of links
        inside = False
    if not inside:
        raise ReadError(
            f"{file}: is a link out of {base}; links to files elsewhere are not followed, copy the file into its place"
        )


def is_beside(path: Path, places: Iterable[Place], name: str) -> bool:
    """Whether something of that name is in one of the places, be it a file that can be used or not."""
    return _first(path, places, name) is not None


def _first(path: Path, places: Iterable[Place], name: str) -> tuple[Path, Path] | None:
    above = path.absolute().parents
    for levels, folder in places:
        if levels < len(above) and os.path.lexists(file := above[levels] / folder / name):
            return above[levels], file
    return None
