"""Split files of other tools: CLAM's ``splits_<i>.csv`` and ``splits_<i>_bool.csv``, Patho-Bench's ``k=all.tsv``.

A file is read first (`read_split_files`), and its names are matched with the bags afterwards (`match_splits`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from qgmil.bags import hints
from qgmil.bags.layouts.names import NameIndex, composed
from qgmil.bags.manifest import BagRecord, squashed
from qgmil.bags.readers.base import listing
from qgmil.bags.source import Item
from qgmil.bags.splits import SAME, SIDES, Split, check_split, with_val
from qgmil.bags.tabular import os_errors, read_lines
from qgmil.errors import SplitError

FILES = (".csv", ".tsv", ".txt")
NAME_COLUMNS = ("bagid", "slideid", "slide", "imageid", "image", "id", "caseid", "case", "patientid", "patient")
SIDE_COLUMN = re.compile(r"fold[ _-]?[0-9]+|split|part")
NOTHING = frozenset({"", "nan"})
Names = tuple[str, ...]  # of one row, the most specific first: its slide, its patient


@dataclass(frozen=True)
class SplitTable:
    """One split as a file has it.

    Args:
        name: of the fold: the file's stem, or the column's name.
        path: where it was read.
        sides: the rows of train, val and test; a row has one name or several, of which the first known one counts.
    """

    name: str
    path: Path
    sides: dict[str, tuple[Names, ...]]


@dataclass(frozen=True)
class MatchedSplits:
    """Splits over bag ids.

    Args:
        splits: in the order of the files.
        unused: bags in no part of any split, in their order.
        left_out: ``(id, reason)`` for the record: bags that some split leaves out, names without a bag.
    """

    splits: tuple[Split, ...]
    unused: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def from_files(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]],
    items: Sequence[Item],
    *,
    val: float = 0.2,
    seed: int = 0,
    missing: Collection[str] = (),
    skip_unknown: bool = False,
) -> MatchedSplits:
    """Read split files and match them with bags; arguments as for `read_split_files` and `match_splits`."""
    return match_splits(read_split_files(paths), items, val=val, seed=seed, missing=missing, skip_unknown=skip_unknown)


def read_split_files(paths: str | PathLike[str] | Sequence[str | PathLike[str]]) -> tuple[SplitTable, ...]:
    """Read splits from a file, several, or a folder of them.

    Of a folder: CLAM's ``splits_<i>.csv`` in the order of their numbers (else ``splits_<i>_bool.csv``), else
    ``k=all.tsv``, else every CSV and TSV file.

    Raises:
        SplitError: no split file, one of an unknown kind, or two splits with one name.
        ManifestError: a file that is no table of text.
    """
    given = [paths] if isinstance(paths, str | PathLike) else list(paths)
    files = [file for path in given for file in _files_of(Path(path))]
    tables = [table for file in files for table in _read(file)]
    if not tables:
        raise SplitError("no split file was given")
    if len({t.name for t in tables}) < len(tables):  # the same file of several folders
        tables = [SplitTable(f"{t.path.parent.name}-{t.name}", t.path, t.sides) for t in tables]
    names = [t.name for t in tables]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        path = next(t.path for t in tables if t.name == twice[0])
        raise SplitError(f"{path}: there are several splits called {listing(twice)}; give it once, or rename one")
    return tuple(tables)


def match_splits(
    tables: Sequence[SplitTable],
    items: Sequence[Item],
    *,
    val: float = 0.2,
    seed: int = 0,
    missing: Collection[str] = (),
    skip_unknown: bool = False,
) -> MatchedSplits:
    """Splits over the ids of `items`.

    A name is a bag id; else the id of a row, or the stem of a file, of a bag that holds several (a patient's slides).

    Args:
        tables: splits as read.
        items: the bags.
        val: share of a training part that becomes the validation part, by patient, where a split has none.
        seed: of that nested validation part.
        missing: ids that were left out on the way here; names that mean them are left out as well.
        skip_unknown: leave out names without a bag, and note them, instead of raising.

    Raises:
        SplitError: names without a bag, a bag or a patient on two sides, a part without bags.
    """
    known = _Known(items, missing)
    splits, unknown = [], []
    for table in tables:
        split, lost = _matched(table, known)
        unknown += [(name, table) for name in lost]
        splits.append(split)
    if unknown and not skip_unknown:
        raise SplitError(_unknown_names(unknown))
    groups = {item.bag_id: item.group for item in items}
    labels = {item.bag_id: item.label for item in items}
    for split, table in zip(splits, tables, strict=True):
        for side in ("train", "test"):
            if not split.sides()[side]:
                raise SplitError(f"{table.path}: split {table.name!r} has no bag in {side}")
        check_split(split, groups)
    used = [{i for ids in s.sides().values() for i in ids} for s in splits]
    unused = tuple(i for i in groups if not any(i in u for u in used))
    left_out = [(i, _lacking(i, splits, used)) for i in groups if not all(i in u for u in used)]
    named: dict[str, list[str]] = {}
    for name, table in unknown:
        named.setdefault(name, []).append(table.name)
    left_out += [(name, f"missing: named by {listing(by)}, but no such bag") for name, by in named.items()]
    finished = tuple(with_val(s, labels, groups, val=val, seed=seed) for s in splits)
    return MatchedSplits(finished, unused, tuple(left_out))


def _lacking(bag_id: str, splits: Sequence[Split], used: Sequence[set[str]]) -> str:
    without = [s.name for s, u in zip(splits, used, strict=True) if bag_id not in u]
    if len(without) < len(splits):
        return f"split: in no part of {listing(without)}"
    return "split: in no part of the split file" + "s" * (len(splits) > 1)


def _unknown_names(unknown: Sequence[tuple[str, SplitTable]]) -> str:
    path = unknown[0][1].path
    names = list(dict.fromkeys(name for name, table in unknown if table.path == path))
    others = len({table.path for _, table in unknown}) - 1
    more = f" ({others} more files name such bags)" if others else ""
    is_are = "bag that is" if len(names) == 1 else "bags that are"
    return (
        f"{path}: names {len(names)} {is_are} not in the table of bags: {listing(names, 10)}{more}; "
        f"correct the ids, or leave such names out with {hints.skip('missing')}"
    )


class _Known:
    """The bags by their names, and the names of those that were left out."""

    def __init__(self, items: Sequence[Item], missing: Collection[str]) -> None:
        self.order = {item.bag_id: n for n, item in enumerate(items)}
        self.ids = NameIndex((i, i) for i in self.order)
        self.inside = NameIndex(
            (name, item.bag_id) for item in items if isinstance(item, BagRecord) for name in _names_inside(item)
        )
        self.missing = NameIndex((i, i) for i in missing)

    def find(self, table: SplitTable, names: Names) -> str | None:
        """The bag that a row means; "" for one that was left out, None for none.

        Raises:
            SplitError: several bags could be meant.
        """
        # A data frame with gaps turns whole numbers into fractions: "12" is written as "12.0".
        spelt = [s for n in names for s in ((n, n[:-2]) if re.fullmatch(r"[0-9]+\.0", n) else (n,))]
        for index in (self.ids, self.inside):
            for name in spelt:
                if len(found := index.find(name)) > 1:
                    raise SplitError(f"{table.path}: {name!r} could be any of the bags {listing(found)}; rename them")
                if found:
                    return found[0]
        return "" if any(self.missing.find(name) for name in spelt) else None


def _names_inside(item: BagRecord) -> Iterable[str]:
    yield from item.merged
    for file in item.files:
        name = file.name.rpartition("::")[2] if "::" in file.name else file.stem
        yield name


def _matched(table: SplitTable, known: _Known) -> tuple[Split, list[str]]:
    """The split over bag ids, and the names without a bag."""
    place: dict[str, tuple[str, str]] = {}  # of a bag: its side, and the name that put it there
    told: dict[str, str] = {}  # names, and their side
    unknown = []
    for side in SIDES:
        for names in table.sides[side]:
            if (name := composed(names[0])) in told:
                raise SplitError(
                    f"{table.path}: split {table.name!r}: {names[0]!r} is in {told[name]} and again in {side}; "
                    "a bag belongs to one part, once"
                )
            told[name] = side
            bag = known.find(table, names)
            if bag is None:
                unknown.append(names[0])
            elif bag and place.setdefault(bag, (side, names[0]))[0] != side:
                other, first = place[bag]
                raise SplitError(
                    f"{table.path}: split {table.name!r}: {first!r} is in {other} but {names[0]!r} in {side}, and both "
                    f"are of bag {bag!r}; what is merged into one bag must be in one part"
                )
    ordered = sorted(place, key=lambda bag: known.order[bag])
    train, val, test = (tuple(b for b in ordered if place[b][0] == side) for side in SIDES)
    return Split(train, val, test, table.name), unknown


def _files_of(path: Path) -> list[Path]:
    """The split files that a path means, in order."""
    with os_errors(path):
        if not path.is_dir():
            return [path]
        files = sorted((f for f in path.iterdir() if f.suffix.lower() in FILES and f.is_file()), key=_by_number)
    for pattern in (r"splits_[0-9]+", r"splits_[0-9]+_bool", r"k=all"):
        if found := [f for f in files if re.fullmatch(pattern, f.stem, re.IGNORECASE)]:
            return found
    files = [f for f in files if not f.name.startswith(".") and not f.stem.endswith("_descriptor")]
    if not files:
        raise SplitError(f"{path}: has no split files (splits_0.csv ..., k=all.tsv, or other CSV and TSV files)")
    return files


def _by_number(path: Path) -> tuple[list[int], str]:
    """Order of files: splits_10 comes after splits_2."""
    return [int(n) for n in re.findall(r"[0-9]+", path.stem)], path.name


def _read(path: Path) -> list[SplitTable]:
    lines = read_lines(path)
    header = [cell.strip() for cell in lines[0][1]]
    rows = []
    for number, cells in lines[1:]:
        if any(c.strip() for c in cells[len(header) :]):
            raise SplitError(f"{path}: line {number} has {len(cells)} cells but the header has {len(header)}; mend it")
        rows.append((number, [c.strip() for c in cells[: len(header)]] + [""] * (len(header) - len(cells))))
    sides = {name: i for i, name in enumerate(header) if name.lower() in SAME}
    found = [SAME[name.lower()] for name in sides]
    if {"train", "test"} <= set(found):
        if len(set(found)) < len(found):
            raise SplitError(f"{path}: the columns {listing(sides)} mean one part twice; rename one")
        return [_clam(path, {SAME[name.lower()]: i for name, i in sides.items()}, header, rows)]
    named = {squashed(name): i for i, name in reversed(list(enumerate(header)))}
    ids = [named[name] for name in NAME_COLUMNS if name in named]
    folds = [i for i, name in enumerate(header) if SIDE_COLUMN.fullmatch(name.lower())]
    if not ids or not folds:
        raise SplitError(
            f"{path}: is no split file; expected columns train, val, test of ids (CLAM), or a column of ids such as "
            f"slide_id and columns fold_0, fold_1 ... of train, val, test (Patho-Bench). The columns are "
            f"{listing(header, 40)}"
        )
    single = len(folds) == 1 and not re.search("[0-9]", header[folds[0]])
    return [_column(path, path.stem if single else header[i], header, i, ids, rows) for i in folds]


def _clam(path: Path, columns: dict[str, int], header: list[str], rows: list[tuple[int, list[str]]]) -> SplitTable:
    """Columns of ids, or, beside a column of ids, columns of True and False."""
    cells = {cell.lower() for _, row in rows for cell in (row[i] for i in columns.values())}
    first = next((i for i in range(len(header)) if i not in columns.values()), None)
    flags = cells - {""} <= {"true", "false"} and cells != {""}
    if flags and first is None:
        raise SplitError(f"{path}: has columns of True and False but none of ids; write the ids as its first column")
    sides: dict[str, tuple[Names, ...]] = {}
    for side in SIDES:
        at = columns.get(side)
        if at is None:
            sides[side] = ()
        elif flags and first is not None:
            sides[side] = tuple((row[first],) for _, row in rows if row[at].lower() == "true")
        else:
            sides[side] = tuple((row[at],) for _, row in rows if row[at].lower() not in NOTHING)
    return SplitTable(path.stem, path, sides)


def _column(
    path: Path, name: str, header: list[str], at: int, ids: list[int], rows: list[tuple[int, list[str]]]
) -> SplitTable:
    """A column of train, val and test beside columns of ids; a blank cell is no part."""
    sides: dict[str, list[Names]] = {side: [] for side in SIDES}
    for number, row in rows:
        value = row[at].lower()
        if value in NOTHING:
            continue
        if value not in SAME:
            raise SplitError(
                f"{path}: line {number}: column {header[at]!r} has {row[at]!r}; expected train, val or test"
            )
        names = tuple(row[i] for i in ids if row[i])
        if not names:
            raise SplitError(f"{path}: line {number} has no {listing(header[i] for i in ids)}; name the bag")
        sides[SAME[value]].append(names)
    return SplitTable(name, path, {side: tuple(rows_) for side, rows_ in sides.items()})
