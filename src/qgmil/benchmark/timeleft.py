"""How long the cells that are left will take, from those that are done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from qgmil.benchmark.cells import PlannedCell

#: The nearest finished cells count: of the same data set and model, else of the model, else of the data set, else all.
NEAREST = (("dataset", "features", "model"), ("model",), ("dataset",), ())


class TimeLeft:
    """Mean seconds of finished cells, by what they share with one that is not."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._seconds: dict[tuple[Any, ...], list[float]] = {}
        for row in rows:
            if row["status"] == "finished" and row["seconds"] is not None:
                self.add(row, float(row["seconds"]))

    def add(self, row: Mapping[str, Any], seconds: float) -> None:
        """A cell took that long."""
        for names in NEAREST:
            self._seconds.setdefault((names, *(row[n] for n in names)), []).append(seconds)

    def of(self, cell: PlannedCell) -> float | None:
        """Seconds that a cell will take; None where nothing is known."""
        for names in NEAREST:
            known = self._seconds.get((names, *(getattr(cell, n) for n in names)))
            if known:
                return fmean(known)
        return None

    def left(self, cells: Iterable[PlannedCell], workers: int) -> float | None:
        """Seconds until so many workers have done the cells."""
        each = [self.of(c) for c in cells]
        known = [s for s in each if s is not None]
        if not each or len(known) < len(each):
            return None if each else 0.0
        return max(sum(known) / workers, max(known))
