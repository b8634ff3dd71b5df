"""The run's page: ``report.html``, one self-contained file, and its figures as PNG."""

from __future__ import annotations

import base64
import csv
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

import qgmil
from qgmil.attention.figures import mass_curve_figure
from qgmil.evaluation.figures import confusion_figure, history_figure, reliability_figure, roc_figure, save_figure
from qgmil.files import write_text
from qgmil.report.data import RunResult, load_result
from qgmil.report.tables import number, spread
from qgmil.training.runfolder import HISTORY

#: Metrics of the page's table and what they are called there.
METRIC_NAMES = {
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "kappa": "Cohen's kappa",
    "kappa_quadratic": "quadratic kappa",
    "ece": "ECE",
    "brier": "Brier score",
    "nll": "negative log-likelihood",
}
WORST = 15


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into a finished run folder.

    Raises:
        RunError: not a run folder, or one that has not finished.
    """
    result = load_result(folder)
    pictures = []
    for name, (figure, text) in run_figures(result).items():
        path = save_figure(figure, result.folder / "figures" / f"{name}.png")
        pictures.append({"alt": text, "data": base64.b64encode(path.read_bytes()).decode("ascii")})
    environment = jinja2.Environment(loader=jinja2.PackageLoader("qgmil.report"), autoescape=True)
    page = environment.get_template("report.html.jinja").render(
        run=result.folder.resolve().name,
        model=result.model,
        version=qgmil.__version__,
        cells=result.cells,
        metrics=_metric_rows(result),
        attention=_attention_rows(result),
        config=result.config.model_dump(mode="json"),
        pictures=pictures,
        worst=_worst(result),
        not_pooled=result.metrics.get("not_pooled"),
        skipped=result.skipped,
    )
    target = result.folder / "report.html"
    write_text(target, page)
    return target


def run_figures(result: RunResult) -> dict[str, tuple[Figure, str]]:
    """Figures of a run by file name, each with a sentence that says what it shows."""
    _, plain, truth = result.predictions()
    _, calibrated, _ = result.predictions(calibrated=True)
    classes = result.classes
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (truth, plain.argmax(axis=1)), 1)
    figures = {
        "confusion": (confusion_figure(confusion, classes), "Confusion matrix of the test predictions of all models."),
        "reliability": (
            reliability_figure({"uncalibrated": plain, "temperature-scaled": calibrated}, truth),
            "Reliability: how often predictions of a given confidence are right, before and after calibration.",
        ),
    }
    if len(set(truth.tolist())) == len(classes):
        figures["roc"] = (roc_figure(plain, truth, classes), "ROC curves of the test predictions of all models.")
    if result.mass_curve is not None:
        figures["attention_mass"] = (
            mass_curve_figure({result.model: result.mass_curve["mass"]}, grid=result.mass_curve["share"]),
            "Share of the attention that the most attended instances hold, mean over test bags.",
        )
    rows = _history(result)
    if rows:
        figures["history"] = (history_figure(rows), "Loss and validation metrics by epoch.")
    return figures


def _history(result: RunResult) -> list[dict[str, Any]]:
    path = result.folder / HISTORY
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


def _metric_rows(result: RunResult) -> list[dict[str, str]]:
    rows = []
    for name, title in METRIC_NAMES.items():
        pooled, interval = result.pooled(name), result.interval(name)
        rows.append(
            {
                "name": title,
                "cells": spread(result.score(name)),
                "calibrated": spread(result.score(name, calibrated=True)),
                "pooled": "" if pooled is None else spread(pooled),
                "interval": "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
            }
        )
    return rows


def _attention_rows(result: RunResult) -> list[tuple[str, str]]:
    names = {
        "top_10pct": "mass of the top 10 % of instances",
        "top_1": "mass of the top instance",
        "entropy": "normalised entropy (1 = uniform)",
        "ess_share": "effective sample size, share of the bag",
        "gini": "Gini coefficient",
    }
    found = [(title, result.attention(name)) for name, title in names.items()]
    return [(title, spread(score)) for title, score in found if score is not None]


def _worst(result: RunResult) -> list[dict[str, str]]:
    """The wrong predictions that were most sure of themselves."""
    rows, probabilities, truth = result.predictions()
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != truth)
    order = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:WORST]
    keys = ("bag_id", "patient_id", "label", "predicted", "fold", "seed", "instances")
    return [{k: rows[i][k] for k in keys} | {"confidence": number(float(probabilities[i].max()))} for i in order]
