"""One cell: one split, one seed. Train, calibrate on validation, look at the test bags once, write everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qgmil.bags.dataset import BagDataset
from qgmil.bags.splits import Split
from qgmil.evaluation.calibration import calibration_problem, fit_temperature
from qgmil.evaluation.metrics import evaluate
from qgmil.files import write_csv, write_json
from qgmil.models.persistence import save_model
from qgmil.training.callbacks import EpochHook
from qgmil.training.config import TrainConfig
from qgmil.training.fit import FitResult, Interrupted, fit_model
from qgmil.training.predict import Predictions, predict
from qgmil.training.rows import attention_summary, instance_summary, labels_of, prediction_rows
from qgmil.training.runfolder import METRICS, PREDICTIONS, drop_checkpoints

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Cell:
    """A place in the grid: which split under which seed, and the folder it writes."""

    split: Split
    fold: int
    seed: int
    folder: Path


def run_cell(
    cell: Cell,
    bags: BagDataset,
    classes: Sequence[str],
    config: TrainConfig,
    *,
    resume: bool = False,
    on_epoch: EpochHook | None = None,
) -> dict[str, Any]:
    """Train and evaluate one cell; returns its metrics, which are also written, last of all.

    Raises:
        QGMILError: bags or configuration that cannot be trained on.
        Interrupted: Ctrl-C; the best model so far is saved, and the cell can be resumed.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    row = {bag: i for i, bag in enumerate(bags.bag_ids)}
    parts = {part: bags.subset([row[b] for b in getattr(cell.split, part)]) for part in PARTS}
    extra: dict[str, Any] = {"classes": list(classes)}
    try:
        fit = fit_model(
            parts["train"],
            parts["val"],
            classes,
            config,
            seed=cell.seed,
            folder=cell.folder,
            resume=resume,
            on_epoch=on_epoch,
        )
    except Interrupted as stop:
        if stop.model is not None:
            save_model(stop.model, cell.folder, **extra, interrupted=True)
        raise
    settings: dict[str, Any] = {
        "batch_size": config.batch_size,
        "device": config.device,
        "precision": config.precision,
        "sample": config.eval_sample,
        "workers": config.workers,
    }
    said = {part: predict(fit.model, parts[part], **settings) for part in ("val", "test")}
    truth = {part: labels_of(parts[part], classes) for part in ("val", "test")}
    temperature = fit_temperature(said["val"].logits, truth["val"])
    metrics = _metrics(cell, fit, config, classes, parts, said, truth, temperature)
    save_model(fit.model, cell.folder, **extra, temperature=temperature)
    rows = [r for part in ("val", "test") for r in prediction_rows(parts[part], said[part], classes, temperature, part)]
    write_csv(cell.folder / PREDICTIONS, [{**r, "fold": cell.fold, "seed": cell.seed} for r in rows])
    write_json(cell.folder / METRICS, metrics)
    drop_checkpoints(cell.folder)
    return metrics


def split_rows(cell: Cell, bags: BagDataset) -> list[dict[str, Any]]:
    """Rows of ``split.csv``: the part of every bag."""
    row = {bag: i for i, bag in enumerate(bags.bag_ids)}
    return [
        {"bag_id": b, "patient_id": bags.groups[row[b]], "label": bags.labels[row[b]], "part": part}
        for part in PARTS
        for b in getattr(cell.split, part)
    ]


def _metrics(
    cell: Cell,
    fit: FitResult,
    config: TrainConfig,
    classes: Sequence[str],
    parts: dict[str, BagDataset],
    said: dict[str, Predictions],
    truth: dict[str, np.ndarray],
    temperature: float,
) -> dict[str, Any]:
    return {
        "model": config.model,
        "fold": cell.fold,
        "split": cell.split.name,
        "seed": cell.seed,
        "classes": list(classes),
        "bags": {part: len(parts[part]) for part in PARTS},
        "parameters": fit.model.num_parameters(),
        "epochs": len(fit.history),
        "best_epoch": fit.best_epoch,
        "seconds": round(fit.seconds, 2),
        "temperature": temperature,
        "calibration_problem": calibration_problem(said["val"].logits, truth["val"]),
        "test": evaluate(said["test"].probabilities(), truth["test"], classes),
        "test_calibrated": evaluate(said["test"].probabilities(temperature), truth["test"], classes),
        "val": evaluate(said["val"].probabilities(), truth["val"], classes),
        "attention": attention_summary(said["test"]),
        "instances": instance_summary(parts["test"], said["test"]),
    }
