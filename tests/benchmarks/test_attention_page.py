"""docs/attention.md has the figures of its tables, and the script that writes it finds what is there."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import attention


def test_the_page_is_what_the_tables_say() -> None:
    attention.attention(check=True)


@pytest.mark.parametrize("task", attention.TASKS)
def test_every_table_has_all_aggregators_on_the_same_bags(task: str) -> None:
    frame = pl.read_parquet(attention.TABLES / f"{task}.parquet")
    bags = {s: set(frame.filter(pl.col("source") == s)["bag_id"]) for s in attention.MODELS}
    assert frame["source"].n_unique() == len(attention.MODELS)
    assert len({frozenset(b) for b in bags.values()}) == 1
    assert frame.select(pl.col("top_10pct", "entropy").is_between(0, 1).all()).row(0) == (True, True)
    for figure in ("mass_curves", "faithfulness"):
        assert (attention.IMAGES / f"attention_{task}_{figure}.png").is_file()


def test_cells_of_a_benchmark_are_those_that_finished(tmp_path: Path) -> None:
    for name, finished in (("fold0_seed1", True), ("fold1_seed0", False), ("other", True)):
        (tmp_path / name).mkdir()
        if finished:
            (tmp_path / name / "metrics.json").write_text("{}")
    assert attention._cells(tmp_path) == {(0, 1)}


def test_cell_types_lie_beside_the_bags(tmp_path: Path) -> None:
    from types import SimpleNamespace

    (tmp_path / "cells.csv").write_text('bag_id,instance_id,cell_type\np,1,"Blast, no lineage spec"\n')
    spec = SimpleNamespace(datasets={"t": SimpleNamespace(manifest=str(tmp_path / "bags.csv"))})
    assert attention._cell_types(spec, "t") == {"1": "Blast, no lineage spec"}
    none = SimpleNamespace(datasets={"t": SimpleNamespace(manifest=None)})
    assert attention._cell_types(none, "t") == {}
