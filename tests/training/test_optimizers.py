"""Optimisers by name against their equations, and what they leave to a checkpoint."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qgmil.training.config import TrainConfig
from qgmil.training.lookahead import LookaheadRAdam
from qgmil.training.optimizers import build_optimizer, build_schedule, warmup_factor

NAMES = ("adamw", "adam", "radam", "lookahead_radam", "sgd")
LR, DECAY, BETAS = 0.03, 0.2, (0.8, 0.95)


class Tiny(nn.Module):
    """A matrix, a bias, a convolution's kernel and a weight that never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.matrix = nn.Parameter(torch.randn(3, 2, generator=generator))
        self.bias = nn.Parameter(torch.randn(3, generator=generator))
        self.kernel = nn.Parameter(torch.randn(2, 1, 3, generator=generator))
        self.unused = nn.Parameter(torch.randn(2, 2, generator=generator))


def gradients(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    shapes = {"matrix": (3, 2), "bias": (3,), "kernel": (2, 1, 3)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def optimizer_of(model: nn.Module, name: str, **values: Any) -> torch.optim.Optimizer:
    recipe = {"optimizer": name, "lr": LR, "weight_decay": DECAY, "betas": BETAS, **values}
    return build_optimizer(model, TrainConfig.build(recipe))


def step(model: Tiny, optimizer: torch.optim.Optimizer, number: int) -> None:
    for name, gradient in gradients(number).items():
        getattr(model, name).grad = gradient.clone()
    optimizer.step()


class Reference:
    """One weight in float64 by the papers' equations."""

    def __init__(self, name: str, w: np.ndarray, decays: bool) -> None:
        self.name, self.w, self.decay = name, w.astype(np.float64), DECAY if decays else 0.0
        self.m, self.v, self.t, self.slow = np.zeros_like(self.w), np.zeros_like(self.w), 0, self.w.copy()

    def step(self, g: np.ndarray) -> None:
        self.t += 1
        if self.name == "sgd":
            g = g + self.decay * self.w
            self.m = BETAS[0] * self.m + g
            self.w = self.w - LR * self.m
            return
        if self.name == "adam":
            g = g + self.decay * self.w
        else:
            self.w = self.w - LR * self.decay * self.w
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * g
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * g**2
        mean = self.m / (1 - BETAS[0] ** self.t)
        root = np.sqrt(self.v / (1 - BETAS[1] ** self.t))
        if self.name in ("adam", "adamw"):
            self.w = self.w - LR * mean / (root + 1e-8)
            return
        longest = 2 / (1 - BETAS[1]) - 1
        length = longest - 2 * self.t * BETAS[1] ** self.t / (1 - BETAS[1] ** self.t)
        if length > 5:  # Liu 2020, algorithm 2, with the release's threshold
            rectify = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            self.w = self.w - LR * math.sqrt(rectify) * mean / root
        else:
            self.w = self.w - LR * mean
        if self.name == "lookahead_radam" and self.t % 5 == 0:
            self.slow = self.slow + 0.5 * (self.w - self.slow)
            self.w = self.slow.copy()


#: Weights of `Tiny` that each optimiser decays.
DECAYED = {
    "adamw": {"matrix"},
    "adam": {"matrix", "bias", "kernel"},
    "sgd": {"matrix", "bias", "kernel"},
    "radam": {"matrix", "kernel"},
    "lookahead_radam": {"matrix", "kernel"},
}


@pytest.mark.parametrize("name", NAMES)
def test_steps_follow_the_equations(name: str) -> None:
    model = Tiny()
    before = model.unused.detach().clone()
    references = {k: Reference(name, getattr(model, k).detach().numpy(), k in DECAYED[name]) for k in gradients(0)}
    optimizer = optimizer_of(model, name)
    for number in range(17):  # beyond the first rectified steps, and three slow ones
        step(model, optimizer, number)
        for key, gradient in gradients(number).items():
            references[key].step(gradient.double().numpy())
            assert getattr(model, key).detach().numpy() == pytest.approx(references[key].w, abs=2e-6), (number, key)
    assert torch.equal(model.unused, before)


def test_the_slow_step_is_not_the_fast_one() -> None:
    fast, slow = Tiny(), Tiny()
    optimizers = optimizer_of(fast, "radam"), optimizer_of(slow, "lookahead_radam")
    for number in range(5):
        step(fast, optimizers[0], number)
        step(slow, optimizers[1], number)
        assert torch.equal(fast.matrix, slow.matrix) == (number < 4)
    assert torch.allclose(slow.matrix, (Tiny().matrix + fast.matrix) / 2)


def test_a_weight_that_starts_to_learn_late_joins_the_slow_step() -> None:
    model = Tiny()
    start = model.unused.detach().clone()
    optimizer = LookaheadRAdam(model.parameters(), lr=LR, k=3, alpha=0.25)
    for number in range(3):
        if number == 2:
            model.unused.grad = torch.ones(2, 2)
        step(model, optimizer, number)
    assert torch.allclose(model.unused, start - 0.25 * LR)  # the first step of RAdam is one of momentum alone


def test_gradients_that_come_about_in_the_closure_count() -> None:
    """As Lightning steps."""
    direct, closed = Tiny(), Tiny()
    optimizers = [LookaheadRAdam(m.parameters(), lr=LR, k=2) for m in (direct, closed)]
    for number in range(4):

        def closure(number: int = number) -> float:
            for name, gradient in gradients(number).items():
                getattr(closed, name).grad = gradient.clone()
            return 1.5

        step(direct, optimizers[0], number)
        assert optimizers[1].step(closure) == 1.5
    assert all(torch.equal(a, b) for a, b in zip(direct.parameters(), closed.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_checkpoint_goes_on_with_the_same_bits(name: str, stop: int) -> None:
    whole, first, second = Tiny(), Tiny(), Tiny()
    steady, before, after = optimizer_of(whole, name), optimizer_of(first, name), optimizer_of(second, name)
    for number in range(12):
        step(whole, steady, number)
        if number < stop:
            step(first, before, number)
    file = io.BytesIO()
    torch.save({"weights": first.state_dict(), "optimizer": before.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second.load_state_dict(saved["weights"])
    after.load_state_dict(saved["optimizer"])
    for number in range(stop, 12):
        step(second, after, number)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_the_default_is_adamw_on_matrices() -> None:
    """The same bits as PyTorch's own on the same groups."""
    ours, theirs = Tiny(), Tiny()
    groups = [
        {"params": [theirs.matrix, theirs.unused]},
        {"params": [theirs.bias, theirs.kernel], "weight_decay": 0.0},
    ]
    expected = torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-2, fused=True)
    found = build_optimizer(ours, TrainConfig())
    for number in range(3):
        step(ours, found, number)
        step(theirs, expected, number)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["32", "16"])
def test_fused_steps_are_taken_where_gradients_are_not_scaled(precision: str) -> None:
    for name in ("adamw", "adam", "sgd"):
        assert optimizer_of(Tiny(), name, precision=precision).defaults["fused"] is (precision == "32")


def test_schedules() -> None:
    model = Tiny()
    rates: dict[str, list[float]] = {}
    for schedule in ("constant", "cosine"):
        config = TrainConfig.build({"schedule": schedule, "lr": 2.0, "warmup": 0.2, "optimizer": "sgd"})
        optimizer = build_optimizer(model, config)
        follow = build_schedule(optimizer, config, 10)
        rates[schedule] = []
        for _ in range(10):
            rates[schedule].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            follow.step()
    assert rates["constant"] == pytest.approx([2 / 3, 4 / 3, *[2.0] * 8])
    cosine = [1 + math.cos(math.pi * k / 8) for k in range(8)]
    assert rates["cosine"] == pytest.approx([2 / 3, 4 / 3, *cosine])
    assert warmup_factor(0, 0) == 1.0
