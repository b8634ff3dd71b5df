"""Cross-validation of an encoder and an aggregator that are trained together: a folder a fold, resumable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qgmil.encoders import lite0
from qgmil.encoders.base import EncoderInfo
from qgmil.encoders.finetune import EpochHook, FinetuneConfig, checkpoint_of, finetune, logits_of
from qgmil.encoders.pictures import Shaping
from qgmil.encoders.trees import Work
from qgmil.errors import RunError
from qgmil.evaluation.calibration import apply_temperature, expand_binary
from qgmil.evaluation.metrics import evaluate
from qgmil.files import atomic_path, read_csv, write_csv, write_json
from qgmil.models.persistence import save_model
from qgmil.models.registry import create_model
from qgmil.training.rows import probability_columns

SETTINGS, METRICS = "finetune.json", "metrics.json"


def claim(output: Path, asked: dict[str, Any]) -> None:
    """Note the settings of the folder, or see that they are the same as before: others would mix two experiments.

    Raises:
        RunError: they differ, or the folder is somebody else's.
    """
    path = output / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in asked:
            if before.get(name) != json.loads(json.dumps(asked[name])):
                raise RunError(
                    f"{output} was begun with {name} {before.get(name)}, not {asked[name]}: choose another folder"
                )
        return
    if output.exists() and any(output.iterdir()):
        raise RunError(f"{output} exists already and is none of ours: choose another folder with --output")
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def train_fold(
    folder: Path, parts: list[list[Work]], classes: list[str], config: FinetuneConfig, model: str,
    options: dict[str, Any], info: EncoderInfo, shaping: Shaping, device: str, on_epoch: EpochHook | None,
) -> None:  # fmt: skip
    """Train on one fold, and write encoder, aggregator, history and predictions of the test bags; metrics last."""
    train, val, test = parts
    torch.manual_seed(config.seed)
    network, _ = lite0.load_trainable(info)
    aggregator = create_model(model, in_dim=1280, num_classes=len(classes), standardize=True, **options)
    tuned = finetune(
        network, aggregator, info, train, val, classes, config, shaping=shaping, device=device, on_epoch=on_epoch
    )
    said = apply_temperature(expand_binary(logits_of(tuned, test, info, shaping=shaping)), 1.0)
    truth = [classes.index(str(w.label)) for w in test]
    rows = [
        {"bag_id": w.bag_id, "patient_id": w.patient_id, "label": w.label, **probability_columns(p, p, classes)}
        for w, p in zip(test, said, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    save_model(aggregator, folder, classes=classes)
    if not config.freeze:
        with atomic_path(folder / "encoder.pth") as partial:
            torch.save(checkpoint_of(network, lite0.published()), partial)
    write_csv(folder / "history.csv", tuned.history)
    write_csv(folder / "predictions.csv", rows)
    write_json(folder / METRICS, {"best_epoch": tuned.best_epoch, **evaluate(said, np.array(truth), classes)})


def summary(output: Path, folds: int, classes: list[str]) -> dict[str, Any]:
    """Over folds, and of the pooled predictions of the test bags."""
    found = [json.loads((output / f"fold{i}" / METRICS).read_text(encoding="utf-8")) for i in range(folds)]
    rows = [row for i in range(folds) for row in read_csv(output / f"fold{i}" / "predictions.csv")]
    said = np.array([[float(row[f"probability_{c}"]) for c in classes] for row in rows])
    truth = np.array([classes.index(row["label"]) for row in rows])
    said_of_all: dict[str, Any] = {"folds": folds, "bags": len(rows), "pooled": evaluate(said, truth, classes)}
    for name in ("macro_f1", "auroc", "nll"):
        values = [f[name] for f in found if f[name] is not None]
        said_of_all |= {f"{name}_mean": float(np.mean(values)), f"{name}_sd": float(np.std(values, ddof=1))}
    return said_of_all
