"""`Manifest`: the table of bags. One row a bag: its id, its files, its label, its patient."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qgmil.bags import hints
from qgmil.bags.problems import (
    Problem,
    bad_id,
    bad_label,
    clean_label,
    missing_column,
    raise_problems,
    sorted_labels,
)
from qgmil.bags.readers.base import listing
from qgmil.bags.tabular import TextTable, read_text_table
from qgmil.errors import ManifestError
from qgmil.files import atomic_path

FILE_COLUMNS = (
    "features",
    "feature_path",
    "features_path",
    "feature_file",
    "features_file",
    "path",
    "file",
    "filename",
    "file_path",
    "filepath",
    "h5",
    "h5_path",
    "pt",
)
FORMAT_COLUMN, DATASET_COLUMN = "feature_format", "feature_dataset"
PATIENT_LIKE = frozenset({"patient", "patientid", "case", "caseid", "subject", "subjectid"})  # `squashed`


@dataclass(frozen=True)
class BagRecord:
    """One bag that has not been read yet.

    Args:
        bag_id: unique name, text.
        label: its class, or None where unknown.
        patient_id: the patient, or None where unknown (then the bag stands for itself).
        files: the feature files whose instances make up the bag.
        extra: every other column of its row (splits, for instance).
        line: where the row is in the table (0: there is no table).
        conflicts: columns on which the rows merged into this one disagree, with the values; they are not in `extra`.
        merged: ids of the rows merged into this one, where it stands for a patient.
        format, dataset: how its files are to be read, where they do not say so themselves (see `reading`).
    """

    bag_id: str
    label: str | None
    patient_id: str | None
    files: tuple[Path, ...]
    extra: dict[str, str] = field(default_factory=dict)
    line: int = 0
    conflicts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    merged: tuple[str, ...] = ()
    format: str | None = None
    dataset: str | None = None

    def reading(self, format: str | None = None, dataset: str | None = None) -> dict[str, str | None]:
        """How its files are read, as options of `read_bag_file`: what is given wins over what the record remembers."""
        if format is not None and self.format not in (None, format):
            return {"format": format, "dataset": dataset}  # what it knows of a data set is about the other format
        return {"format": format or self.format, "dataset": self.dataset if dataset is None else dataset}

    @property
    def group(self) -> str:
        """The unit that a split must not divide: the patient, or the bag where no patient is known."""
        return self.patient_id if self.patient_id is not None else self.bag_id


@dataclass(frozen=True)
class Manifest:
    """The bags of a table, in its order, with unique ids."""

    records: tuple[BagRecord, ...]
    source: Path | None = None

    def __len__(self) -> int:
        return len(self.records)

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        features: str | None = None,
        label: str = "label",
        bag_id: str = "bag_id",
        patient_id: str | None = "patient_id",
        require_labels: bool = True,
    ) -> Manifest:
        """Read a CSV (comma, semicolon, tab) or parquet table of bags.

        Args:
            path: the table. File cells are relative to its folder and may hold several paths separated by ";".
            features: the column of files; None takes the first of the usual names that is there.
            label: the column of labels. Blank cells are allowed here (see the method `require_labels`).
            bag_id: the column of unique names.
            patient_id: the column of patients; None means that every bag is a patient of its own.
            require_labels: False (prediction) allows the columns of labels and of patients to be missing; then
                every bag is a patient of its own.

        Raises:
            ManifestError: unreadable, a missing column, or (all of them listed, with lines) bad or duplicate ids,
                labels with control characters and rows without a file.
        """
        options = {"label": label, "bag_id": bag_id, "patient_id": patient_id, "require_labels": require_labels}
        manifest, problems = scan_manifest(Path(path), features=features, **options)  # type: ignore[arg-type]
        raise_problems(Path(path), problems)
        return manifest

    @classmethod
    def from_files(cls, paths: Iterable[str | os.PathLike[str]]) -> Manifest:
        """A manifest without labels of bare feature files; a file's stem is its bag id.

        Raises:
            ManifestError: no files, a stem that may not be an id, or one stem twice.
        """
        seen: dict[str, BagRecord] = {}
        for path in map(Path, paths):
            if reason := bad_id(path.stem):
                raise ManifestError(f"{path}: the bag would be called {path.stem!r}, but {reason}; rename the file")
            if path.stem in seen:
                raise ManifestError(
                    f"{path} and {seen[path.stem].files[0]} would both be bag {path.stem!r}; write a manifest with ids"
                )
            seen[path.stem] = BagRecord(path.stem, None, None, (path,))
        if not seen:
            raise ManifestError("no feature files were given")
        return cls(tuple(seen.values()))

    @property
    def bag_ids(self) -> tuple[str, ...]:
        """The ids, in order."""
        return tuple(r.bag_id for r in self.records)

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The labels, in order; None where unknown."""
        return tuple(r.label for r in self.records)

    @property
    def groups(self) -> tuple[str, ...]:
        """The patient of each bag, or its own id."""
        return tuple(r.group for r in self.records)

    @property
    def classes(self) -> tuple[str, ...]:
        """The different labels, sorted (by number where all are integers)."""
        return sorted_labels(self.labels)

    def require_labels(self) -> None:
        """Raise `ManifestError` listing the bags without a label, if there are any."""
        blank = [r.bag_id for r in self.records if r.label is None]
        if blank:
            raise ManifestError(
                f"{self.source or 'these files'}: {len(blank)} of {len(self)} bags have no label: {listing(blank)}; "
                f"fill them in, or {hints.skip('unlabelled')}"
            )

    def select(self, ids: Iterable[str]) -> Manifest:
        """The bags of these ids, in that order.

        Raises:
            ManifestError: unknown ids, or one twice.
        """
        by_id = {r.bag_id: r for r in self.records}
        wanted = list(ids)
        if unknown := [i for i in wanted if i not in by_id]:
            raise ManifestError(f"{self.source or 'the manifest'}: there is no bag {listing(unknown)}")
        if len(set(wanted)) < len(wanted):
            raise ManifestError(f"bag {listing(sorted({i for i in wanted if wanted.count(i) > 1}))} is asked for twice")
        return replace(self, records=tuple(by_id[i] for i in wanted))

    def per_patient(self) -> Manifest:
        """One bag a patient, of all files of its rows; bags without a patient stay as they are.

        Columns on which the rows of a patient disagree become the record's `conflicts`: no split can use them.

        Raises:
            ManifestError: rows of one patient with different labels.
        """
        records, problems = records_per_patient(self.records)
        raise_problems(self.source or Path("manifest"), problems)
        return replace(self, records=records)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table: bag_id, patient_id, label, features, how they are read where that is known, other columns.

        Files under the table's folder are written relative to it, others absolute.
        """
        path = Path(path)
        how = {FORMAT_COLUMN: [r.format for r in self.records], DATASET_COLUMN: [r.dataset for r in self.records]}
        how = {column: values for column, values in how.items() if any(values)}
        fixed = ("bag_id", "patient_id", "label", "features", *how)
        extra = [c for c in dict.fromkeys(c for r in self.records for c in r.extra) if c not in fixed]
        with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow([*fixed, *extra])
            for i, r in enumerate(self.records):
                files = ";".join(_written(f, path.parent) for f in r.files)
                read = [values[i] for values in how.values()]
                writer.writerow([r.bag_id, r.patient_id, r.label, files, *read, *(r.extra.get(c, "") for c in extra)])


def scan_manifest(
    path: Path,
    *,
    features: str | None = None,
    label: str = "label",
    bag_id: str = "bag_id",
    patient_id: str | None = "patient_id",
    require_labels: bool = True,
) -> tuple[Manifest, list[Problem]]:
    """As `Manifest.read`, with the rows that cannot be used left out and returned as problems instead of raised.

    The columns ``feature_format`` and ``feature_dataset``, where there are any, say how the files are read.

    Raises:
        ManifestError: unreadable, or a missing column.
    """
    table = read_text_table(path)
    file_column = _file_column(table, features)
    if bag_id not in table.columns:
        raise missing_column(path, bag_id, table.columns, "bag_id")
    if require_labels and label not in table.columns:
        raise missing_column(path, label, table.columns, "label")
    patient_column = _patient_column(table, patient_id, require_labels)
    used = {file_column, bag_id, label, patient_column, FORMAT_COLUMN, DATASET_COLUMN}
    rows = []
    for line, cells in table.rows:
        files = tuple(_resolved(part.strip(), path.parent) for part in cells[file_column].split(";") if part.strip())
        rows.append(
            BagRecord(
                bag_id=cells[bag_id],
                label=clean_label(cells.get(label, "")),
                patient_id=(cells[patient_column] or None) if patient_column else None,
                files=files,
                extra={c: v for c, v in cells.items() if c not in used},
                line=line,
                format=cells.get(FORMAT_COLUMN) or None,
                dataset=cells.get(DATASET_COLUMN) or None,
            )
        )
    records, problems = _usable(rows, table.word)
    problems = [*table.problems, *problems]
    if not rows and not problems:
        raise ManifestError(f"{path}: has a header but no bags")
    return Manifest(records, path), problems


def _usable(rows: Sequence[BagRecord], word: str) -> tuple[tuple[BagRecord, ...], list[Problem]]:
    """Rows with a good id, seen for the first time, a file and a good label; the others as problems."""
    problems = []
    by_id: dict[str, list[BagRecord]] = {}
    for row in rows:
        if reason := bad_id(row.bag_id):
            message = f"{word} {row.line}: bag id {row.bag_id!r} cannot be used, {reason}; give it another"
            problems.append(Problem("bad-id", row.bag_id, message))
            continue
        if reason := bad_label(row.label):
            message = (
                f"{word} {row.line}: the label {row.label!r} of bag {row.bag_id!r} cannot be used, {reason}; "
                "write it on one line"
            )
            problems.append(Problem("label", row.bag_id, message))
        by_id.setdefault(row.bag_id, []).append(row)
    for bag_id, same in by_id.items():
        if len(same) > 1:
            lines = ", ".join(str(r.line) for r in same[:10]) + (", ..." if len(same) > 10 else "")
            message = (
                f"bag id {bag_id!r} is there {len(same)} times ({word}s {lines}); several files of one bag "
                "belong in one cell, separated by ';'"
            )
            problems.append(Problem("duplicate-id", bag_id, message))
        if not same[0].files:
            message = f"{word} {same[0].line}: bag {bag_id!r} names no feature file; name it, or "
            problems.append(Problem("missing", bag_id, message + hints.skip("missing")))
    good = (same[0] for same in by_id.values())
    return tuple(row for row in good if row.files and not bad_label(row.label)), problems


def records_per_patient(records: Sequence[BagRecord]) -> tuple[tuple[BagRecord, ...], list[Problem]]:
    """One record a patient, and the patients that cannot be merged (left out) as problems.

    Columns on which a patient's rows disagree move from `extra` to `conflicts`, where `from_column` finds them.
    """
    merged, problems = [], []
    by_group: dict[str, list[BagRecord]] = {}
    for record in records:
        by_group.setdefault(record.group, []).append(record)
    for group, rows in by_group.items():
        if reason := bad_id(group):
            message = f"patient {group!r} cannot name a bag, {reason}; give it another id"
            problems.append(Problem("bad-id", group, message))
            continue
        labels = {row.label: row.bag_id for row in reversed(rows)}
        if len(labels) > 1:
            has = " but ".join(f"bag {i!r} has {'no label' if x is None else repr(x)}" for x, i in labels.items())
            problems.append(Problem("label", group, f"the bags of patient {group!r} disagree: {has}"))
            continue
        if len(ways := {(row.format, row.dataset): row.bag_id for row in reversed(rows)}) > 1:
            has = " but ".join(f"bag {i!r} as {f or 'what it is'}{f', {d}' if d else ''}" for (f, d), i in ways.items())
            message = f"the files of patient {group!r} are to be read in different ways ({FORMAT_COLUMN}): {has}"
            problems.append(Problem("format", group, message))
            continue
        values = {c: tuple(dict.fromkeys(row.extra.get(c, "") for row in rows)) for row in rows for c in row.extra}
        extra = {c: v[0] for c, v in values.items() if len(v) == 1}
        conflicts = {c: v for c, v in values.items() if len(v) > 1}
        files = tuple(f for row in rows for f in row.files)
        ids = tuple(i for row in rows for i in row.merged or (row.bag_id,))
        merged.append(replace(rows[0], bag_id=group, files=files, extra=extra, conflicts=conflicts, merged=ids))
    return tuple(merged), problems


def _file_column(table: TextTable, features: str | None) -> str:
    if features is not None:
        if features not in table.columns:
            raise missing_column(table.path, features, table.columns, "features")
        return features
    by_lower = {c.lower(): c for c in reversed(table.columns)}
    for name in FILE_COLUMNS:
        if name in by_lower:
            return by_lower[name]
    raise ManifestError(
        f"{table.path}: no column of feature files; the columns are {listing(table.columns, 40)}: "
        f"name one with {hints.option('features')}, or call it 'features'"
    )


def _patient_column(table: TextTable, patient_id: str | None, required: bool) -> str | None:
    if patient_id is None or patient_id in table.columns:
        return patient_id
    if not required:
        return None
    if patient_id != "patient_id":
        raise missing_column(table.path, patient_id, table.columns, "patient_id")
    # Splitting by bag although the table knows the patients would leak, and nobody would notice.
    alike = [c for c in table.columns if is_patient_like(c)]
    if alike:
        raise looks_like_patient(table.path, alike[0])
    return None


def squashed(name: str) -> str:
    """The name of a column in lower case without blanks and punctuation: "Case ID" and "case_id" are the same."""
    return re.sub(r"[\W_]+", "", name.lower())


def is_patient_like(name: str) -> bool:
    """Whether the name of a column says that it holds the patient."""
    return squashed(name) in PATIENT_LIKE


def looks_like_patient(path: Path, column: str) -> ManifestError:
    """The error for a table whose patients are in a column that nobody named."""
    return ManifestError(
        f"{path}: the column {column!r} looks like the patient; say {hints.option('patient_id', column)}, or "
        f"{hints.option('patient_id', None)} if every bag is a patient of its own"
    )


def _resolved(cell: str, folder: Path) -> Path:
    try:
        return folder / (Path(cell).expanduser() if cell.startswith("~") else cell)
    except RuntimeError:  # "~x.h5" is a file where there is no user x.h5
        return folder / cell


def _written(file: Path, folder: Path) -> str:
    if not str(file).isascii() and any("\ud800" <= c <= "\udfff" for c in str(file)):
        raise ManifestError(f"{str(file)!r}: a name that is no UTF-8 text cannot be written to a manifest; rename it")
    if ";" in str(file):
        raise ManifestError(f"{file}: a ';' in a file name cannot be written to a manifest; rename the file")
    absolute = file.absolute()
    root = folder.absolute()
    if not absolute.is_relative_to(root):
        return str(absolute)
    text = absolute.relative_to(root).as_posix()
    # Blanks around a cell are dropped when it is read, and "~" would be a home.
    return f"./{text}" if text.startswith("~") or text != text.lstrip() else text
