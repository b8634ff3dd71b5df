"""ILRA-MIL: low-rank attention that is linear in instances, and its pooling."""

from __future__ import annotations

import pytest
import torch
from small import D, difference, features, small_model
from test_quirks import LargestTensor

import qgmil
from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError


def test_memory_is_linear() -> None:
    n = 1_500
    model, x = small_model("ilra", num_latents=4).train(), features(n, D).requires_grad_()
    with LargestTensor() as largest:
        model(x, return_attention=True).logits.sum().backward()
    assert largest.elements <= n * 32, largest.culprit


def test_latents_are_the_only_way_between_instances() -> None:
    """With latents that attend to nothing but a constant, an instance's update depends on itself alone."""
    model, x = small_model("ilra", num_layers=1).double(), features(6, D, dtype=torch.float64)
    block = model.blocks[0]
    changed = x.clone()
    changed[0] += 1.0
    assert difference(block(x, [6])[1:], block(changed, [6])[1:]) > 1e-6
    with torch.no_grad():
        block.forth.out_proj.weight.zero_()
    assert difference(block(x, [6])[1:], block(changed, [6])[1:]) == 0.0


def test_attention_is_the_mean_over_the_poolings_heads() -> None:
    model, x = small_model("ilra").double(), features(9, D, dtype=torch.float64)
    seen = []
    handle = model.pooling.register_forward_hook(lambda module, inputs, result: seen.append(result[1]))
    attention = model(PackedBags(x, (4, 5)), return_attention=True).attention
    handle.remove()
    assert seen[0].shape == (9, 4)
    assert difference(seen[0][:4].sum(0), torch.ones(4)) < 1e-12
    assert difference(attention, seen[0].mean(1)) == 0.0


def test_repeating_a_bag_changes_nothing() -> None:
    """All attention is to a distribution over instances: a bag twice over is the same distribution."""
    model, x = small_model("ilra").double(), features(5, D, dtype=torch.float64)
    once, twice = model(x, return_attention=True), model(torch.cat([x, x]), return_attention=True)
    assert difference(once.logits, twice.logits) < 1e-12
    assert difference(once.attention, twice.attention[:5] + twice.attention[5:]) < 1e-12


def test_checkpointing_changes_no_number() -> None:
    model, x = small_model("ilra").train(), features(2, 9, D)
    found = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        logits = model(x).logits
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_every_weight_learns_but_the_keys_biases() -> None:
    model = small_model("ilra").double()
    model(features(3, 12, D, dtype=torch.float64)).logits.square().sum().backward()
    without = {key for key, p in model.named_parameters() if p.grad.abs().max() < 1e-10}
    assert without == {key for key, _ in model.named_parameters() if key.endswith("k_proj.bias")}


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match="num_heads=3 must divide width=32"):
        qgmil.create_model("ilra", in_dim=D, num_classes=2, width=32, num_heads=3)
    with pytest.raises(ConfigError, match="num_latents must be a whole number of at least 1, got 0"):
        qgmil.create_model("ilra", in_dim=D, num_classes=2, num_latents=0)
    with pytest.raises(ConfigError, match="layer_norm must be true or false, got 1"):
        qgmil.create_model("ilra", in_dim=D, num_classes=2, layer_norm=1)
