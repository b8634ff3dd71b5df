"""What of a benchmark is done: rows of its results table, finished run folders, rows of known tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qgmil.benchmark.cells import PlannedCell
from qgmil.benchmark.results import Key, Results, key_of, read_rows
from qgmil.benchmark.rows import finished_row, read_cell
from qgmil.errors import RunError

CELLS, REPLACED = "cells", "replaced"


@dataclass
class Survey:
    """The state of the cells.

    Args:
        rows: of cells that are done, by their place in the grid.
        adopted: those of `rows` that the results table does not have yet.
        todo: cells to compute, in order.
        superseded: cells of `adopted` whose run folder is of other settings.
        changed: cells that were computed under other settings, with what changed in words.
        unused: rows of known tables that are of no cell as it is now.
    """

    rows: dict[Key, dict[str, Any]] = field(default_factory=dict)
    adopted: list[dict[str, Any]] = field(default_factory=list)
    superseded: list[PlannedCell] = field(default_factory=list)
    todo: list[PlannedCell] = field(default_factory=list)
    changed: list[tuple[PlannedCell, str]] = field(default_factory=list)
    unused: int = 0


def cell_folder(output: Path, cell: PlannedCell) -> Path:
    """Where a cell's run folder is."""
    return output / CELLS / cell.id


def survey(
    cells: Sequence[PlannedCell],
    results: Results,
    output: Path,
    known: Iterable[Path] = (),
    *,
    retry_failed: bool = False,
) -> Survey:
    """Find what is done. Nothing is written.

    Args:
        cells: all of the benchmark.
        results: its table so far.
        output: its folder.
        known: results tables of other runs: their finished rows count where the fingerprint is the same, also where
            the benchmark's own row or run folder is of other settings.
        retry_failed: cells that failed are to be computed again.
    """
    finished = (r for path in known for r in read_rows(path) if r["status"] == "finished")
    elsewhere = {(key_of(r), r["fingerprint"]): r for r in finished}
    found = Survey(unused=len(elsewhere))
    for cell in cells:
        row, other = results.rows.get(cell.key), elsewhere.get((cell.key, cell.fingerprint))
        found.unused -= other is not None
        current = row is not None and row["fingerprint"] == cell.fingerprint
        if row is not None and current and row["status"] == "finished":
            found.rows[cell.key] = row
            continue
        folder = cell_folder(output, cell)
        made = finished_row(folder, cell.fingerprint)
        begun = read_cell(folder)
        change = _change(cell, row, begun)
        if made is None and other is not None:
            made = other
            if begun is not None and begun["fingerprint"] != cell.fingerprint:
                found.superseded.append(cell)
        if made is not None:
            found.rows[cell.key] = made
            found.adopted.append(made)
        elif change is not None:
            found.changed.append((cell, change))
        elif row is not None and current and not retry_failed:
            found.rows[cell.key] = row
        else:
            found.todo.append(cell)
    return found


def refuse_changed(changed: Sequence[tuple[PlannedCell, str]], output: Path) -> None:
    """Raise `RunError` if there are cells that were computed under other settings."""
    if changed:
        cell, change = changed[0]
        more = f" ({len(changed)} cells have changed)" if len(changed) > 1 else ""
        raise RunError(
            f"{output}: cell {cell.id} was computed with other settings: {change}{more}; restore them, choose another "
            f"output, or move the old results to {output / REPLACED} and compute anew with --redo-changed"
        )


def move_aside(cells: Iterable[PlannedCell], output: Path) -> None:
    """Move the run folders of cells out of the way; `Results.keep_only` does so with their rows."""
    for cell in cells:
        folder = cell_folder(output, cell)
        if folder.is_dir():
            aside = output / REPLACED / cell.id
            number = 1
            while aside.exists():
                number += 1
                aside = output / REPLACED / f"{cell.id}.{number}"
            aside.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(aside)


def _change(cell: PlannedCell, row: Mapping[str, Any] | None, begun: Mapping[str, Any] | None) -> str | None:
    """What is different now, in words; None where nothing was computed under other settings."""
    if begun is not None:
        return None if begun["fingerprint"] == cell.fingerprint else _difference(begun["settings"], cell.settings)
    if row is not None and row["fingerprint"] != cell.fingerprint:
        return "its run folder is gone, so what has changed is not known"
    return None


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    said = {
        "version": "the library's results",
        "data": "the bags or their table",
        "split": "the split into training, validation and test",
    }
    parts = []
    for name in sorted(old.keys() | new.keys(), key=list({**new, **old}).index):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        if name in said:
            parts.append(said[name])
        elif isinstance(before, dict) and isinstance(now, dict):
            fields = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
            parts += [f"{k} {_word(before, k)} -> {_word(now, k)}" for k in fields]
        else:
            parts.append(f"{name} {_word(old, name)} -> {_word(new, name)}")
    return ", ".join(parts) or "its fingerprint"


def _word(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "(default)"
