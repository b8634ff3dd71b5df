"""Using a finished run: its models as an ensemble, on new bags or honestly on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.bags.source import PathLikes
from qgmil.errors import BagError, RunError
from qgmil.evaluation.bootstrap import bootstrap_interval
from qgmil.evaluation.metrics import evaluate
from qgmil.files import read_csv
from qgmil.models.base import Aggregator
from qgmil.models.persistence import load_model, read_model_config
from qgmil.training.config import TrainConfig
from qgmil.training.predict import Predictions, predict_all
from qgmil.training.rows import INTERVALS, labels_of, probability_columns
from qgmil.training.runfolder import SPLIT, cell_folders, is_finished, read_run


@dataclass(frozen=True, eq=False)
class Member:
    """One trained model of a run, and the bags and patients that shaped it (training and validation)."""

    folder: Path
    model: Aggregator
    temperature: float
    seen_bags: frozenset[str]
    seen_patients: frozenset[str]


@dataclass(frozen=True, eq=False)
class Run:
    """A run's configuration, classes and members.

    `unfinished` counts cells without a model, and `interrupted` those whose model is the best before Ctrl-C: it is not
    calibrated.
    """

    config: TrainConfig
    classes: tuple[str, ...]
    members: tuple[Member, ...]
    unfinished: int = 0
    interrupted: int = 0

    @property
    def note(self) -> str:
        """What to know of a run that has not finished; empty for one that has."""
        if not (self.unfinished or self.interrupted):
            return ""
        whole = len(self.members) + self.unfinished
        return (
            f"the run has not finished: {len(self.members)} of {whole} models are used, "
            f"{self.interrupted} of them as they were when training was interrupted"
        )


def load_run(folder: str | Path) -> Run:
    """Load every model of a run that has one.

    Raises:
        RunError: not a run folder, no trained model in it, or models of different classes.
        ReadError, ConfigError: broken weights or configuration.
    """
    folder = Path(folder)
    config, _ = read_run(folder)
    members, classes, unfinished, interrupted = [], [], 0, 0
    for cell in cell_folders(folder):
        if not ((cell / "model.safetensors").is_file() and (cell / "config.json").is_file()):
            unfinished += 1
            continue
        saved = read_model_config(cell)
        classes.append(tuple(saved.get("classes", ())))
        interrupted += not is_finished(cell)
        bags, patients = _seen(cell / SPLIT)
        members.append(Member(cell, load_model(cell), float(saved.get("temperature", 1.0)), bags, patients))
    if not members:
        raise RunError(f"{folder} holds no trained model yet: continue it with --resume {folder}")
    if len(set(classes)) > 1 or not classes[0]:
        raise RunError(f"{folder}: its models do not agree on the classes ({classes})")
    return Run(config, classes[0], tuple(members), unfinished, interrupted)


def open_asked(run: Run, table: PathLikes, **reading: Any) -> BagDataset:
    """The bags that a run is asked about, read as it read its own unless `reading` says otherwise; labels may lack."""
    used = run.config.model_copy(update=reading)
    skip = tuple(kind for kind in used.skip if kind != "unlabelled")
    return open_bags(table, **used.opening(), skip=skip, labels=False)


def _seen(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    if not path.is_file():
        raise RunError(f"{path} is gone: without it nobody knows which bags the model was trained on")
    rows = [r for r in read_csv(path) if r["part"] != "test"]
    return frozenset(r["bag_id"] for r in rows), frozenset(r["patient_id"] for r in rows)


def member_predictions(
    run: Run, bags: BagDataset, on_bags: Callable[[int], None] | None = None, **settings: Any
) -> list[Predictions]:
    """Predictions of every member on all bags; `on_bags` counts bags times members."""
    options = {
        "batch_size": run.config.batch_size,
        "device": run.config.device,
        "precision": run.config.precision,
        "sample": run.config.eval_sample,
        **settings,
    }
    return predict_all([m.model for m in run.members], bags, attention=False, on_bags=on_bags, **options)


def predict_run(
    run: Run,
    bags: BagDataset,
    *,
    new_cohort: bool = False,
    on_bags: Callable[[int], None] | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Rows for ``predictions.csv``: the mean of all members, plain and calibrated.

    ``seen`` says whether any member was trained or validated on the bag or its patient; such a prediction is no
    evidence of how good the run is. `new_cohort` says that equal names are other patients: none is seen.
    """
    said = member_predictions(run, bags, on_bags, **settings)
    everyone = np.ones((len(run.members), len(bags)), dtype=bool)
    plain, calibrated = _mean(run, said, everyone)
    seen = seen_matrix(run, bags, new_cohort)
    rows = []
    for i, bag_id in enumerate(bags.bag_ids):
        row: dict[str, Any] = {"bag_id": bag_id}
        if bags.labels[i] is not None:
            row["label"] = bags.labels[i]
        row |= probability_columns(plain[i], calibrated[i], run.classes)
        rows.append({**row, "instances": said[0].sizes[i], "seen": "yes" if seen[:, i].any() else "no"})
    return rows


