"""The results table survives kills, and says how long the rest takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from qgmil.benchmark import results
from qgmil.benchmark.results import COLUMNS, Results, read_rows
from qgmil.benchmark.timeleft import TimeLeft
from qgmil.errors import ReadError


def row(fold: int = 0, **changes: Any) -> dict[str, Any]:
    place = {"dataset": "d", "features": "", "model": "m", "fold": fold, "seed": 0}
    whole = {**place, "status": "finished", "fingerprint": "f", "seconds": 2.0, "test_probabilities": [[0.25, 0.75]]}
    return {**dict.fromkeys(COLUMNS), **whole, **changes}


def test_a_row_is_safe_when_it_was_added(tmp_path: Path) -> None:
    Results(tmp_path).add(row())
    assert not (tmp_path / "results.parquet").exists()
    assert read_rows(tmp_path) == [row()]
    kept = Results(tmp_path)
    kept.add(row(1))
    kept.flush([("d", "", "m", 1, 0), ("d", "", "m", 0, 0)])
    assert read_rows(tmp_path / "results.parquet") == [row(1), row()]
    assert not (tmp_path / "results.journal.jsonl").exists()


def test_a_later_row_of_a_cell_wins(tmp_path: Path) -> None:
    kept = Results(tmp_path)
    kept.add(row(status="failed", error="x"))
    kept.flush()
    kept.add(row())
    assert read_rows(tmp_path) == [row()]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    kept = Results(tmp_path)
    kept.add(row())
    with (tmp_path / "results.journal.jsonl").open("a") as file:
        file.write(json.dumps(row(1))[:50])
    assert read_rows(tmp_path) == [row()]


def test_what_no_longer_belongs_is_set_aside_and_never_lost(tmp_path: Path) -> None:
    kept = Results(tmp_path)
    for one in (row(0), row(1), row(2), row(0, model="gone")):
        kept.add(one)
    places = {("d", "", "m", fold, 0): "f" for fold in range(3)}
    assert kept.keep_only({**places, ("d", "", "m", 1, 0): "new"}) == 2
    kept.add(row(1, fingerprint="new"))
    kept.flush()
    stale = [row(1), row(0, model="gone")]
    assert read_rows(tmp_path) == read_rows(tmp_path / "results.parquet") == [row(0), row(2), row(1, fingerprint="new")]
    assert len(pl.read_csv(tmp_path / "results.csv")) == 3 and read_rows(tmp_path / "replaced.parquet") == stale
    kept.add(row(0, model="gone"))  # as if the tables had not been written before a kill
    kept = Results(tmp_path)
    assert kept.keep_only(places) == 2  # the old row of the place is appended, the one that is there is not doubled
    assert read_rows(tmp_path / "replaced.parquet") == [*stale, row(1, fingerprint="new")]
    assert kept.keep_only(places) == 0


def test_the_tables_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FLUSH_SECONDS", -1.0)
    Results(tmp_path).add(row())
    assert len(pl.read_csv(tmp_path / "results.csv")) == 1


def test_what_is_no_results_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"gone\.parquet: cannot read the results table"):
        read_rows(tmp_path / "gone.parquet")
    pl.DataFrame({"dataset": ["d"]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(ReadError, match=r"other\.parquet: is not a results table: it has no column 'features'"):
        read_rows(tmp_path / "other.parquet")
    pl.DataFrame([row()], schema=COLUMNS).drop("gini").write_parquet(tmp_path / "old.parquet")
    assert read_rows(tmp_path / "old.parquet") == [row()]  # from before a column was there


class Place:
    def __init__(self, dataset: str, model: str) -> None:
        self.dataset, self.features, self.model = dataset, "", model


def test_time_left_is_that_of_the_nearest_finished_cells() -> None:
    left = TimeLeft([row(seconds=2.0), row(1, seconds=4.0), row(2, model="slow", seconds=100.0)])
    assert left.of(Place("d", "m")) == 3.0  # type: ignore[arg-type]
    assert left.of(Place("other", "slow")) == 100.0  # type: ignore[arg-type]
    assert left.of(Place("d", "new")) == pytest.approx(106 / 3)  # type: ignore[arg-type]
    cells: Any = [Place("d", "m")] * 10 + [Place("d", "slow")]
    assert left.left(cells, 1) == 130.0 and left.left(cells, 4) == 100.0 and left.left([], 4) == 0.0
    assert TimeLeft().left(cells, 1) is None
