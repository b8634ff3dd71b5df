"""Optimisers and schedules of the learning rate by name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from qgmil.training.config import FitConfig
from qgmil.training.lookahead import LookaheadRAdam


def build_optimizer(model: nn.Module, config: FitConfig) -> Optimizer:
    """The optimiser of a configuration on a model's weights.

    Weight decay is what the name stands for where it comes from: decoupled with adamw (Loshchilov 2019, arXiv
    1711.05101) and radam (Liu 2020, arXiv 1908.03265, as released), there without norms and biases; L2 on all weights
    with adam (Kingma 2015, arXiv 1412.6980) and sgd, as originals that use these give them every parameter. adamw also
    spares class tokens and convolutions, radam does not. The momentum of sgd is the first of `betas`.
    """
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    # A fused step would unscale float16 gradients after they are clipped.
    fused = config.precision != "16"
    if config.optimizer == "adamw":
        return torch.optim.AdamW(_groups(model, matrices_only=True), betas=config.betas, fused=fused, **options)
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), betas=config.betas, fused=fused, **options)
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.betas[0], fused=fused, **options)
    kind = LookaheadRAdam if config.optimizer == "lookahead_radam" else torch.optim.RAdam
    groups = _groups(model, matrices_only=False)
    return kind(groups, betas=config.betas, decoupled_weight_decay=True, **options)


def _groups(model: nn.Module, *, matrices_only: bool) -> list[dict[str, Any]]:
    """Weights that decay, and norms and biases (also class tokens and convolutions if only matrices decay)."""

    def decays(p: nn.Parameter) -> bool:
        return p.ndim == 2 if matrices_only else p.ndim > 1

    decay = [p for p in model.parameters() if decays(p)]
    rest = [p for p in model.parameters() if not decays(p)]
    return [{"params": decay}, {"params": rest, "weight_decay": 0.0}]


def build_schedule(optimizer: Optimizer, config: FitConfig, total_steps: int) -> LambdaLR:
    """The learning rate by step: warm-up, then as the configuration says."""
    warmup = int(config.warmup * total_steps)
    if config.schedule == "constant":
        return LambdaLR(optimizer, lambda step: warmup_factor(step, warmup))
    return LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total_steps))


def warmup_factor(step: int, warmup: int) -> float:
    """Factor on the learning rate: linear warm-up, then 1."""
    return (step + 1) / (warmup + 1) if step < warmup else 1.0


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return warmup_factor(step, warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
