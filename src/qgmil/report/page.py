"""The run's page: ``report.html``, one self-contained file, and its figures as PNG."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

import qgmil
from qgmil.attention.figures import mass_curve_figure
from qgmil.evaluation.figures import confusion_figure, history_figure, reliability_figure, roc_figure, save_figure
from qgmil.files import write_text
from qgmil.report.bags import Looks
from qgmil.report.data import RunResult, load_mass_curve, load_result
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


def write_report(
    folder: str | Path, target: Path | None = None, *, looks: Looks | None = None, compare: Sequence[Path] = ()
) -> Path:
    """Write ``report.html`` (or `target`) and ``figures/*.png`` of a finished run.

    Args:
        looks: what is shown of the bags themselves; None: nothing.
        compare: other runs, or folders of one model's cells of a benchmark: their attention-mass curves are drawn, too.

    Raises:
        RunError: not a run folder, or one that has not finished.
    """
    result = load_result(folder)
    looks = looks or Looks()
    pictures = []
    for name, (figure, text) in run_figures(result, [load_mass_curve(run) for run in compare]).items():
        path = save_figure(figure, result.folder / "figures" / f"{name}.png")
        pictures.append({"alt": text, "data": base64.b64encode(path.read_bytes()).decode("ascii")})
    environment = jinja2.Environment(loader=jinja2.PackageLoader("qgmil.report"), autoescape=True)
    page = environment.get_template("report.html.jinja").render(
        run=result.folder.resolve().name,
        model=result.model,
        version=qgmil.__version__,
        cells=result.cells,
        metrics=_metric_rows(result),
        per_class=_class_rows(result),
        attention=_attention_rows(result),
        config=result.config.model_dump(mode="json"),
        environment=_environment(result),
        pictures=pictures,
        worst=_worst(result),
        not_pooled=result.metrics.get("not_pooled"),
        skipped=result.skipped,
        bags=looks.bags,
        faithfulness=looks.faithfulness,
        left_out=looks.left_out,
        **_code(looks),
    )
    target = result.folder / "report.html" if target is None else target
    write_text(target, page)
    return target


def _code(looks: Looks) -> dict[str, Any]:
    """Style, scripts and the policy that allows these very bytes and nothing else."""
    parts = files("qgmil.report")
    css = Markup((parts / "templates" / "page.css").read_text(encoding="utf-8"))
    if not any(entry is not None for entry in looks.data):
        return {"css": css, "policy": _policy([css], []), "script": None}
    library = (parts / "vendor" / "openseadragon" / "openseadragon.min.js").read_text(encoding="utf-8")
    script = (parts / "templates" / "viewer.js").read_text(encoding="utf-8")
    # "<" inside JSON is always inside a text, where \u003c is the same: no name can end the script
    data = json.dumps(looks.data, allow_nan=False).replace("<", "\\u003c")
    return {
        "css": css,
        "policy": _policy([css], [library, script]),
        "library": Markup(library),
        "script": Markup(script),
        "data": Markup(data),
    }


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    def allowed(texts: Sequence[str]) -> str:
        digests = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode("ascii") for t in texts]
        return " ".join(f"'sha256-{d}'" for d in digests) or "'none'"

    return (
        f"default-src 'none'; img-src data:; style-src {allowed(styles)}; script-src {allowed(scripts)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _environment(result: RunResult) -> dict[str, str]:
    path = result.folder / "environment.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    packages = held.pop("packages", {})
    said = {name: str(value) for name, value in held.items() if value is not None}
    return said | ({"packages": ", ".join(f"{n} {v}" for n, v in packages.items())} if packages else {})


def _class_rows(result: RunResult) -> list[dict[str, str]]:
    _, probabilities, truth = result.predictions()
    predicted = probabilities.argmax(axis=1)
    rows = []
    for c, name in enumerate(result.classes):
        hit, own, said = (
            int(((predicted == c) & (truth == c)).sum()),
            int((truth == c).sum()),
            int((predicted == c).sum()),
        )
        rows.append(
            {
                "name": name,
                "bags": str(own),
                "recall": number(hit / own if own else None),
                "precision": number(hit / said if said else None),
                "f1": number(2 * hit / (own + said) if own + said else None),
            }
        )
    return rows


def run_figures(
    result: RunResult, others: Sequence[tuple[str, dict[str, Any]] | None] = ()
) -> dict[str, tuple[Figure, str]]:
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
    own = None if result.mass_curve is None else (result.model, result.mass_curve)
    curves = dict(found for found in (own, *others) if found is not None)
    if curves:
        grid = next(iter(curves.values()))["share"]
        figures["attention_mass"] = (
            mass_curve_figure({name: curve["mass"] for name, curve in curves.items()}, grid=grid),
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
