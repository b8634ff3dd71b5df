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
from qgmil.training.sampler import epoch_seed, raise_errors


class MILModule(pl.LightningModule):
    """Trains one aggregator with AdamW, warm-up and cosine decay.

    Args:
        model: the aggregator.
        classes: class names in the order of the logits.
        config: the recipe.
        seed: of this run; dropout of each epoch follows from (seed, epoch).
        total_steps: optimiser steps of all epochs.
        class_weights: ``(C,)`` or None.
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
    ) -> None:
        super().__init__()
        self.model, self.classes, self.config = model, list(classes), config
        self.seed, self.total_steps = seed, total_steps
        self.class_weights = class_weights
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
        torch.manual_seed(epoch_seed(self.seed, self.current_epoch))
        self._train.clear()

    def training_step(self, batch: PackedBags, batch_idx: int) -> Tensor:
        assert batch.labels is not None
        output = self.model(batch)
        loss = self.model.loss(
            output, batch.labels, class_weights=self.class_weights, label_smoothing=self.config.label_smoothing
        )
        self._train.append((loss.detach(), len(batch)))
        return loss

    def on_train_epoch_end(self) -> None:
        self.scores["train_loss"] = float(sum(loss * n for loss, n in self._train) / sum(n for _, n in self._train))

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
        value = self.scores[self.config.monitor]
        self.log(self.config.monitor, math.nan if value is None else value, batch_size=len(labels), logger=False)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Called after unscaling. Lightning's own refuses fused optimisers under autocast, also where nothing is scaled.
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> Any:
        decay = [p for p in self.model.parameters() if p.ndim == 2]
        rest = [p for p in self.model.parameters() if p.ndim != 2]  # norms, biases, class token
        groups: list[dict[str, Any]] = [{"params": decay}, {"params": rest, "weight_decay": 0.0}]
        fused = self.config.precision != "16"  # a fused step would unscale float16 gradients after they are clipped
        optimizer = torch.optim.AdamW(groups, lr=self.config.lr, weight_decay=self.config.weight_decay, fused=fused)
        warmup = int(self.config.warmup * self.total_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, warmup, self.total_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def balanced_weights(labels: Sequence[int], num_classes: int) -> Tensor:
    """``n / (C n_c)``: rare classes weigh as much as common ones."""
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes).clamp(min=1)
    return (len(labels) / (num_classes * counts)).float()
