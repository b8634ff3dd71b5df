"""Patients on two sides of a split that the table has, or that a split file says."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from os import PathLike

from qgmil.bags import hints
from qgmil.bags.manifest import BagRecord
from qgmil.bags.problems import Problem
from qgmil.bags.readers.base import listing
from qgmil.bags.source import Item
from qgmil.bags.split_files import match_splits, read_split_files
from qgmil.bags.splits import SAME, from_column
from qgmil.errors import ManifestError, SplitError

SIDE = re.compile(rf"({'|'.join(sorted(SAME, key=len, reverse=True))})([ _-]?[a-z0-9])?")  # also "testA", "test_2"
FOLD_NAME = re.compile(r"(cv|k)?[ _-]?(fold|split)s?([ _-]?(id|nr|number|[0-9]+))?|part(ition)?|(sub)?set")
MOST_FOLDS = 50


def check_columns(items: Sequence[Item], columns: Sequence[str]) -> tuple[list[Problem], list[Problem]]:
    """Problems of the columns that were asked for, and warnings of others that look like a split.

    `items` are the rows of the table, before a patient's bags are merged.
    """
    records = [item for item in items if isinstance(item, BagRecord)]
    problems = []
    for column in columns:
        leak = _leak(records, column)
        try:
            if leak is None:
                from_column(records, column, val=0)
        except SplitError as error:
            leak = str(error)
        if leak is not None:
            problems.append(Problem("split", None, leak))
    others = [c for c in dict.fromkeys(c for r in records for c in r.extra) if c not in columns]
    found = ((column, _leak(records, column)) for column in others if _is_split(records, column))
    warnings = [
        Problem("split", None, f"{leak}; {hints.option('split_column', column)} refuses it")
        for column, leak in found
        if leak
    ]
    return problems, warnings


def check_files(items: Sequence[Item], paths: Sequence[str | PathLike[str]]) -> list[Problem]:
    """What is wrong with split files: unreadable, names without a bag, patients on two sides. One problem a split."""
    if not paths:
        return []
    try:
        tables = read_split_files(paths)
    except (SplitError, ManifestError) as error:
        return [Problem("split", None, str(error))]
    problems = []
    for table in tables:
        try:
            match_splits([table], items, val=0, skip_unknown=True)  # a leak first: it is worse than a missing bag
            match_splits([table], items, val=0)
        except SplitError as error:
            text = str(error)
            where = "" if str(table.path) in text else f" [file {table.path}]"
            problems.append(Problem("split", None, text + where))
    return problems


def _is_split(records: Sequence[BagRecord], column: str) -> bool:
    """Whether the values are train, val and test, or are numbers under a name that says fold."""
    values = {v for r in records if (v := r.extra.get(column, "").strip())}
    if len(values) < 2:
        return False
    if all(SIDE.fullmatch(v.lower()) for v in values):
        return True
    numbers = all(re.fullmatch(r"[0-9]+(\.0)?", v) for v in values)
    return numbers and len(values) <= MOST_FOLDS and bool(FOLD_NAME.fullmatch(column.strip().lower()))


def _leak(records: Sequence[BagRecord], column: str) -> str | None:
    """The patients on two sides of a column, or None."""
    sides: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if value := record.extra.get(column, "").strip():
            match = SIDE.fullmatch(value.lower())
            sides[record.group].add(SAME[match[1]] if match else value)
    torn = {group: sorted(found) for group, found in sides.items() if len(found) > 1}
    if not torn:
        return None
    where = " and ".join(dict.fromkeys(side for found in torn.values() for side in found))
    are = "patient is" if len(torn) == 1 else "patients are"
    return (
        f"column {column!r}: {len(torn)} {are} on several sides ({where}), so that the scores would be too good: "
        f"{listing(torn, 10)}"
    )