def evaluate_run(
    run: Run,
    bags: BagDataset,
    *,
    include_seen: bool = False,
    new_cohort: bool = False,
    on_bags: Callable[[int], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Metrics of a run on labelled bags, each predicted only by members that never saw it or its patient.

    On the run's own bags these are the out-of-fold predictions; on a new cohort, the mean of all members.

    Args:
        include_seen: let every member predict every bag (optimistic; recorded as such).
        new_cohort: bags and patients of equal names are others than the run's (recorded as well).

    Returns:
        ``metrics`` and ``metrics_calibrated`` as of `evaluate`, ``intervals`` (bootstrap over patients), ``bags``,
        ``left_out`` (ids that every member has seen), ``include_seen``, and ``rows`` for a table of predictions.

    Raises:
        BagError: a label that the run does not know, or no bag that some member has not seen.
    """
    for bag_id, label in zip(bags.bag_ids, bags.labels, strict=True):
        if label not in run.classes:
            raise BagError(f"bag {bag_id!r} has label {label!r}, but the run knows only {', '.join(run.classes)}")
    may = np.ones((len(run.members), len(bags)), dtype=bool) if include_seen else ~seen_matrix(run, bags, new_cohort)
    kept = [i for i in range(len(bags)) if may[:, i].any()]
    left_out = [bags.bag_ids[i] for i in range(len(bags)) if not may[:, i].any()]
    if not kept:
        raise BagError(
            f"every one of the {len(bags)} bags (or its patient) was used to train or validate this run, so there is "
            "nothing to evaluate on; give other bags, --new-cohort if they are others of the same names, or "
            "--include-seen for an optimistic figure"
        )
    bags, may = bags.subset(kept), may[:, kept]
    said = member_predictions(run, bags, on_bags, **settings)
    plain, calibrated = _mean(run, said, may)
    truth = labels_of(bags, run.classes)
    intervals = None
    if len(set(bags.groups)) > 1:
        found = bootstrap_interval(plain, truth, bags.groups, run.classes, INTERVALS)
        intervals = {name: interval._asdict() for name, interval in found.items()}
    rows = [
        {"bag_id": b, "patient_id": bags.groups[i], "label": bags.labels[i], "members": int(may[:, i].sum())}
        | probability_columns(plain[i], calibrated[i], run.classes)
        for i, b in enumerate(bags.bag_ids)
    ]
    return {
        "bags": len(bags),
        "members": len(run.members),
        "include_seen": include_seen,
        "new_cohort": new_cohort,
        "left_out": left_out,
        "metrics": evaluate(plain, truth, run.classes),
        "metrics_calibrated": evaluate(calibrated, truth, run.classes),
        "intervals": intervals,
        "rows": rows,
    }


def seen_matrix(run: Run, bags: BagDataset, new_cohort: bool) -> np.ndarray:
    """``(members, bags)``: whether the member saw the bag or its patient in training or validation."""
    if new_cohort:
        return np.zeros((len(run.members), len(bags)), dtype=bool)
    pairs = list(zip(bags.bag_ids, bags.groups, strict=True))
    return np.array([[b in m.seen_bags or g in m.seen_patients for b, g in pairs] for m in run.members])


def _mean(run: Run, said: Sequence[Predictions], may: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean probabilities ``(n, C)`` over the members that may predict each bag, plain and calibrated."""
    weights = may[:, :, None] / may.sum(axis=0)[None, :, None]
    plain = np.stack([s.probabilities() for s in said])
    calibrated = np.stack([s.probabilities(m.temperature) for s, m in zip(said, run.members, strict=True)])
    return (weights * plain).sum(axis=0), (weights * calibrated).sum(axis=0)
