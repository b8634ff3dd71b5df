"""A row of the results table, from the run folder of a cell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgmil.benchmark.results import ATTENTION, CALIBRATED, METRICS, VALIDATION
from qgmil.errors import RunError
from qgmil.files import write_json
from qgmil.training.runfolder import is_finished, read_metrics, read_predictions

CELL = "cell.json"
_PLACE = ("dataset", "features", "model", "recipe", "fold", "seed", "fingerprint")


def write_cell(folder: Path, job: Mapping[str, Any], resources: Mapping[str, Any] | None = None) -> None:
    """Write ``cell.json``: the cell's place in the grid, what decides its result, and what it took to compute."""
    names = (*_PLACE, "draw", "salt", "settings")
    write_json(folder / CELL, {**{n: job[n] for n in names}, "resources": dict(resources or {})})


def read_cell(folder: Path) -> dict[str, Any] | None:
    """``cell.json`` of a cell's folder; None where no cell was begun.

    Raises:
        RunError: it cannot be read.
    """
    path = folder / CELL
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: cannot be read ({error}); move the folder {folder} away") from None


def row_of(folder: Path) -> dict[str, Any]:
    """The row of a finished cell.

    Raises:
        RunError: the cell has not finished, or its files cannot be read.
    """
    cell, metrics = read_cell(folder), read_metrics(folder)
    if cell is None:
        raise RunError(f"{folder} has no {CELL}: it is not a cell of a benchmark")
    resources = cell["resources"]
    attention, instances = metrics["attention"] or {}, metrics["instances"] or {}
    return {
        **{name: cell[name] for name in _PLACE},
        "aggregator": metrics["model"],
        "status": "finished",
        "error": None,
        **{f"n_{part}": count for part, count in metrics["bags"].items()},
        **{name: metrics[name] for name in ("parameters", "epochs", "best_epoch", "seconds", "temperature")},
        "peak_mb": resources.get("peak_mb"),
        "device": resources.get("device"),
        **{name: metrics["test"][name] for name in METRICS},
        **{f"{name}_calibrated": metrics["test_calibrated"][name] for name in CALIBRATED},
        **{f"val_{name}": metrics["val"][name] for name in VALIDATION},
        **{name: attention.get(name) for name in ATTENTION},
        "instance_auroc": instances.get("auroc"),
        "instance_ap": instances.get("average_precision"),
        "classes": metrics["classes"],
        **_predictions(folder, cell, metrics["classes"]),
    }


def failed_row(job: Mapping[str, Any], error: str) -> dict[str, Any]:
    """The row of a cell that failed."""
    place = {name: job[name] for name in _PLACE}
    return {**place, "aggregator": job["config"]["model"], "status": "failed", "error": error}


def finished_row(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The row of a folder, if its cell has this fingerprint and is finished."""
    cell = read_cell(folder)
    if cell is None or cell["fingerprint"] != fingerprint or not is_finished(folder):
        return None
    return row_of(folder)


def _predictions(folder: Path, cell: Mapping[str, Any], classes: list[str]) -> dict[str, Any]:
    """The list columns: the test bags with their truth and probabilities.

    Names of bags and patients are replaced by hashes, so that a table can be pooled and passed on without them. They
    are salted with the identity of the data, which follows from the features: who does not have the data cannot find
    a name by trying names. For models, seeds and machines they are the same. A draw has bags of its own; its
    patients, where they are known, are those of the other draws.
    """
    every = read_predictions(folder)
    rows = [r for r in every if r["part"] == "test"]
    salt = cell.get("salt") or cell["settings"]["data"]
    patients_known = any(r["patient_id"] != r["bag_id"] for r in every)

    def hashed(name: str, draw: int | None) -> str:
        return hashlib.sha256(json.dumps([salt, draw, name]).encode()).hexdigest()[:12]

    def columns(prefix: str) -> list[list[float]]:
        return [[float(r[f"{prefix}_{c}"]) for c in classes] for r in rows]

    return {
        "test_bags": [hashed(r["bag_id"], cell["draw"]) for r in rows],
        "test_patients": [hashed(r["patient_id"], None if patients_known else cell["draw"]) for r in rows],
        "test_labels": [classes.index(r["label"]) for r in rows],
        "test_probabilities": columns("probability"),
        "test_calibrated": columns("calibrated"),
    }
