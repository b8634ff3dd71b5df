"""What is written of predictions: truth, rows of ``predictions.csv``, mean concentration. Free of the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qgmil.attention.concentration import SHARES, concentration, mean_mass_curve
from qgmil.attention.truth import agreement
from qgmil.bags.dataset import BagDataset
from qgmil.training.predict import Predictions

#: Metrics with a bootstrap interval over patients.
INTERVALS = ("macro_f1", "balanced_accuracy", "auroc", "ece", "brier", "nll")


def labels_of(bags: BagDataset, classes: Sequence[str]) -> np.ndarray:
    """Class indices ``(n,)`` of labelled bags."""
    index = {c: i for i, c in enumerate(classes)}
    return np.array([index[str(label)] for label in bags.labels], dtype=np.int64)


def attention_summary(said: Predictions) -> dict[str, Any] | None:
    """Mean concentration over bags and the mean attention-mass curve; None without attention."""
    if said.attention is None:
        return None
    figures = [concentration(a, b) for a, b in zip(said.attention, said.bag_ids, strict=True)]
    means = {name: float(np.mean([f[name] for f in figures])) for name in figures[0]}
    return {**means, "curve": {"share": SHARES.tolist(), "mass": mean_mass_curve(said.attention).tolist()}}


def instance_summary(bags: BagDataset, said: Predictions) -> dict[str, Any] | None:
    """How well attention finds the instances that make a bag positive: the mean over bags with instances of both kinds.

    None without attention, without instance truth, or where only some of the instances were looked at.
    """
    if said.attention is None:
        return None
    found = []
    for i, weights in enumerate(said.attention):
        truth = bags[i].instance_labels
        if truth is None or len(truth) != len(weights):
            return None
        compared = agreement(weights, truth.numpy())
        if compared is not None:
            found.append((compared.auroc, compared.average_precision))
    if not found:
        return None
    auroc, ap = np.mean(found, axis=0)
    return {"auroc": float(auroc), "average_precision": float(ap), "bags": len(found)}


def prediction_rows(
    bags: BagDataset, said: Predictions, classes: Sequence[str], temperature: float, part: str
) -> list[dict[str, Any]]:
    """Rows of ``predictions.csv``: probabilities, calibrated and not, and how concentrated the attention is."""
    plain, calibrated = said.probabilities(), said.probabilities(temperature)
    rows: list[dict[str, Any]] = []
    for i, bag_id in enumerate(said.bag_ids):
        row: dict[str, Any] = {"bag_id": bag_id, "patient_id": bags.groups[i], "label": bags.labels[i], "part": part}
        row |= probability_columns(plain[i], calibrated[i], classes)
        row |= {f"logit_{c}": round(float(z), 6) for c, z in zip(classes, said.logits[i], strict=True)}
        row["instances"] = said.sizes[i]
        if said.attention is not None:
            row["attention_top_10pct"] = round(float(concentration(said.attention[i])["top_10pct"]), 6)
        rows.append(row)
    return rows


def probability_columns(plain: np.ndarray, calibrated: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """The predicted class and a column of probabilities a class, plain and calibrated."""
    return {
        "predicted": classes[int(plain.argmax())],
        **{f"probability_{c}": round(float(p), 8) for c, p in zip(classes, plain, strict=True)},
        **{f"calibrated_{c}": round(float(p), 8) for c, p in zip(classes, calibrated, strict=True)},
    }
