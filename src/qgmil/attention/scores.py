"""Scores of the instances of a bag: what a picture of attention shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qgmil.attention.inside import evaluating, has_layers, rollout
from qgmil.bags.bag import Bag
from qgmil.bags.dataset import collate
from qgmil.errors import ConfigError, MetricError
from qgmil.models.base import Aggregator
from qgmil.models.registry import find_entry, list_models

CLASS = "class:"


@dataclass(frozen=True, eq=False)
class InstanceScores:
    """One score an instance.

    Args:
        values: ``(N,)`` float64, in the order of the bag.
        name: "attention", "rollout", "gradient" or "class:NAME".
        description: for legends; says what the numbers are.
        is_mass: the scores are not negative and sum to 1 over the bag.
    """

    values: NDArray[np.float64]
    name: str
    description: str
    is_mass: bool


def available_scores(model: Aggregator, classes: Sequence[str] = ()) -> tuple[str, ...]:
    """Names that `instance_scores` takes for this aggregator."""
    found = ["attention"] if model.has_attention else []
    if has_layers(model) and (model.has_attention or getattr(model, "pooling_kind", "") in ("mean", "cls")):
        found.append("rollout")
    found.append("gradient")
    if model.has_class_attention:
        found += [f"{CLASS}{name}" for name in _columns(model, classes)]
    return tuple(found)


def instance_scores(
    model: Aggregator,
    bag: Bag,
    score: str = "attention",
    *,
    classes: Sequence[str] = (),
    target: int | None = None,
    device: str = "cpu",
) -> InstanceScores:
    """Score the instances of one bag.

    Args:
        score: "attention": the weights with which the aggregator pools. They are over instances as the model sees them
            after its blocks, each of which has looked at all others: a weight is not what that instance's own features
            contribute. "rollout": those weights followed back through the blocks (`qgmil.attention.inside.rollout`).
            "gradient": gradient x input, `gradient_x_input`. "class:NAME" (or its number): the attention of one class,
            where the aggregator has one a class (CLAM-MB, DSMIL); with one logit that is class 1's.
        classes: names of the model's classes, for "class:NAME" and legends.
        target: class whose logit "gradient" follows; None: the predicted one.
        device: where to compute; the model is left as it was.

    Raises:
        ConfigError: a score that this aggregator does not have; those that it has are named.
        MetricError: scores that are not finite, as those of NaN features or weights; the bag is named.
    """
    if score == "attention" and model.has_attention:
        with torch.inference_mode(), evaluating(model, device):
            weights = model(collate([bag]).to(device), return_attention=True).attention
        return _mass(weights, bag, "attention", "pooling attention, sums to 1 over the bag")
    if score == "rollout" and score in available_scores(model):
        values = _finite(rollout(model, bag, device=device), bag, "rollout")
        return InstanceScores(values, "rollout", "attention rollout, sums to 1 over the bag", True)
    if score == "gradient":
        values, of = gradient_x_input(model, bag, target=target, device=device)
        name = classes[of] if of < len(classes) else str(of)
        return InstanceScores(values, "gradient", f"gradient x input of the logit of {name}", False)
    if score.startswith(CLASS) and model.has_class_attention:
        return _class_attention(model, bag, score, classes, device)
    have = ", ".join(available_scores(model, classes))
    hint = ""
    if score == "attention":
        hint = f" It pools without weights: {', '.join(_attending())} have attention."
    raise ConfigError(f"{model.name} has no score {score!r}: it has {have}.{hint}")


def gradient_x_input(
    model: Aggregator, bag: Bag, *, target: int | None = None, device: str = "cpu"
) -> tuple[NDArray[np.float64], int]:
    """``sum_d x_id dz_c / dx_id`` of each instance i: how far its features push the logit z of class c, to first order.

    x are the features as the first layer sees them, so standardised where the model does that: the reference point is
    the mean training instance. With one logit z, class 1 has z and class 0 has -z. Signed: below 0 it pushes away from
    the class (Shrikumar et al. 2017, arXiv 1704.02685).

    Args:
        target: class c; None: the predicted class.

    Returns:
        ``(N,)`` float64, and the class.

    Raises:
        ConfigError: a class that the model does not have.
        MetricError: scores that are not finite; the bag is named.
    """
    most = max(2, model.num_classes)
    whole = isinstance(target, int | np.integer) and not isinstance(target, bool)
    if target is not None and not (whole and 0 <= target < most):
        raise ConfigError(f"target class {target!r} is not one of the model's {most} classes, 0 to {most - 1}")
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model, device):
        packed = model.prepare(collate([bag]).to(device))
        x = packed.features.detach().clone().requires_grad_()
        logits = model.forward_packed(packed.with_features(x), False).logits[0]
        if logits.numel() == 1:
            logits = torch.cat([-logits, logits])
        of = int(logits.argmax()) if target is None else int(target)
        (gradient,) = torch.autograd.grad(logits[of], x, allow_unused=True)
        if gradient is None:  # a control that does not look at the features
            return np.zeros(len(bag)), of
        values = (gradient.double() * x.detach().double()).sum(dim=1).cpu().numpy()
    return _finite(values, bag, "gradient"), of


def mean_scores(parts: Sequence[InstanceScores]) -> InstanceScores:
    """The mean over models, instance by instance.

    Raises:
        ConfigError: no scores, or those of different kinds, classes (the gradient's) or bags.
    """
    if not parts:
        raise ConfigError("there are no scores to average")
    kinds = sorted({p.name for p in parts})
    if len(kinds) > 1:
        raise ConfigError(f"scores of different kinds have no mean: {', '.join(kinds)}")
    described = sorted({p.description for p in parts})
    if len(described) > 1:
        raise ConfigError(
            f"scores of different meaning have no mean: {'; '.join(described)}. Give all one target class"
        )
    sizes = sorted({len(p.values) for p in parts})
    if len(sizes) > 1:
        raise ConfigError(f"scores of bags of {' and '.join(map(str, sizes))} instances have no mean: give one bag's")
    if len(parts) == 1:
        return parts[0]
    description = f"{parts[0].description} (mean of {len(parts)} models)"
    return replace(parts[0], values=np.mean([p.values for p in parts], axis=0), description=description)


def _class_attention(model: Aggregator, bag: Bag, score: str, classes: Sequence[str], device: str) -> InstanceScores:
    columns = _columns(model, classes)
    wanted = score.removeprefix(CLASS)
    if wanted not in columns:  # a class may be called "2": names go before numbers
        by_number = dict(zip(_columns(model, ()), columns, strict=True))
        wanted = by_number.get(wanted, wanted)
    if wanted not in columns:
        raise ConfigError(f"there is no class {wanted!r} to show the attention of: there are {', '.join(columns)}")
    with torch.inference_mode(), evaluating(model, device):
        auxiliary = model(collate([bag]).to(device), return_attention=True).auxiliary
    column = auxiliary["class_attention"][:, columns[wanted]]
    return _mass(column, bag, f"{CLASS}{wanted}", f"attention of class {wanted}, sums to 1 over the bag")


def _mass(weights: torch.Tensor | None, bag: Bag, name: str, description: str) -> InstanceScores:
    assert weights is not None  # has_attention says so
    values = _finite(weights.double().cpu().numpy(), bag, name)
    return InstanceScores(values / values.sum(), name, description, True)


def _finite(values: NDArray[np.float64], bag: Bag, name: str) -> NDArray[np.float64]:
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        raise MetricError(
            f"bag {bag.bag_id!r}: its {name} is {values[wrong[0]]} at instance {wrong[0]} ({wrong.size} of "
            f"{values.size}); look for NaN or infinity in its features and in the model's weights"
        )
    return values


def _columns(model: Aggregator, classes: Sequence[str]) -> dict[str, int]:
    """Classes that have an attention, by name (or number, without as many names), and its column.

    One logit is that of class 1, and so is its attention.
    """
    numbers = range(max(2, model.num_classes))
    names = list(classes) if len(classes) == len(numbers) else [str(c) for c in numbers]
    return {name: column for column, name in enumerate(names[-model.num_classes :])}


def _attending() -> list[str]:
    return [name for name in list_models() if find_entry(name).cls.has_attention]
