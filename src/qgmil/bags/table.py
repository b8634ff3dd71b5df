"""Long tables: one row an instance, with its bag's label and id beside its features."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path

import numpy as np
import polars as pl
import torch

from qgmil.bags import hints
from qgmil.bags.bag import Bag
from qgmil.bags.manifest import FILE_COLUMNS, is_patient_like, looks_like_patient, squashed
from qgmil.bags.problems import Problem, bad_id, bad_label, clean_label, missing_column, raise_problems
from qgmil.bags.readers.base import listing
from qgmil.bags.tabular import (
    cells_of,
    check_table_path,
    decode,
    is_parquet,
    long_cells,
    os_errors,
    read_bytes,
    read_parquet,
    sniff_separator,
)
from qgmil.errors import ManifestError

BAG_COLUMNS = ("bag", "bag_id")
# What such columns hold names a bag or an instance, places it, or gives the answer away: no feature by accident.
NO_FEATURES = re.compile(
    r"|labels?|class|target|diagnosis|bag|bagid|(slide|image|sample)(id)?"
    r"|(fold|split|cv|cvfold)s?[0-9]*|set|part|subset|partition"
    r"|x|y|(coords?|pos|tile|patch|cell)[xy]|[xy](coord|pos)|row|col|column"
    r"|(instance|cell|tile|patch|row)(id|index|label)?s?|id|index|unnamed[0-9]+|indexlevel[0-9]+"
)
MAX_PROBLEMS = 100  # a column of text in a table of features would otherwise be a million


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns; the rest are features."""

    label: int | None
    bag: int
    patient: int | None
    ignored: tuple[int, ...] = ()

    def features(self, width: int) -> list[int]:
        others = {self.label, self.bag, self.patient, *self.ignored}
        return [i for i in range(width) if i not in others]


def looks_like_table(
    path: str | PathLike[str],
    *,
    label: str = "label",
    bag_id: str | None = None,
    patient_id: str | None = "patient_id",
) -> bool:
    """Whether a CSV or parquet file is a long table of instances rather than a manifest of files (by content)."""
    path = Path(path)
    check_table_path(path)
    if is_parquet(path):
        frame = read_parquet(path).head(1)
        header, first = frame.columns, [str(v) for v in next(iter(frame.rows()), ())]
    else:
        lines = _first_lines(path, 2)
        if not _is_header(lines[0]):
            return True
        header, first = lines[0], lines[1] if len(lines) > 1 else []
    names = [c.strip().lower() for c in header]
    bags = {*BAG_COLUMNS, *([] if bag_id is None else [bag_id.lower()])}
    if not bags & set(names) or set(FILE_COLUMNS) & set(names):
        return False
    keys = {*bags, label.lower(), (patient_id or "").lower()}
    values = {name: v for name, v in zip(names, first, strict=False) if name not in keys}
    likely = [v for name, v in values.items() if not _no_feature(name)]
    return _mostly_numbers(likely or list(values.values()))


def read_table(
    path: str | PathLike[str],
    *,
    label: str = "label",
    bag_id: str | None = None,
    patient_id: str | None = "patient_id",
    require_labels: bool = True,
) -> list[Bag]:
    """Read a long table into bags, in the order in which they first appear.

    With a header: the columns `label`, `bag_id` (None: "bag" or "bag_id") and, if there, `patient_id`; all others
    are features. Columns whose names say patient, label, split, position or number of an instance are never features:
    those of a patient are refused where `patient_id` is not there and else left out, the others are refused.
    Without a header (first line all numbers): column 0 is the label, column 1 the bag.
    Labels "1.0" and "1" are the same label "1". Features are float32. ``require_labels=False`` (prediction) allows
    the columns of labels and of patients to be missing.

    Raises:
        ManifestError: unreadable, a missing column, one that cannot be a feature, cells that are blank or no numbers
            (bag, line, column and value are named), or different labels or patients inside a bag.
    """
    options = {"label": label, "bag_id": bag_id, "patient_id": patient_id, "require_labels": require_labels}
    bags, problems = scan_table(Path(path), **options)  # type: ignore[arg-type]
    raise_problems(Path(path), problems)
    return bags


