"""What can be wrong with a table of bags: collected first, so that one error (or `qgmil check`) can list it all."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qgmil.bags import hints
from qgmil.bags.readers.base import listing
from qgmil.errors import ManifestError

SHOWN = 10
LONGEST = 2000  # characters of one problem
CONTROL = ("Cc", "Cs", "Zl", "Zp")  # control characters, broken text, line breaks
NO_LABEL = frozenset({"", "na", "n/a", "nan", "null"})


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `kind` for machines, `message` for people, `bag_id` where one bag is to blame."""

    kind: str
    bag_id: str | None
    message: str


def raise_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Raise one `ManifestError` that lists the problems, if there are any."""
    if not problems:
        return
    if len(problems) == 1:
        raise ManifestError(f"{path}: {_shortened(problems[0].message)}")
    shown = "".join(f"\n  - {_shortened(p.message)}" for p in problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise ManifestError(f"{path}: {len(problems)} problems:{shown}{more}")


def _shortened(text: str) -> str:
    """Both ends of a message in which a cell of a megabyte stands."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def missing_column(path: Path, column: str, columns: Sequence[str], option: str) -> ManifestError:
    """The error for a column that is not there: the closest name, and all there are."""
    by_lower = {c.lower(): c for c in columns}
    close = difflib.get_close_matches(column.lower(), by_lower, n=1, cutoff=0.5)
    name = by_lower[close[0]] if close else "NAME"
    said = hints.option(option, name)
    guess = f"did you mean {said}?" if close else f"name another with {said}."
    return ManifestError(f"{path}: there is no column {column!r}; {guess} The columns are {listing(columns, 40)}")


def bad_id(bag_id: str) -> str | None:
    """Why a text may not name a bag (files are named after bags), or None if it may."""
    if not bag_id.strip():
        return "it is blank"
    if "/" in bag_id or "\\" in bag_id:
        return "it contains a path separator"
    if ".." in bag_id or bag_id == ".":
        return "it contains '..' or is '.'"
    if _has(bag_id, (*CONTROL, "Cf")):  # Cf: invisible and direction-changing
        return "it contains control or invisible characters"
    return None


def bad_label(label: str | None) -> str | None:
    """Why a text may not name a class (classes become headers of tables), or None if it may."""
    if label is not None and _has(label, CONTROL):
        return "it contains a line break or another control character"
    return None


def _has(text: str, categories: Collection[str]) -> bool:
    return any(unicodedata.category(c) in categories for c in text)


def clean_label(text: str) -> str | None:
    """The label as written, or None where the cell means that there is none."""
    text = text.strip()
    return None if text.lower() in NO_LABEL else text


def sorted_labels(labels: Iterable[str | None]) -> tuple[str, ...]:
    """The different labels in order: by number where all are integers, else by text."""
    unique = {label for label in labels if label is not None}
    if all(re.fullmatch(r"[+-]?[0-9]{1,100}", label) for label in unique):  # Python refuses to read thousands
        return tuple(sorted(unique, key=lambda label: (int(label), label)))
    return tuple(sorted(unique))
