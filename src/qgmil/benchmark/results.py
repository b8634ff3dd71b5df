"""The results table: one row a cell, kept safe as cells finish, read back on any machine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from qgmil.benchmark.cells import GRID
from qgmil.errors import ReadError
from qgmil.files import append_json_line, atomic_path, read_json_lines

PARQUET, CSV, JOURNAL = "results.parquet", "results.csv", "results.journal.jsonl"
REPLACED = "replaced.parquet"
FLUSH_SECONDS = 30.0

_TEXT, _WHOLE, _NUMBER = pl.String(), pl.Int64(), pl.Float64()
METRICS = ("macro_f1", "auroc", "balanced_accuracy", "accuracy", "average_precision", "ece", "brier", "nll")
CALIBRATED = ("macro_f1", "ece", "brier", "nll")
VALIDATION = ("macro_f1", "auroc", "nll")
ATTENTION = ("top_1pct", "top_10pct", "entropy", "effective_share", "gini")
#: Names and types of the columns, in order.
COLUMNS: dict[str, pl.DataType] = {
    **dict.fromkeys(("dataset", "features", "model", "aggregator", "recipe"), _TEXT),
    **dict.fromkeys(("fold", "seed"), _WHOLE),
    **dict.fromkeys(("status", "error", "fingerprint"), _TEXT),
    **dict.fromkeys(("n_train", "n_val", "n_test", "parameters", "epochs", "best_epoch"), _WHOLE),
    **dict.fromkeys(("seconds", "peak_mb"), _NUMBER),
    "device": _TEXT,
    "temperature": _NUMBER,
    **dict.fromkeys(METRICS, _NUMBER),
    **{f"{name}_calibrated": _NUMBER for name in CALIBRATED},
    **{f"val_{name}": _NUMBER for name in VALIDATION},
    **dict.fromkeys((*ATTENTION, "instance_auroc", "instance_ap"), _NUMBER),
    **dict.fromkeys(("classes", "test_bags", "test_patients"), pl.List(pl.String())),
    "test_labels": pl.List(pl.Int64()),
    **dict.fromkeys(("test_probabilities", "test_calibrated"), pl.List(pl.List(pl.Float64()))),
}
#: Columns of lists, which only the parquet has.
LISTS = tuple(name for name, kind in COLUMNS.items() if isinstance(kind, pl.List))
Key = tuple[Any, ...]


def key_of(row: Mapping[str, Any]) -> Key:
    """A row's place in the grid."""
    return tuple(row[name] for name in GRID)


def as_table(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as a table of all columns; what a row lacks is null."""
    return pl.DataFrame([{name: row.get(name) for name in COLUMNS} for row in rows], schema=COLUMNS)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a results table, or of a benchmark's folder, which may have been killed.

    Raises:
        ReadError: not there, or not a results table.
    """
    path = Path(path)
    if path.is_dir():
        rows = {key_of(r): r for r in read_rows(path / PARQUET)} if (path / PARQUET).is_file() else {}
        rows |= {key_of(r): r for r in _read_journal(path / JOURNAL)}
        return list(rows.values())
    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ReadError(f"{path}: cannot read the results table ({error}); it must be a {PARQUET}") from None
    missing = [name for name in (*GRID, "status", "fingerprint") if name not in table.columns]
    if missing:
        raise ReadError(f"{path}: is not a results table: it has no column {missing[0]!r}")
    have = [
        (pl.col(name) if name in table.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in COLUMNS.items()
    ]
    try:
        return table.select(have).to_dicts()
    except pl.exceptions.PolarsError as error:
        raise ReadError(f"{path}: is not a results table ({error})") from None


def _read_journal(path: Path) -> list[dict[str, Any]]:
    """Its rows; one that a kill cut short is not among them, but its cell has a run folder."""
    return [{name: row.get(name) for name in COLUMNS} for row in read_json_lines(path)]


class Results:
    """The rows of a benchmark in its folder.

    A row is on the disk in the journal when `add` returns; the tables are written every half minute and by `flush`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[Key, dict[str, Any]] = {key_of(r): r for r in read_rows(folder)} if folder.is_dir() else {}
        self._written = time.monotonic()

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row, in place of an earlier one of the same cell."""
        whole = {name: row.get(name) for name in COLUMNS}
        append_json_line(self.folder / JOURNAL, whole)
        self.rows[key_of(whole)] = whole
        if time.monotonic() - self._written > FLUSH_SECONDS:
            self.flush()

    def keep_only(self, fingerprints: Mapping[Key, str]) -> int:
        """Set aside the rows of other cells, or of these under other settings; how many. `flush` is to follow.

        They are appended to `REPLACED` before they leave the tables, so that a kill in between loses none.

        Args:
            fingerprints: of the cells of the benchmark, by their place in the grid.

        Raises:
            ReadError: what was set aside earlier cannot be read.
        """
        stale = [row for key, row in self.rows.items() if row["fingerprint"] != fingerprints.get(key)]
        if stale:
            path = self.folder / REPLACED
            before = read_rows(path) if path.is_file() else []
            table = as_table([*before, *(row for row in stale if row not in before)])
            with atomic_path(path) as partial:
                table.write_parquet(partial)
        for row in stale:
            del self.rows[key_of(row)]
        return len(stale)

    def flush(self, order: Sequence[Key] = ()) -> None:
        """Write the tables, in the order of `order` where that is given; the journal has then done its work."""
        place = {key: i for i, key in enumerate(order)}
        keys = sorted(self.rows, key=lambda k: place.get(k, len(place)))
        self.rows = {k: self.rows[k] for k in keys}
        table = as_table(self.rows.values())
        with atomic_path(self.folder / PARQUET) as partial:
            table.write_parquet(partial)
        with atomic_path(self.folder / CSV) as partial:
            table.drop(LISTS).write_csv(partial)
        (self.folder / JOURNAL).unlink(missing_ok=True)
        self._written = time.monotonic()