def scan_table(
    path: Path,
    *,
    label: str = "label",
    bag_id: str | None = None,
    patient_id: str | None = "patient_id",
    require_labels: bool = True,
) -> tuple[list[Bag], list[Problem]]:
    """As `read_table`, with the bags that cannot be used left out and returned as problems instead of raised."""
    check_table_path(path)
    frame, has_header, first_line = _frame(path)
    word = "row" if is_parquet(path) else "line"
    columns = _columns(path, frame, has_header, label, bag_id, patient_id, require_labels)
    if not columns.features(frame.width):
        raise ManifestError(f"{path}: has no columns of features beside {frame.columns}")
    names = frame.columns if has_header else [str(i) for i in range(frame.width)]
    lines = np.arange(frame.height) + first_line
    kept = ~frame.select(pl.all_horizontal(pl.all().is_null())).to_series().to_numpy()  # blank lines
    frame, lines = frame.filter(pl.Series(kept)), lines[kept]
    if frame.height == 0:
        raise ManifestError(f"{path}: has no instances")
    ids, labels, patients = (_texts(frame, i) for i in (columns.bag, columns.label, columns.patient))
    labels = [_plain_number(text) for text in labels]
    values, problems = _numbers(frame, columns.features(frame.width), names, ids, lines, word)
    bags = []
    for name, rows in _rows_by_bag(ids).items():
        where = f"{word} {lines[rows[0]]}"
        found = _bag_problems(name, where, rows, labels, patients, lines, word)
        if found or any(p.bag_id == name for p in problems):
            problems += found
            continue
        patient = patients[rows[0]] or None
        bags.append(Bag(torch.from_numpy(values[rows]), clean_label(labels[rows[0]]), name, patient))
    return bags, problems


def _frame(path: Path) -> tuple[pl.DataFrame, bool, int]:
    """The cells, whether the columns have names, and the number of the first line of data."""
    if is_parquet(path):
        return read_parquet(path), True, 1
    raw = read_bytes(path)
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raw = decode(path, raw).encode()
    body = raw.lstrip(b"\r\n")
    skipped = raw[: len(raw) - len(body)].count(b"\n")
    first = _first_lines(path, 1)[0]
    separator = sniff_separator(body.split(b"\n", 1)[0].decode("utf-8", "replace"))
    try:
        frame = pl.read_csv(body, separator=separator, has_header=False, infer_schema=False)
    except Exception as error:  # polars names no line
        decode(path, raw)
        raise _ragged(path, raw, separator, error) from error
    if not _is_header(first):
        return frame, False, skipped + 1
    names = [str(v or "").strip().lstrip("\ufeff") for v in frame.row(0)]
    if len(set(names)) < len(names):
        twice = next(n for n, count in Counter(names).items() if count > 1)
        raise ManifestError(f"{path}: the column {twice!r} is there twice")
    return frame[1:].rename(dict(zip(frame.columns, names, strict=True))), True, skipped + 2


def _ragged(path: Path, raw: bytes, separator: str, error: Exception) -> ManifestError:
    reader = csv.reader(io.StringIO(raw.decode()), delimiter=separator)
    width = None
    with long_cells():
        for cells in reader:
            width = width or len(cells)
            if cells and len(cells) != width:
                return ManifestError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells but the first has {width}; mend that line"
                )
    return ManifestError(f"{path}: cannot be read as CSV ({str(error).splitlines()[0]})")


def _columns(
    path: Path,
    frame: pl.DataFrame,
    has_header: bool,
    label: str,
    bag_id: str | None,
    patient_id: str | None,
    require_labels: bool,
) -> _Columns:
    if not has_header:
        if frame.width < 3:
            raise ManifestError(f"{path}: has {frame.width} columns; expected label, bag and at least one feature")
        return _Columns(0, 1, None)
    names = frame.columns
    bag = bag_id or next((c for c in BAG_COLUMNS if c in names), BAG_COLUMNS[0])
    if bag not in names:
        raise missing_column(path, bag, names, "bag_id")
    if require_labels and label not in names:
        raise missing_column(path, label, names, "label")
    position = {name: i for i, name in enumerate(names)}
    patient = position.get(patient_id) if patient_id else None
    known = (position.get(label), position[bag], patient)
    alike = [i for i, name in enumerate(names) if i not in known and is_patient_like(name)]
    if patient_id is not None and patient is None and require_labels:
        if patient_id != "patient_id":
            raise missing_column(path, patient_id, names, "patient_id")
        # Such a column would become a feature, and its patients would be split in two.
        if alike:
            raise looks_like_patient(path, names[alike[0]])
    columns = _Columns(position.get(label), position[bag], patient, tuple(alike))
    _check_features(path, [names[i] for i in columns.features(len(names))])
    return columns


def _no_feature(name: str) -> bool:
    return is_patient_like(name) or bool(NO_FEATURES.fullmatch(squashed(name)))


