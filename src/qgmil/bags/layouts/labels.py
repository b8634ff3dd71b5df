"""Tables of labels: which column names the bag, which its class, which its patient."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qgmil.bags import hints
from qgmil.bags.layouts.base import Columns
from qgmil.bags.layouts.names import composed
from qgmil.bags.manifest import DATASET_COLUMN, FORMAT_COLUMN, is_patient_like, squashed
from qgmil.bags.problems import Problem, clean_label, missing_column
from qgmil.bags.readers.base import listing
from qgmil.bags.tabular import TextTable, read_text_table
from qgmil.errors import ManifestError

IDS = (
    "bag_id", "slide_id", "slide", "slide_name", "filename", "file_name", "file", "wsi", "wsi_id", "image_id", "image",
    "image_name", "sample_id", "sample", "id", "name", "bag",
)  # fmt: skip
LABELS = ("label", "labels", "class", "target", "diagnosis", "outcome", "category", "subtype", "bag_label")
PATIENTS = ("patient_id", "patient", "case_id", "case", "subject_id", "subject")
NO_LABEL = re.compile(r"(fold|split|cv|cvfold|kfold)[0-9]*|part|set|subset|partition|path|filepath|features?")
FIXED = ("bag_id", "patient_id", "label", "features", FORMAT_COLUMN, DATASET_COLUMN)  # the manifest's own columns
SAMPLE, ENOUGH = 2000, 20  # rows that are tried first, and hits among them that settle it


@dataclass(frozen=True)
class LabelRow:
    """One row of a table of labels; `line` and `where` for messages."""

    name: str
    label: str | None
    patient: str | None
    extra: dict[str, str]
    where: str


@dataclass(frozen=True)
class Labels:
    """A table of labels as read: its rows, the lines that cannot be used, and the columns that were taken."""

    path: Path
    rows: tuple[LabelRow, ...]
    problems: tuple[Problem, ...]
    columns: dict[str, str | None]


@dataclass(frozen=True)
class Wanted:
    """Columns that the user named; None leaves them to be found. A patient of "none" is no column."""

    id: str | None = None
    label: str | None = None
    patient: str | None = None


def read_labels(
    path: Path, usual: Columns, wanted: Wanted, matches: Callable[[str], bool], *, need_label: bool
) -> Labels:
    """Read one table with a row a bag.

    Args:
        path: CSV (comma, semicolon, tab) or parquet.
        usual: names of columns to look for before the common ones.
        wanted: columns that the user named.
        matches: whether a cell names features that are there; it tells columns of ids apart.
        need_label: False where the folder has labels of its own, so that the table may have none.

    Raises:
        ManifestError: unreadable, or a column that is not there or cannot be told.
    """
    table = read_text_table(path)
    _check_rows(table)
    patient = _patient_column(table, usual, wanted)
    ids = _id_column(table, usual, wanted, matches)
    label = _label_column(table, usual, wanted, {ids, patient}, need_label)
    rows = tuple(
        LabelRow(
            name=cells[ids],
            label=clean_label(cells[label]) if label else None,
            patient=(cells[patient] or None) if patient else None,
            extra={c: v for c, v in cells.items() if c not in (ids, label, patient, *FIXED)},
            where=f"{table.word} {line}",
        )
        for line, cells in table.rows
    )
    return Labels(path, rows, table.problems, {"id": ids, "label": label, "patient": patient})


def read_patient_labels(
    path: Path, slides: Path, usual: Columns, wanted: Wanted, matches: Callable[[str], bool]
) -> Labels:
    """Read a table with a row a patient (STAMP's clini table) and one of each patient's slides (its slide table).

    The rows are those of the slides; patients without a slide have one row, named by themselves.

    Raises:
        ManifestError: as `read_labels`; a patient twice in the table of patients.
    """
    table, files = read_text_table(path), read_text_table(slides)
    _check_rows(table)
    _check_rows(files)
    patient = _patient_column(table, usual, wanted)
    if patient is None:
        raise missing_column(path, wanted.patient or "PATIENT", table.columns, "patient_id")
    other = _find(files, (patient, *usual.patient, *PATIENTS))
    if other is None:
        raise missing_column(slides, patient, files.columns, "patient_id")
    names = _id_column(files, usual, wanted, matches, taken=other)
    label = _label_column(table, usual, wanted, {patient}, True)
    assert label is not None
    by_patient: dict[str, dict[str, str]] = {}
    for line, cells in table.rows:
        if composed(cells[patient]) in by_patient:
            raise ManifestError(f"{path}: {table.word} {line}: patient {cells[patient]!r} is there twice; keep one row")
        by_patient[composed(cells[patient])] = cells
    rows, seen = [], set()
    for line, cells in files.rows:
        known = by_patient.get(composed(cells[other]), {})
        seen.add(composed(cells[other]))
        extra = {**known, **cells}
        rows.append(
            LabelRow(
                name=cells[names],
                label=clean_label(known.get(label, "")),
                patient=cells[other] or None,
                extra={c: v for c, v in extra.items() if c not in (names, label, patient, other, *FIXED)},
                where=f"{slides.name}, {files.word} {line}",
            )
        )
    for name, cells in by_patient.items():
        if name not in seen:
            rows.append(LabelRow(name, clean_label(cells[label]), name, {}, f"{path.name}, no row in {slides.name}"))
    columns: dict[str, str | None] = {"id": names, "label": label, "patient": patient}
    return Labels(path, tuple(rows), (*table.problems, *files.problems), columns)


def _check_rows(table: TextTable) -> None:
    if not table.rows and not table.problems:
        raise ManifestError(f"{table.path}: has a header but no rows")


def _find(table: TextTable, names: Sequence[str]) -> str | None:
    """The first column that is called one of these, whatever its case, blanks and punctuation."""
    have = {squashed(c): c for c in reversed(table.columns)}
    return next((have[squashed(n)] for n in names if squashed(n) in have), None)


def _patient_column(table: TextTable, usual: Columns, wanted: Wanted) -> str | None:
    if wanted.patient == "none":
        return None
    if wanted.patient is not None:
        return _named(table, wanted.patient, "patient_id")
    found = _find(table, (*usual.patient, *PATIENTS))
    return found or next((c for c in table.columns if is_patient_like(c)), None)


def _id_column(
    table: TextTable, usual: Columns, wanted: Wanted, matches: Callable[[str], bool], taken: str | None = None
) -> str:
    """The column named by the user; else, of the usual names, that which names most files; else the only such column.

    A column without a usual name must name files by different cells: an age of 61 is no id, though there is a 61.h5.
    """
    if wanted.id is not None:
        return _named(table, wanted.id, "bag_id")
    columns = [c for c in table.columns if c != taken]
    order = [squashed(n) for n in (*usual.id, *IDS, *usual.patient, *PATIENTS)]
    named = sorted((c for c in columns if squashed(c) in order), key=lambda c: order.index(squashed(c)))
    hits = _hits(table, named, matches)
    if named and (best := max(named, key=lambda c: hits[c])) and hits[best]:
        return best
    unique = [c for c in columns if len({cells[c] for _, cells in table.rows}) == len(table.rows)]
    hits = _hits(table, unique, matches)
    others = [c for c in unique if hits[c]]
    top = [c for c in others if hits[c] == max(hits[o] for o in others)]
    if len(top) == 1:
        return top[0]
    if named and not top:
        return named[0]
    why = f"{listing(top)} could both be it" if top else "no column names a feature file"
    raise ManifestError(
        f"{table.path}: cannot tell which column names the bags, {why}; the columns are {listing(table.columns, 40)}: "
        f"name it with {hints.option('bag_id')}"
    )


def _hits(table: TextTable, columns: Sequence[str], matches: Callable[[str], bool]) -> dict[str, int]:
    """How many cells of each column name features: among some rows of a long table, if that tells, else among all."""
    some = table.rows[:: max(1, len(table.rows) // SAMPLE)]
    for rows in (some, table.rows):
        hits = {c: sum(matches(cells[c]) for _, cells in rows if cells[c]) for c in columns}
        if len(some) == len(table.rows) or max(hits.values(), default=0) >= ENOUGH:
            break
    return hits


def _label_column(table: TextTable, usual: Columns, wanted: Wanted, taken: set[str | None], need: bool) -> str | None:
    if wanted.label is not None:
        return _named(table, wanted.label, "label")
    free = [c for c in table.columns if c not in taken]
    found = _find(TextTable(table.path, tuple(free), (), table.word), (*usual.label, *LABELS))
    if found is not None:
        return found
    left = [c for c in free if not NO_LABEL.fullmatch(squashed(c)) and not _names_bags(c, usual)]
    if not need:
        return None
    if len(left) == 1:
        return left[0]
    raise ManifestError(
        f"{table.path}: cannot tell which column is the label; the columns are {listing(table.columns, 40)}: name it "
        f"with {hints.option('label', left[0] if left else 'NAME')}"
    )


def _names_bags(column: str, usual: Columns) -> bool:
    known = {squashed(n) for n in (*usual.id, *IDS, *usual.patient, *PATIENTS)}
    return squashed(column) in known or is_patient_like(column)


def _named(table: TextTable, column: str, option: str) -> str:
    if column not in table.columns:
        raise missing_column(table.path, column, table.columns, option)
    return column
