"""Does an aggregator weigh each instance by itself, or in the context of the others?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qgmil.bags.bag import Bag
from qgmil.models.base import Aggregator
from qgmil.models.registry import create_model

INSTANCES = 24


def weighs_alone(name: str, options: Mapping[str, Any], in_dim: int, num_classes: int, *, draws: int = 10) -> bool:
    """Whether the attention of an instance depends on that instance alone: half of a bag keeps its proportions.

    Asked of the architecture, not of what one has learnt: a trained model may hardly look at the others and still carry
    through them what it found. So this looks at untrained ones, their weights drawn further from where they start.
    Proportions may move by a tenth: where several branches are averaged (ACMIL) they shift a little between them, and
    each branch still weighs alone. Where instances see each other, they move by far more than that. Draws in which the
    half is of another class than the bag say nothing, for a model with attention of each class (CLAM-MB) shows another.

    Args:
        name: of the aggregator.
        options: its options.
        in_dim: feature dimension.
        num_classes: how many.
        draws: of the weights.
    """
    kept = []
    for seed in range(draws):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            model = _enlarged(create_model(name, in_dim=in_dim, num_classes=num_classes, **options)).eval()
            bag = Bag(torch.randn(INSTANCES, in_dim), bag_id=f"drawn_{seed}")
            kept.append(_keeps_proportions(model, bag, bag.take(torch.arange(INSTANCES // 2))))
    said = [k for k in kept if k is not None]
    return bool(said) and all(said)


@torch.inference_mode()
def _keeps_proportions(model: Aggregator, bag: Bag, half: Bag) -> bool | None:
    """Whether half of the bag has the bag's proportions; None where the two are of different classes."""
    whole, part = (model(x, return_attention=True) for x in (bag, half))
    if whole.attention is None or part.attention is None:
        return False
    if whole.logits.argmax() != part.logits.argmax():
        return None
    kept = whole.attention.flatten()[: len(half)]
    return bool(torch.allclose(kept / kept.sum(), part.attention.flatten(), rtol=0.1, atol=1e-4))


@torch.no_grad()
def _enlarged(model: Aggregator) -> Aggregator:
    """Noise of twice their own size on the weights; those that begin at zero get some as well."""
    for weight in model.parameters():
        size = weight.pow(2).mean().sqrt().clamp(min=0.1)
        weight.add_(torch.randn_like(weight) * (2 * size))
    return model
