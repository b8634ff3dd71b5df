"""Predicted memory: what it is made of, what it is extrapolated from, and what processes really take."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import planner
import pytest
import torch
from torch import nn

from models.small import small_model
from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.layers.kernels import rms
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput
from qgmil.planning import memory
from qgmil.planning.curves import Curve
from qgmil.planning.memory import Estimate, estimate, lightning_precision, peak_memory, scaled
from qgmil.planning.trace import trace_step

CPU = {"precision": "32", "device": "cpu"}


class Untraceable(Aggregator):
    """Mean pooling through numpy, with an explicit N x N map: no fake tensor gets past the first line."""

    def __init__(self, in_dim: int, num_classes: int) -> None:
        super().__init__(in_dim, num_classes)
        self.head = nn.Linear(in_dim, num_classes)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        x = torch.from_numpy(np.array(bags.features.detach().numpy()))
        weights = (x @ x.T).softmax(dim=1)
        return BagOutput(self.head((weights @ x).mean(dim=0, keepdim=True)), x.mean(dim=0, keepdim=True))


def test_the_parts_of_an_estimate() -> None:
    found = peak_memory("mean", 10, 2, (600, 400), options={"width": 20}, standardize=False, **CPU)
    weights = (10 * 20 + 20 + 20 * 2 + 2) * 4
    assert (found.parameters, found.optimizer, found.features) == (weights, 2 * weights, 40_000)
    assert found.tensors == weights * 3 + 40_000 + found.activations
    assert found.bytes >= found.tensors and found.process > 10**7
    assert (found.instances, found.sizes, found.method, found.training) == (1000, (600, 400), "traced", True)
    assert (found.precision, found.device) == ("32-true", "cpu")
    said = peak_memory("mean", 10, 2, (600, 400), options={"width": 20}, training=False, **CPU)
    assert said.optimizer == 0 and said.tensors < found.tensors
    assert said.parameters == weights + 2 * 10 * 4  # mean and spread of the features


def test_bfloat16_and_checkpointing_take_less() -> None:
    options = {"width": 256, "num_heads": 4, "ffn_dim": 512, "num_layers": 3}
    plain = peak_memory("qgmil", 32, 2, (8000,), options=options, **CPU)
    half = peak_memory("qgmil", 32, 2, (8000,), options=options, precision="bf16", device="cpu")
    saved = peak_memory("qgmil", 32, 2, (8000,), options=options, checkpointing=True, **CPU)
    assert half.tensors < 0.8 * plain.tensors and saved.tensors < 0.7 * plain.tensors


def test_a_model_with_nothing_to_train_has_no_backward_pass() -> None:
    model = small_model("mean").requires_grad_(False)
    asked: dict[str, Any] = {"precision": "32-true", "device": "cpu"}
    still, said = (estimate(model, (500,), training=training, **asked) for training in (True, False))
    assert still.optimizer == 0 and still.flops == said.flops


@pytest.mark.parametrize("sizes", [(), (0,), (5, -1)])
def test_no_plan_without_instances(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="give at least one bag"):
        peak_memory("mean", 10, 2, sizes, **CPU)


def test_precision_by_either_name() -> None:
    assert lightning_precision("bf16-mixed", "cpu") == lightning_precision("bf16", "cpu") == "bf16-mixed"
    with pytest.raises(ConfigError, match="choose one of auto, 32, bf16, 16"):
        lightning_precision("8", "cpu")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_extrapolation_meets_the_trace(precision: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a step with too many operations; here the limit is lowered, so that the truth can be had."""
    model = small_model()
    asked: dict[str, Any] = {"training": training, "precision": precision, "device": "cpu"}
    sizes = (4800, 3200)
    monkeypatch.setattr(rms, "PIECE", 2**12)  # norms go by pieces in the small bags, too
    truth = estimate(model, sizes, **asked)
    monkeypatch.setattr(memory, "LEAST_TOP", 3000)
    monkeypatch.setattr(memory, "MOST_OPERATIONS", 1)
    found = estimate(model, sizes, **asked)
    assert truth.method == "traced" and found.method.startswith("traced at 2,176 and 3,072 instances and extrapolated")
    assert found.tensors == pytest.approx(truth.tensors, rel=0.04)
    assert found.flops == pytest.approx(truth.flops, rel=0.04)
    assert found.attention_flops == pytest.approx(truth.attention_flops, rel=0.06)


def test_what_cannot_be_traced_is_measured_and_its_map_is_foreseen() -> None:
    model = Untraceable(8, 2)
    found = estimate(model, (6000,), training=False, precision="32-true", device="cpu")
    assert found.method.startswith("measured at 512, 1,024, 2,048 instances and extrapolated")
    truth = trace_step(model, (6000,), training=False, precision="32-true", device="cpu", fake=False)
    assert found.tensors == pytest.approx(truth.peak, rel=0.02)
    assert truth.peak > 2 * 6000**2 * 4  # the map and its softmax


def test_scaled_sizes_keep_their_proportions() -> None:
    assert scaled((300, 100, 1), 40) == (30, 10, 1)


def test_curves_use_the_square_only_where_it_shows() -> None:
    line = Curve.fit([100, 200, 400], [1000, 2001, 4000])
    assert line(4000) == pytest.approx(40_000, rel=0.01) and line.coefficients[2] == 0
    square = Curve.fit([100, 200, 400], [10 + n * n for n in (100, 200, 400)])
    assert square(4000) == pytest.approx(16_000_010, rel=1e-6)
    assert Curve.fit([100], [7])(10**6) == 7
    assert Curve.fit([100, 200], [8, 6])(400) == pytest.approx(7)  # never falling


def test_an_estimate_can_be_written_down() -> None:
    found = peak_memory("max", 10, 3, (50,), training=False, **CPU)
    assert {f.name for f in dataclasses.fields(Estimate)} == set(dataclasses.asdict(found))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("model", "instances", "training", "precision"),
    [("qgmil", 2500, True, "32"), ("abmil_gated", 10_000, False, "bf16")],
)
def test_prediction_is_within_a_fifth_of_a_real_process(
    model: str, instances: int, training: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh process whose large blocks are mapped: what it takes then does not depend on chance."""
    monkeypatch.setenv(planner.THRESHOLD, str(planner.MAPPED))
    found = peak_memory(
        model, planner.IN_DIM, planner.CLASSES, (instances,), training=training, precision=precision, device="cpu"
    )
    seen = planner.measured(model, instances, training, precision, 2, planner.ALLOCATORS["mapped"])
    assert found.bytes == pytest.approx(seen, rel=0.2)
