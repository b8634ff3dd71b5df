"""Results tables made up for tests: by hand, or drawn with models of known strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from qgmil.evaluation.weighted import METRICS, Sample

SCHEMA = {
    **dict.fromkeys(("dataset", "features", "model", "aggregator", "recipe", "status", "error", "device"), pl.String),
    **dict.fromkeys(("fold", "seed", "n_train", "n_val", "n_test", "parameters", "epochs"), pl.Int64),
    **dict.fromkeys(("macro_f1", "auroc", "balanced_accuracy", "accuracy", "average_precision"), pl.Float64),
    **dict.fromkeys(("ece", "brier", "nll", "ece_calibrated", "brier_calibrated", "nll_calibrated"), pl.Float64),
    **dict.fromkeys(("top_1pct", "top_10pct", "entropy", "effective_share", "gini"), pl.Float64),
    **dict.fromkeys(("instance_auroc", "instance_ap", "seconds", "peak_mb", "temperature"), pl.Float64),
    **dict.fromkeys(("classes", "test_bags", "test_patients"), pl.List(pl.String)),
    "test_labels": pl.List(pl.Int64),
    **dict.fromkeys(("test_probabilities", "test_calibrated"), pl.List(pl.List(pl.Float64))),
}


def table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as a results table; what they lack is null."""
    return pl.DataFrame([{name: row.get(name) for name in SCHEMA} for row in rows], schema=SCHEMA)


def row(model: str, fold: int = 0, seed: int = 0, macro_f1: float | None = None, **values: Any) -> dict[str, Any]:
    """One finished cell without predictions."""
    return {
        **{"dataset": "d", "features": "", "model": model, "aggregator": model, "recipe": "common"},
        **{"fold": fold, "seed": seed, "status": "finished", "macro_f1": macro_f1},
        **{"n_train": 80, "n_val": 0, "n_test": 20},
        **values,
    }


def scores(values: Mapping[str, Sequence[Sequence[float | None]]], **common: Any) -> list[dict[str, Any]]:
    """Cells of {model: [[macro F1 of each seed] of each fold]}."""
    return [
        row(model, fold, seed, value, **common)
        for model, folds in values.items()
        for fold, seeds in enumerate(folds)
        for seed, value in enumerate(seeds)
    ]


def predicted(model: str, fold: int, seed: int, labels: Sequence[int], positive: Sequence[float], **values: Any):
    """One finished cell of two classes from the probability of the second, a patient a bag."""
    bags = values.pop("bags", [f"f{fold}b{i}" for i in range(len(labels))])
    p = [[1 - q, q] for q in positive]
    return row(
        model,
        fold,
        seed,
        **{
            **{"macro_f1": metrics(p, np.array(labels))["macro_f1"], "n_test": len(labels)},
            **{"classes": ["a", "b"], "test_bags": bags, "test_patients": [f"p{b}" for b in bags]},
            **{"test_labels": list(labels), "test_probabilities": p, "test_calibrated": p},
            **values,
        },
    )


def drawn(
    strengths: Mapping[str, float],
    datasets: Sequence[str] = ("one",),
    *,
    folds: int = 5,
    seeds: int = 3,
    bags: int = 30,
    features: str = "",
    attention: Mapping[str, float] | None = None,
    difficulty: Mapping[str, float] | None = None,
) -> pl.DataFrame:
    """A whole grid: logits of the true class are normal around a model's strength, the noise shared by the models."""
    rows = []
    for d, dataset in enumerate(datasets):
        shared = np.random.default_rng(d)
        shift = (difficulty or {}).get(dataset, 0.0)
        for fold in range(folds):
            labels = np.resize([0, 1], bags)
            common = shared.normal(0, 1, bags)
            for m, (model, strength) in enumerate(strengths.items()):
                for seed in range(seeds):
                    own = np.random.default_rng([d, fold, m, seed])
                    margin = strength - shift + common + own.normal(0, 0.5, bags) + own.normal(0, 0.15)
                    rows.append(_drawn_cell(model, dataset, fold, seed, labels, margin, own, attention or {}))
    return table([{**r, "features": features} for r in rows])


def metrics(probabilities: Sequence[Sequence[float]], labels: np.ndarray) -> dict[str, float | None]:
    """Metrics of one cell; None where undefined."""
    sample, ones = Sample(np.array(probabilities), labels, 3), np.ones((1, len(labels)))
    found = {name: float(METRICS[name](sample, ones)[0]) for name in METRICS}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def _drawn_cell(
    model: str,
    dataset: str,
    fold: int,
    seed: int,
    labels: np.ndarray,
    margin: np.ndarray,
    own: np.random.Generator,
    attention: Mapping[str, float],
) -> dict[str, Any]:
    signed = np.where(labels == 1, margin, -margin)
    sharp, mild = (1 / (1 + np.exp(-scale * signed)) for scale in (3.0, 1.5))
    bags = [f"f{fold}b{i}" for i in range(len(labels))]
    p, c = (np.stack([1 - q, q], axis=1).tolist() for q in (sharp, mild))
    plain, after = (metrics(v, labels) for v in (p, c))
    names = ("macro_f1", "auroc", "balanced_accuracy", "accuracy", "average_precision", "ece", "brier", "nll")
    top = attention.get(model)
    jitter = float(own.normal(0, 0.02))
    return row(
        model, fold, seed,
        **{name: plain[name] for name in names if name != "macro_f1"},
        **{f"{name}_calibrated": after[name] for name in ("ece", "brier", "nll")},
        macro_f1=plain["macro_f1"], dataset=dataset, n_test=len(labels), n_train=4 * len(labels),
        parameters=100_000 * (1 + len(model)), seconds=float(10 + own.exponential(5)), peak_mb=200.0 + 10 * len(model),
        top_10pct=None if top is None else float(np.clip(top + jitter, 0.1, 1)),
        top_1pct=None if top is None else float(np.clip(top / 2 + jitter, 0.01, 1)),
        entropy=None if top is None else 1 - top / 2, gini=top, effective_share=None if top is None else 1 - top,
        classes=["a", "b"], test_bags=bags, test_patients=[f"p{b}" for b in bags], test_labels=labels.tolist(),
        test_probabilities=p, test_calibrated=c, temperature=2.0, epochs=20,
    )  # fmt: skip
