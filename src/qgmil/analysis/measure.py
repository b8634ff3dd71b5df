"""Everything that is measured of the attention of one bag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgmil.analysis.records import Record
from qgmil.attention.concentration import attention_mass_curve, concentration
from qgmil.attention.faithfulness import Faithfulness, faithfulness
from qgmil.attention.inside import has_layers, layer_figures
from qgmil.attention.scores import InstanceScores, instance_scores, mean_scores
from qgmil.attention.stability import removal_agreement, seed_distance
from qgmil.attention.truth import agreement
from qgmil.bags.bag import Bag
from qgmil.errors import ConfigError
from qgmil.models.base import Aggregator
from qgmil.training.explain import BagExplanation


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        score: instance score, as for `qgmil.attention.instance_scores`.
        faithfulness, stability, layers: whether to compute these; they take most of the time.
        repeats: random orders (faithfulness) and random removals (stability) a bag.
        positives: instance labels that count as the sought kind; None: all above 0.
        seed: of the random orders.
    """

    score: str = "attention"
    faithfulness: bool = True
    stability: bool = True
    layers: bool = True
    repeats: int = 5
    positives: tuple[int, ...] | None = None
    seed: int = 0


def measure(said: BagExplanation, source: str, plan: Plan, *, device: str = "cpu") -> Record:
    """Measure one bag under the models of a run that never saw it.

    Concentration is each model's, averaged: the mean of several maps is flatter than any of them. Faithfulness and
    agreement with the truth are of the mean map and the mean prediction, which is what a picture shows.
    """
    models = [member.model for member in said.members]
    row = _identity(said.bag, said.patient) | {
        "predicted": said.classes[said.predicted],
        "probability": float(said.probabilities.max()),
        "correct": said.correct,
        "members": len(models),
    }
    weights = [as_mass(scores, said.bag.bag_id) for scores in said.member_scores]
    row |= _mean_concentration(weights, said.bag.bag_id)
    row |= _between_models(weights, said.member_probabilities)
    row |= _truth(said.bag, said.scores, plan.positives)
    curves = None
    if plan.faithfulness:
        found = faithfulness(
            models,
            said.bag,
            said.scores.values,
            target=said.predicted,
            repeats=plan.repeats,
            seed=plan.seed,
            device=device,
        )
        row |= _areas(found)
        curves = _curves(found)
    if plan.stability and len(said.bag) > 1:
        row |= _removals(said, plan, device)
    heads = _heads(models, said.bag, device) if plan.layers else []
    curve = np.mean([attention_mass_curve(w, bag_id=said.bag.bag_id) for w in weights], axis=0)
    return Record(source, row, curve.tolist(), curves, heads)


def measure_scores(bag: Bag, patient: str, scores: InstanceScores, source: str, plan: Plan) -> Record:
    """Measure weights that come from elsewhere: everything that needs no model."""
    values = as_mass(scores, bag.bag_id)
    nothing = {"predicted": None, "probability": None, "correct": None, "members": None}
    row = _identity(bag, patient) | nothing | _mean_concentration([values], bag.bag_id)
    row |= _truth(bag, scores, plan.positives)
    return Record(source, row, attention_mass_curve(values, bag_id=bag.bag_id).tolist())


def as_mass(scores: InstanceScores, bag_id: str) -> NDArray[np.float64]:
    """Weights that sum to 1: the scores themselves, or the share of each in their absolute sum (gradient x input).

    Raises:
        ConfigError: scores that are all 0: there is nothing to share.
    """
    if scores.is_mass:
        return scores.values
    size = np.abs(scores.values)
    if not size.sum() > 0:
        raise ConfigError(f"bag {bag_id!r}: every {scores.name} score is 0, so their concentration is undefined")
    return size / size.sum()


def _identity(bag: Bag, patient: str) -> dict[str, Any]:
    return {"bag_id": bag.bag_id, "patient_id": patient, "label": bag.label}


def _mean_concentration(weights: Sequence[NDArray[np.float64]], bag_id: str) -> dict[str, float | int]:
    figures = [concentration(w, bag_id) for w in weights]
    means: dict[str, float | int] = {name: float(np.mean([f[name] for f in figures])) for name in figures[0]}
    return means | {"n_instances": figures[0]["n_instances"]}


def _between_models(
    weights: Sequence[NDArray[np.float64]], probabilities: NDArray[np.float64]
) -> dict[str, float | None]:
    """Distances between the models; a bag of a cross-validation has one model a seed."""
    if len(weights) < 2:
        return {"seed_probability_tv": None, "seed_attention_tv": None}
    said, attended = seed_distance(probabilities, weights)
    return {"seed_probability_tv": said, "seed_attention_tv": attended}


def _truth(bag: Bag, scores: InstanceScores, positives: tuple[int, ...] | None) -> dict[str, float | None]:
    names = ("instance_auroc", "instance_ap", "instance_enrichment")
    if bag.instance_labels is None:
        return {}
    found = agreement(scores.values, bag.instance_labels.numpy(), positives=positives, is_mass=scores.is_mass)
    if found is None:
        return dict.fromkeys(names)
    return dict(zip(names, (found.auroc, found.average_precision, found.enrichment), strict=True))


def _areas(found: Faithfulness) -> dict[str, float]:
    names = ("deletion_area", "random_deletion_area", "insertion_area", "random_insertion_area")
    return {name: getattr(found, name) for name in (*names, "deletion_advantage", "insertion_advantage")}


def _curves(found: Faithfulness) -> dict[str, Any]:
    names = ("shares", "deletion", "insertion", "random_deletion", "random_insertion")
    return {name: getattr(found, name).tolist() for name in names}


def _removals(said: BagExplanation, plan: Plan, device: str) -> dict[str, float | None]:
    models = [member.model for member in said.members]

    def weigh(bag: Bag) -> NDArray[np.float64]:
        settings: dict[str, Any] = {"classes": said.classes, "target": said.predicted, "device": device}
        parts = [instance_scores(model, bag, plan.score, **settings) for model in models]
        return as_mass(mean_scores(parts), bag.bag_id)

    settings: dict[str, Any] = {"repeats": plan.repeats, "seed": plan.seed, "device": device}
    row: dict[str, float | None] = {}
    for removal in removal_agreement(models, said.bag, weigh, **settings):
        percent = round(100 * removal.fraction)
        row |= {
            f"same_class_{percent}": removal.same_class,
            f"probability_tv_{percent}": removal.probability_tv,
            f"attention_tv_{percent}": removal.attention_tv,
            f"attention_rank_{percent}": removal.attention_rank,
        }
    return row


def _heads(models: Sequence[Aggregator], bag: Bag, device: str) -> list[dict[str, Any]]:
    """Figures of every head; the models of a run are alike, so that heads are numbered by model as well."""
    return [
        {"model": number, **row}
        for number, model in enumerate(models)
        if has_layers(model)
        for layer, figures in enumerate(layer_figures(model, bag, device=device))
        for row in figures.head_rows(layer)
    ]