def _check_features(path: Path, names: list[str]) -> None:
    """Refuse columns that are hardly meant as features; which of them is the label or the bag, the user can say."""
    odd = [n for n in names if _no_feature(n)]
    if odd:
        one = "has no name (the index of a data frame?)" if not odd[0] else f"{odd[0]!r} would become a feature"
        more = f" (as would {listing(odd[1:], 10)})" if odd[1:] else ""
        raise ManifestError(
            f"{path}: the column {one}{more}; in a long table every column is one except the label "
            f"({hints.flag('label')}), the bag ({hints.flag('bag_id')}) and the patient ({hints.flag('patient_id')}; "
            "label, bag_id and patient_id in Python): take the column out of the table, or, if it is a feature, "
            "give it another name"
        )


def _numbers(
    frame: pl.DataFrame, columns: list[int], names: Sequence[str], ids: list[str], lines: np.ndarray, word: str
) -> tuple[np.ndarray, list[Problem]]:
    """Features ``(N, D)`` float32, and a problem for each cell that is no number."""
    texts = frame[:, columns]
    numbers = texts.select(pl.all().cast(pl.Float64, strict=False))
    problems: list[Problem] = []
    for i, missing in enumerate(numbers.null_count().row(0)):
        if not missing:
            continue
        column = texts.to_series(i)
        if column.dtype == pl.String:  # " 1.5" is a number too, but looking at every cell for it is slow
            numbers.replace_column(i, column.str.strip_chars().cast(pl.Float64, strict=False))
        for row in numbers.to_series(i).is_null().arg_true().to_list():
            value = column[row]
            what = "is blank" if value is None or not str(value).strip() else f"is {value!r}, not a number"
            where = f"bag {ids[row]!r}, {word} {lines[row]}, column {names[columns[i]]!r}"
            problems.append(Problem("number", ids[row], f"{where}: the feature {what}"))
            if len(problems) >= MAX_PROBLEMS:
                return numbers.to_numpy().astype(np.float32), problems
    return np.ascontiguousarray(numbers.to_numpy().astype(np.float32)), problems


def _bag_problems(
    name: str, where: str, rows: list[int], labels: list[str], patients: list[str], lines: np.ndarray, word: str
) -> list[Problem]:
    if reason := bad_id(name):
        return [Problem("bad-id", name, f"{where}: bag id {name!r} cannot be used, {reason}; give it another")]
    if reason := bad_label(labels[rows[0]]):
        message = f"{where}: the label {labels[rows[0]]!r} of bag {name!r} cannot be used, {reason}"
        return [Problem("label", name, f"{message}; write it on one line")]
    for what, values in (("label", labels), ("patient", patients)):
        other = next((r for r in rows if values[r] != values[rows[0]]), None)
        if other is not None:
            message = (
                f"bag {name!r} has {what} {values[rows[0]]!r} on {where} but {values[other]!r} on "
                f"{word} {lines[other]}; one bag has one {what}"
            )
            return [Problem("label", name, message)]
    return []


def _rows_by_bag(ids: list[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        rows.setdefault(name, []).append(row)
    return rows


def _texts(frame: pl.DataFrame, column: int | None) -> list[str]:
    if column is None:
        return [""] * frame.height
    return ["" if v is None else str(v).strip() for v in frame.to_series(column).to_list()]


def _plain_number(text: str) -> str:
    return str(int(text.split(".")[0])) if re.fullmatch(r"[+-]?[0-9]{1,100}\.0*", text) else text


def _first_lines(path: Path, count: int) -> list[list[str]]:
    """The cells of the first lines that are not blank."""
    with os_errors(path), path.open("rb") as handle:
        utf16 = handle.read(2) in (b"\xff\xfe", b"\xfe\xff")
    with os_errors(path), path.open(encoding="utf-16" if utf16 else "utf-8-sig", errors="replace", newline="") as text:
        lines = list(islice((line for line in text if line.strip()), count))
    if not lines:
        raise ManifestError(f"{path}: has no lines")
    separator = sniff_separator(lines[0])
    return [cells_of(line, separator) for line in lines]


def _is_header(cells: list[str]) -> bool:
    """Whether a first line names columns: a long table without a header has numbers from the third cell on."""
    return len(cells) < 3 or not _mostly_numbers(cells[2:])


def _mostly_numbers(cells: Sequence[str]) -> bool:
    numbers = sum(1 for c in cells if _is_number(c))
    return bool(cells) and 2 * numbers > len(cells)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
