"""Predictions of a trained model on bags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qgmil.bags.bag import PackedBags
from qgmil.bags.dataset import BagDataset
from qgmil.evaluation.calibration import apply_temperature, expand_binary
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput
from qgmil.planning.guard import explained_memory_errors
from qgmil.training.device import autocast, choose_device, choose_precision
from qgmil.training.sampler import eval_loader, raise_errors


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of n bags.

    Args:
        bag_ids: names, in the order of the data set.
        logits: ``(n, C)`` float64; two columns for a model with one logit.
        attention: one array of instance weights a bag, or None where the aggregator has none.
        sizes: instances of each bag, as predicted on.
    """

    bag_ids: tuple[str, ...]
    logits: NDArray[np.float64]
    attention: tuple[NDArray[np.float32], ...] | None
    sizes: tuple[int, ...]

    def probabilities(self, temperature: float = 1.0) -> NDArray[np.float64]:
        """Softmax of logits over temperature ``(n, C)``."""
        return apply_temperature(self.logits, temperature)


def predict(model: Aggregator, bags: BagDataset, **settings: Any) -> Predictions:
    """Run one model over bags; settings as for `predict_all`."""
    return predict_all([model], bags, **settings)[0]


def predict_all(
    models: Sequence[Aggregator],
    bags: BagDataset,
    *,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "auto",
    sample: int | None = None,
    workers: int = 0,
    attention: bool = True,
    on_bags: Callable[[int], None] | None = None,
) -> list[Predictions]:
    """Run models over bags. Every bag is read once, however many models there are.

    Args:
        sample: at most this many instances a bag (always the same); None: all of them.
        attention: also keep the instance weights, where the model has any.
        on_bags: told the number of bags done, times models, after each batch and model.

    Raises:
        BagError: a bag that a model cannot take, by name.
        ConfigError: memory ran out; the bags and their sizes are named.
    """
    device = choose_device(device)
    models = [model.eval().to(device) for model in models]
    gathered = [_Gathered() for _ in models]
    batches = eval_loader(
        bags, None, batch_size=batch_size, sample=sample, workers=workers, pin_memory=device == "cuda"
    )
    precision = choose_precision(precision, device)
    done = 0
    with torch.inference_mode():
        for batch in batches:
            packed = raise_errors(batch).to(device, non_blocking=True)
            for model, into in zip(models, gathered, strict=True):
                explained = explained_memory_errors(packed, training=False)
                # autocast only here: packing float16 features fails under that of CPUs
                with explained, autocast(precision, device):
                    into.add(packed, model(packed, return_attention=attention))
                done += len(packed)
                if on_bags is not None:
                    on_bags(done)
    for model in models:
        model.cpu()
    return [into.predictions() for into in gathered]


class _Gathered:
    """What one model said, batch after batch."""

    def __init__(self) -> None:
        self.logits: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.ids: list[str] = []
        self.sizes: list[int] = []

    def add(self, packed: PackedBags, out: BagOutput) -> None:
        self.logits.append(out.logits.double().cpu().numpy())
        if out.attention is not None:
            self.weights += [a.numpy() for a in packed.unpack(out.attention.float().cpu())]
        self.ids += packed.bag_ids
        self.sizes += packed.sizes

    def predictions(self) -> Predictions:
        stacked = expand_binary(np.concatenate(self.logits))
        return Predictions(tuple(self.ids), stacked, tuple(self.weights) or None, tuple(self.sizes))
