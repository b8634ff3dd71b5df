"""The files of a measurement: tables and figures in one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from qgmil.analysis.figures import entropy_figure, faithfulness_figure, head_figure
from qgmil.analysis.records import Record
from qgmil.analysis.summary import compare_records, summarise_records
from qgmil.analysis.tables import bag_rows, head_rows, markdown
from qgmil.attention.concentration import SHARES
from qgmil.attention.faithfulness import advantage, verdict
from qgmil.attention.figures import mass_curve_figure, save_figure
from qgmil.files import atomic_path, write_csv, write_text

TABLES = ("bags.parquet", "bags.csv", "summary.csv", "attention.md")


def write_measurement(
    folder: Path, sources: Mapping[str, Sequence[Record]], *, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, str]]:
    """Write tables and figures; returns the summary, the comparisons and the verdict of each source."""
    records = [r for found in sources.values() for r in found]
    summary = summarise_records(sources, seed=seed)
    compared = compare_records(sources, seed=seed)
    verdicts = {name: text for name, found in sources.items() if (text := verdict_of(found, seed=seed)) is not None}
    write_table(folder / "bags", bag_rows(records))
    write_csv(folder / "summary.csv", summary)
    if compared:
        write_csv(folder / "comparison.csv", compared)
    heads = head_rows(records)
    if heads:
        write_table(folder / "heads", heads)
    write_text(folder / "attention.md", markdown(summary, compared, verdicts))
    write_figures(folder, sources)
    return summary, compared, verdicts


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The same rows as ``.parquet`` and ``.csv``."""
    write_csv(path.with_suffix(".csv"), rows)
    with atomic_path(path.with_suffix(".parquet")) as partial:
        pl.DataFrame(list(rows), infer_schema_length=None).write_parquet(partial)


def write_figures(folder: Path, sources: Mapping[str, Sequence[Record]]) -> list[Path]:
    """The figures that there are data for, as PNG."""
    curves = {name: np.array([r.curve for r in records]) for name, records in sources.items() if records}
    figures = {"mass_curves": mass_curve_figure(curves, grid=SHARES), "entropy": entropy_figure(sources)}
    if any(r.faithfulness for records in sources.values() for r in records):
        figures["faithfulness"] = faithfulness_figure(sources)
    if any(r.heads for records in sources.values() for r in records):
        figures["heads"] = head_figure(sources)
    return [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]


def verdict_of(records: Sequence[Record], *, seed: int = 0) -> str | None:
    """What deletion and insertion say of a source, in words; None where they were not measured."""
    held = [r.row for r in records if r.faithfulness is not None]
    if not held:
        return None
    patients = [row["patient_id"] for row in held]
    found = [
        advantage(
            [row[f"{kind}_area"] for row in held],
            [row[f"random_{kind}_area"] for row in held],
            patients,
            kind=kind,
            seed=seed,
        )
        for kind in ("deletion", "insertion")
    ]
    return verdict(*found)
