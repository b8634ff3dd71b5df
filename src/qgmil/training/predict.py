"""Predictions of a trained model on bags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qgmil.bags.dataset import BagDataset
from qgmil.evaluation.calibration import apply_temperature, expand_binary
from qgmil.models.base import Aggregator
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


def predict(
    model: Aggregator,
    bags: BagDataset,
    *,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "auto",
    sample: int | None = None,
    workers: int = 0,
    attention: bool = True,
    on_bags: Callable[[int], None] | None = None,
) -> Predictions:
    """Run a model over bags.

    Args:
        sample: at most this many instances a bag (always the same); None: all of them.
        attention: also keep the instance weights, where the model has any.
        on_bags: told the number of bags done after each batch.

    Raises:
        BagError: a bag that the model cannot take, by name.
    """
    device = choose_device(device)
    model = model.eval().to(device)
    logits: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    ids: list[str] = []
    sizes: list[int] = []
    batches = eval_loader(
        bags, None, batch_size=batch_size, sample=sample, workers=workers, pin_memory=device == "cuda"
    )
    precision = choose_precision(precision, device)
    with torch.inference_mode():
        for batch in batches:
            packed = raise_errors(batch).to(device, non_blocking=True)
            with autocast(precision, device):  # only here: packing float16 features fails under CPU autocast
                out = model(packed, return_attention=attention)
            logits.append(out.logits.double().cpu().numpy())
            if out.attention is not None:
                weights += [a.numpy() for a in packed.unpack(out.attention.float().cpu())]
            ids += packed.bag_ids
            sizes += packed.sizes
            if on_bags is not None:
                on_bags(len(ids))
    model.cpu()
    stacked = expand_binary(np.concatenate(logits))
    return Predictions(tuple(ids), stacked, tuple(weights) if weights else None, tuple(sizes))
