"""A benchmark of a second: a made cohort, small models, two epochs; and an engine without processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from qgmil.benchmark import grid
from qgmil.benchmark.engines import Job, OnEpoch, Row
from qgmil.benchmark.grid import BenchmarkResult, run_benchmark
from qgmil.benchmark.spec import BenchmarkSpec
from qgmil.benchmark.worker import run_job

COMMON = {"epochs": 2, "lr": 3e-3, "batch_size": 8, "device": "cpu", "precision": "32"}
QGMIL = {"options": {"width": 16, "num_heads": 2, "ffn_dim": 16}}
ABMIL = {"options": {"width": 16, "attention_dim": 8}}
DIVERGING = {"model": "mean", "options": {"width": 8}, "train": {"lr": 1e30, "clip": 0}}


def values(manifest: Path, **changes: Any) -> dict[str, Any]:
    """The yaml of a small benchmark: one data set, two folds, one seed, one model, no controls."""
    return {
        "folds": 2,
        "seeds": 1,
        "common": COMMON,
        "datasets": {"made": {"manifest": str(manifest)}},
        "models": {"abmil": ABMIL},
        "controls": False,
        **changes,
    }


def spec(manifest: Path, **changes: Any) -> BenchmarkSpec:
    """As `values`, validated."""
    return BenchmarkSpec.build(values(manifest, **changes))


class InProcess:
    """Computes cells one after the other in this process."""

    workers, name = 1, "this process"

    def __init__(self) -> None:
        self.jobs: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_: object) -> None: ...

    def run(self, jobs: Iterator[Job], on_epoch: OnEpoch) -> Iterator[Row]:
        """A row a job."""
        for job in jobs:
            self.jobs.append(job["id"])
            yield run_job(job)


def run(small: BenchmarkSpec, output: Path, patch: pytest.MonkeyPatch, **options: Any) -> tuple[BenchmarkResult, list]:
    """The result of a benchmark in this process, and the ids of the cells that were computed for it."""
    engine = InProcess()
    with patch.context() as here:
        here.setattr(grid, "choose_engine", lambda *_, **__: engine)
        return run_benchmark(small, output, **options), engine.jobs
