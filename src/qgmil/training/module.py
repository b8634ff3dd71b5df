"""The Lightning module: loss, optimiser, schedule, validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from qgmil.bags.bag import PackedBags
from qgmil.errors import QGMILError
from qgmil.evaluation.calibration import apply_temperature, expand_binary
from qgmil.evaluation.metrics import evaluate
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput
from qgmil.training.config import TrainConfig
from qgmil.training.optimizers import build_optimizer, build_schedule
from qgmil.training.sampler import epoch_seed, raise_errors
from qgmil.training.share import ALL, Share


class MILModule(pl.LightningModule):
    """Trains one aggregator.

    Args:
        model: the aggregator.
        classes: class names in the order of the logits.
        config: the recipe.
        seed: of this run; dropout of each epoch follows from (seed, epoch).
        total_steps: optimiser steps of all epochs.
        class_weights: ``(C,)`` or None.
        share: of this process, where several train together.
    """

    def __init__(
        self,
        model: Aggregator,
        classes: Sequence[str],
        config: TrainConfig,
        *,
        seed: int,
        total_steps: int,
        class_weights: Tensor | None = None,
        share: Share = ALL,
    ) -> None:
        super().__init__()
        self.model, self.classes, self.config = model, list(classes), config
        self.seed, self.total_steps = seed, total_steps
        self.class_weights, self.share = class_weights, share
        self._train: list[tuple[Tensor, int]] = []
        self._val: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scores: dict[str, float | None] = {}
        self.batch: PackedBags | None = None  # that is worked on: running out of memory names it

    def forward(self, bags: PackedBags) -> BagOutput:
        return self.model(bags)

    def transfer_batch_to_device(
        self, batch: PackedBags | QGMILError, device: torch.device, dataloader_idx: int
    ) -> PackedBags:
        self.batch = raise_errors(batch)
        self.batch = self.batch.to(device, non_blocking=True)
        return self.batch

    def on_train_batch_end(self, outputs: Any, batch: PackedBags, batch_idx: int) -> None:
        self.batch = None

    def on_validation_batch_end(self, outputs: Any, batch: PackedBags, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batch = None

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.share.seed(epoch_seed(self.seed, self.current_epoch)))
        self._train.clear()

    def training_step(self, batch: PackedBags, batch_idx: int) -> Tensor:
        assert batch.labels is not None
        output = self.model(batch)
        loss = self.model.loss(
            output, batch.labels, class_weights=self.class_weights, label_smoothing=self.config.label_smoothing
        )
        bags, factor = self.share.weight(batch_idx, len(batch))
        self._train.append((loss.detach(), bags))
        return loss * factor

    def on_train_epoch_end(self) -> None:
        sums: list[Any] = [sum(loss * n for loss, n in self._train), sum(n for _, n in self._train)]
        if self.share.world > 1:
            sums = self.share.sum([float(value) for value in sums], self.device)
        self.scores["train_loss"] = float(sums[0] / sums[1])

    def on_validation_epoch_start(self) -> None:
        self._val.clear()

    def validation_step(self, batch: PackedBags, batch_idx: int) -> None:
        assert batch.labels is not None
        output = self.model(batch)
        self._val.append((self.model.loss(output, batch.labels) * len(batch), output.logits.float(), batch.labels))

    def on_validation_epoch_end(self) -> None:
        labels = torch.cat([y for _, _, y in self._val]).cpu().numpy()
        logits = torch.cat([z for _, z, _ in self._val]).double().cpu().numpy()
        self.scores["val_loss"] = float(sum(loss for loss, _, _ in self._val)) / len(labels)
        found: dict[str, Any] = {}
        if np.isfinite(logits).all():  # a diverged model has no metrics; early stopping sees its loss
            found = evaluate(apply_temperature(expand_binary(logits), 1.0), labels, self.classes)
        self.scores.update({f"val_{name}": found.get(name) for name in ("macro_f1", "auroc", "balanced_accuracy")})
        self.scores = self.share.first(self.scores, self.device)  # all stop at once and choose the same epoch
        value = self.scores[self.config.monitor]
        self.log(self.config.monitor, math.nan if value is None else value, batch_size=len(labels), logger=False)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Called after unscaling. Lightning's own refuses fused optimisers under autocast, also where nothing is scaled.
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.config)
        schedule = build_schedule(optimizer, self.config, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def balanced_weights(labels: Sequence[int], num_classes: int) -> Tensor:
    """``n / (C n_c)``: rare classes weigh as much as common ones."""
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes).clamp(min=1)
    return (len(labels) / (num_classes * counts)).float()
