"""The run folder: what is in it, and how it is made and recognised.

A run is one cell (one split, one seed), or a folder of cells with a summary. A cell is finished when its
``metrics.json`` is there, which is written last. The folder in which a benchmark keeps the cells of one model on one
data set, which has nothing else in it, can be read like a run of all of them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from qgmil.bags.store import is_store, store_identity
from qgmil.errors import RunError
from qgmil.files import read_csv, write_json, write_text
from qgmil.training.config import TrainConfig, read_yaml

CONFIG, METRICS, PREDICTIONS, HISTORY, SPLIT, SKIPPED = (
    "config.yaml",
    "metrics.json",
    "predictions.csv",
    "history.csv",
    "split.csv",
    "skipped.csv",
)


def create_run(folder: Path, config: TrainConfig, manifest: Path) -> None:
    """Make a new run folder with its configuration and environment.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        hint = f"continue it with --resume {folder}, or " if (folder / CONFIG).is_file() else ""
        raise RunError(f"{folder} exists already: {hint}choose another folder with --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_run(folder, config, manifest.resolve(), source_hash(manifest), f"qgmil train {manifest.name}")
    except OSError as error:
        raise RunError(f"{folder}: cannot write the run folder ({error.strerror or error})") from None


def write_run(folder: Path, config: TrainConfig, manifest: Path, sha256: str, made_by: str) -> None:
    """Write what a run is, and where it is made: its configuration, with the bags it is about, and environment."""
    source = {"manifest": str(manifest), "manifest_sha256": sha256}
    write_text(folder / CONFIG, f"# {made_by}\n{yaml.safe_dump(source, sort_keys=False)}{config.to_yaml()}")
    write_json(folder / "environment.json", environment())


def read_run(folder: Path) -> tuple[TrainConfig, Path]:
    """Configuration and manifest of a run.

    Raises:
        RunError: not a run folder.
        ConfigError: a configuration that this version does not understand.
    """
    path = (folder if (folder / CONFIG).is_file() else cell_folders(folder)[0]) / CONFIG
    values = read_yaml(path)
    manifest = Path(str(values.pop("manifest", "")))
    values.pop("manifest_sha256", None)
    return TrainConfig.build(values, str(path)), manifest


def check_same_manifest(folder: Path, manifest: Path) -> None:
    """Resuming on a changed manifest would mix two experiments.

    Raises:
        RunError: the manifest (or store) is gone or not the one that the run began with.
    """
    if not (manifest.is_file() or is_store(manifest)):
        raise RunError(f"{folder}: its manifest {manifest} is gone; a run resumes only on the bags it began with")
    if source_hash(manifest) != read_yaml(folder / CONFIG).get("manifest_sha256"):
        raise RunError(
            f"{folder}: its manifest {manifest} has changed since the run began; start a new run, or restore the file"
        )


def cell_folders(run: Path) -> list[Path]:
    """The cells of a run in order; a single-cell run is its own cell.

    Raises:
        RunError: not a run folder.
    """
    if (run / CONFIG).is_file():
        cells = run / "cells"
        return sorted(p for p in cells.iterdir() if p.is_dir()) if cells.is_dir() else [run]
    found = _bare_cells(run)
    if not found:
        raise RunError(f"{run} is not a run folder: it has no {CONFIG}")
    return found


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, or holds the cells of one model of a benchmark."""
    return (folder / CONFIG).is_file() or bool(_bare_cells(folder))


def _bare_cells(folder: Path) -> list[Path]:
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
    return inside if all((p / CONFIG).is_file() and (p / SPLIT).is_file() for p in inside) else []


def is_finished(cell: Path) -> bool:
    """Whether a cell (or run) ended with results."""
    return (cell / METRICS).is_file()


def read_metrics(folder: Path) -> dict[str, Any]:
    """``metrics.json`` of a cell or run.

    Raises:
        RunError: the run has not finished.
    """
    if not is_finished(folder):
        raise RunError(f"{folder} has no {METRICS}: the run has not finished; continue it with --resume")
    try:
        return json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{folder / METRICS}: cannot be read ({error}); delete it and continue with --resume") from None


def read_predictions(folder: Path) -> list[dict[str, str]]:
    """``predictions.csv`` of a cell or run.

    Raises:
        RunError: it is not there.
    """
    try:
        return read_csv(folder / PREDICTIONS)
    except OSError:
        raise RunError(f"{folder} has no {PREDICTIONS}: delete {METRICS} there and continue with --resume") from None


def drop_checkpoints(cell: Path) -> None:
    """Remove what a finished cell no longer needs: its resume points, and partial files of killed writes."""
    shutil.rmtree(cell / "checkpoints", ignore_errors=True)
    for partial in cell.glob(".*.part"):
        partial.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_hash(manifest: Path) -> str:
    """SHA-256 of a manifest, or the identity of a store, which follows from what is in it."""
    return store_identity(manifest) if is_store(manifest) else file_hash(manifest)


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    packages = ("qgmil", "torch", "lightning", "numpy", "scikit-learn", "h5py", "polars", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
