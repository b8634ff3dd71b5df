"""The results table read as tasks: which models have which cells, and whether they can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from qgmil.errors import MetricError

Place = tuple[int, int]
"""(fold, seed)."""

CONTROLS = ("linear_probe", "bag_size", "majority")
"""Aggregators that are in a table to show what needs no attention over instances."""
FLOORS = ("bag_size", "majority")
"""Controls that do not look at the features: shown, not ranked, as ranking them would make every test significant, and
never 'the best baseline'."""
FAMILY = "qgmil"
"""Aggregators whose names begin so are variants of one method."""

REQUIRED = ("dataset", "features", "model", "aggregator", "fold", "seed", "status", "macro_f1", "n_train", "n_test")


@dataclass(frozen=True, eq=False)
class Task:
    """One data set with one feature set."""

    dataset: str
    features: str
    name: str
    """The data set, with the features where it has several."""
    grid: frozenset[Place]
    """Every fold under every seed that any model of the task has a row for."""
    finished: Mapping[str, Mapping[Place, Mapping[str, Any]]]
    """{model: {(fold, seed): row}}; a model without a finished cell has an empty one."""
    failed: Mapping[str, Mapping[Place, str]]
    """{model: {(fold, seed): error}}."""
    aggregators: Mapping[str, str]
    same_splits: bool
    """Whether a fold is the same split under all seeds."""

    @property
    def models(self) -> list[str]:
        """All models of the task, by name."""
        return sorted(self.aggregators)

    def scores(self, model: str, metric: str = "macro_f1") -> dict[Place, float | None]:
        """The metric of every finished cell; None where undefined."""
        return {place: defined(row.get(metric)) for place, row in self.finished[model].items()}

    def is_complete(self, model: str) -> bool:
        """Whether every cell of the grid is finished."""
        return model in self.finished and self.finished[model].keys() == self.grid

    def is_ranked(self, model: str) -> bool:
        """Whether the model takes part in ranks."""
        return self.aggregators[model] not in FLOORS

    def is_control(self, model: str) -> bool:
        """Whether the model is one of `CONTROLS`."""
        return self.aggregators[model] in CONTROLS

    def in_family(self, model: str) -> bool:
        """Whether the model is a QG-MIL."""
        return self.aggregators[model].startswith(FAMILY)


def defined(value: Any) -> float | None:
    """The number, or None where there is none, NaN or infinity."""
    return float(value) if value is not None and np.isfinite(value) else None


def collect(rows: pl.DataFrame) -> list[Task]:
    """The tasks of a results table, by name. The order of the rows does not matter.

    Args:
        rows: one row a cell: data set, features, model, fold, seed, `status` "finished" or "failed", metrics, and in
            list columns the test predictions.

    Raises:
        MetricError: no rows, a column missing, a cell twice, a model of two aggregators, or models that were tested on
            different bags in the same cell; the culprit is named.
    """
    missing = [name for name in REQUIRED if name not in rows.columns]
    if missing:
        raise MetricError(f"the results table lacks the column {missing[0]!r}; it has {', '.join(rows.columns)}")
    if rows.is_empty():
        raise MetricError("the results table has no rows: no cell has run yet")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows.to_dicts():
        row["features"] = row["features"] or ""
        groups.setdefault((str(row["dataset"]), str(row["features"])), []).append(row)
    per_dataset = [dataset for dataset, _ in groups]
    return [
        _task(dataset, features, f"{dataset} ({features})" if per_dataset.count(dataset) > 1 else dataset, found)
        for (dataset, features), found in sorted(groups.items())
    ]


def _task(dataset: str, features: str, name: str, rows: Iterable[dict[str, Any]]) -> Task:
    finished: dict[str, dict[Place, dict[str, Any]]] = {}
    failed: dict[str, dict[Place, str]] = {}
    aggregators: dict[str, str] = {}
    for row in rows:
        model, place = str(row["model"]), (int(row["fold"]), int(row["seed"]))
        where = f"{name}, {model}, fold {place[0]}, seed {place[1]}"
        if place in finished.get(model, {}) or place in failed.get(model, {}):
            raise MetricError(f"the results table has the cell {where} twice: give one run of the benchmark")
        if aggregators.setdefault(model, str(row["aggregator"])) != str(row["aggregator"]):
            both = f"{aggregators[model]!r} and {row['aggregator']!r}"
            raise MetricError(f"{name}: model {model!r} is {both}: give each its own name")
        finished.setdefault(model, {})
        failed.setdefault(model, {})
        if row["status"] == "finished":
            finished[model][place] = row
        elif row["status"] == "failed":
            failed[model][place] = str(row.get("error") or "no reason recorded")
        else:
            raise MetricError(f'{where}: status is {row["status"]!r}, not "finished" or "failed"')
    places = {place for model in finished for place in (*finished[model], *failed[model])}
    grid = frozenset((fold, seed) for fold in {f for f, _ in places} for seed in {s for _, s in places})
    return Task(dataset, features, name, grid, finished, failed, aggregators, _same_splits(name, finished))


def _same_splits(name: str, finished: Mapping[str, Mapping[Place, Mapping[str, Any]]]) -> bool:
    """Whether the seeds of a fold share their test bags; True where the table does not say (no list columns)."""
    tested: dict[Place, tuple[str, tuple[str, ...]]] = {}
    for model in sorted(finished):
        for place, row in finished[model].items():
            if row.get("test_bags") is None:
                continue
            bags = tuple(sorted(row["test_bags"]))
            other, before = tested.setdefault(place, (model, bags))
            if before != bags:
                raise MetricError(
                    f"{name}, fold {place[0]}, seed {place[1]}: {other!r} and {model!r} were tested on different bags "
                    "and cannot be compared; run the older of the two again"
                )
    by_fold: dict[int, set[tuple[str, ...]]] = {}
    for (fold, _), (_, bags) in tested.items():
        by_fold.setdefault(fold, set()).add(bags)
    return all(len(distinct) == 1 for distinct in by_fold.values())
