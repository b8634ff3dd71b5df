"""Finished runs, read back for tables and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qgmil.errors import RunError
from qgmil.files import read_csv
from qgmil.training.config import TrainConfig, read_yaml
from qgmil.training.runfolder import (
    CONFIG,
    METRICS,
    SKIPPED,
    SPLIT,
    cell_folders,
    is_finished,
    read_metrics,
    read_predictions,
    read_run,
)


@dataclass(frozen=True)
class Score:
    """A figure over cells or seeds. `undefined` counts those where it has no value."""

    mean: float | None
    sd: float | None = None
    undefined: int = 0


@dataclass(frozen=True)
class RunResult:
    """Configuration and metrics of a finished run, of one cell or many."""

    folder: Path
    config: TrainConfig
    metrics: dict[str, Any]

    @property
    def many(self) -> bool:
        """Whether the run has several cells."""
        return "summary" in self.metrics

    @property
    def cells(self) -> int:
        """Number of trained models."""
        return len(self.metrics["cells"]) if self.many else 1

    @property
    def model(self) -> str:
        """Name of the aggregator, with the options that were given."""
        options = ", ".join(f"{k}={v}" for k, v in self.config.options.items())
        return self.config.model + (f" ({options})" if options else "")

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the columns."""
        return self.metrics["classes"]

    @property
    def parameters(self) -> int:
        """Trainable parameters of one model."""
        return self.metrics["parameters"]

    @property
    def seconds(self) -> float:
        """Training time of all cells."""
        return self.metrics["seconds"]

    def score(self, name: str, *, calibrated: bool = False) -> Score:
        """A test metric over cells."""
        if not self.many:
            return Score(self.metrics["test_calibrated" if calibrated else "test"].get(name))
        return _score(self.metrics["summary_calibrated" if calibrated else "summary"]["metrics"].get(name))

    def pooled(self, name: str, *, calibrated: bool = False) -> Score | None:
        """A metric of the pooled out-of-fold predictions over seeds; None where nothing could be pooled."""
        pooled = self.metrics.get("pooled_calibrated" if calibrated else "pooled")
        return None if not pooled else _score(pooled["metrics"].get(name))

    def interval(self, name: str, *, calibrated: bool = False) -> tuple[float, float] | None:
        """95 % bootstrap interval of a pooled metric over patients."""
        found = (self.metrics.get("intervals_calibrated" if calibrated else "intervals") or {}).get(name)
        return None if not found or found["low"] is None else (found["low"], found["high"])

    def attention(self, name: str) -> Score | None:
        """A concentration figure of the test bags; None where the aggregator has no attention."""
        attention = self.metrics["attention"]
        if attention is None:
            return None
        return _score(attention["metrics"].get(name)) if self.many else Score(attention[name])

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Bags and files that were left out as configured, each with its reason."""
        path = self.folder / SKIPPED
        return read_csv(path) if path.is_file() else []

    @property
    def mass_curve(self) -> dict[str, Any] | None:
        """``{"share": [...], "mass": [...]}`` of the test bags."""
        attention = self.metrics["attention"]
        return self.metrics["attention_curve"] if self.many else attention and attention["curve"]

    def predictions(self, *, calibrated: bool = False) -> tuple[list[dict[str, str]], np.ndarray, np.ndarray]:
        """Test predictions: the rows, probabilities ``(n, C)`` and class indices ``(n,)``, all seeds together."""
        rows = [r for r in read_predictions(self.folder) if r["part"] == "test"]
        column = "calibrated" if calibrated else "probability"
        probabilities = np.array([[float(r[f"{column}_{c}"]) for c in self.classes] for r in rows])
        return rows, probabilities, np.array([self.classes.index(r["label"]) for r in rows])


def load_mass_curve(folder: str | Path) -> tuple[str, dict[str, Any]] | None:
    """Name and mean attention-mass curve of a finished run, or of the cells that a benchmark keeps of one model.

    None where the aggregator pools without attention.

    Raises:
        RunError: neither, or nothing in it has finished.
    """
    folder = Path(folder)
    if is_finished(folder):
        result = load_result(folder)
        return None if result.mass_curve is None else (result.model, result.mass_curve)
    cells = [cell for cell in cell_folders(folder) if is_finished(cell)]
    if not cells:
        raise RunError(f"{folder} has no finished model: continue it, or leave it out")
    curves = [metrics["attention"] and metrics["attention"]["curve"] for metrics in map(read_metrics, cells)]
    held = [curve for curve in curves if curve is not None]
    if not held:
        return None
    mass = np.mean([curve["mass"] for curve in held], axis=0)
    return RunResult(folder, read_run(folder)[0], {}).model, {"share": held[0]["share"], "mass": mass.tolist()}


def _score(entry: dict[str, Any] | None) -> Score:
    if entry is None:
        return Score(None)
    return Score(entry["mean"], entry["sd"], entry["n_undefined"])


def same_bags(runs: Sequence[str | Path]) -> bool:
    """Whether all runs have the same manifest and the same parts in every cell."""
    seen = set()
    for run in map(Path, runs):
        splits = tuple((cell / SPLIT).read_bytes() for cell in cell_folders(run) if (cell / SPLIT).is_file())
        seen.add((read_yaml(run / CONFIG).get("manifest_sha256"), splits))
    return len(seen) <= 1


def load_result(folder: str | Path) -> RunResult:
    """Read a finished run.

    Raises:
        RunError: not a run folder, or one that has not finished (with how much of it is there).
    """
    folder = Path(folder)
    config, _ = read_run(folder)
    if not (folder / METRICS).is_file():
        cells = cell_folders(folder)
        done = sum((c / METRICS).is_file() for c in cells)
        raise RunError(f"{folder} has not finished ({done} models are trained): continue it with --resume {folder}")
    return RunResult(folder, config, read_metrics(folder))
