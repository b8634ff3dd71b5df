"""The table of hostile files: each is made by one function, and says how it must be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Make = Callable[[Path, Path], Path | str]


class Attack(NamedTuple):
    """One hostile file or folder.

    Args:
        reader: of which format it is.
        name: what it does.
        make: makes it below the first folder; in the second lies what it must not reach. Returns what is opened.
        act: how it is opened (`victim.ACTS`).
        says: what the message must say (a regular expression); None where it is harmless and must be read.
        error: the class of the error.
        names: what the message must name; None: the file that was opened.
        options: for the act; "labels" is a path below the folder.
    """

    reader: str
    name: str
    make: Make
    act: str
    says: str | None
    error: str
    names: str | None
    options: dict[str, Any]


ATTACKS: list[Attack] = []


def attack(
    reader: str,
    says: str | None,
    *,
    act: str = "read",
    error: str = "ReadError",
    names: str | None = None,
    **options: Any,
) -> Callable[[Make], Make]:
    """Put the function that makes a hostile file into the table."""

    def register(make: Make) -> Make:
        ATTACKS.append(Attack(reader, make.__name__, make, act, says, error, names, options))
        return make

    return register
