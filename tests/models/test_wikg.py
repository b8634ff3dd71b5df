"""WiKG: neighbours in blocks, the graph's gradient, and its readouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import D, difference, features, small_model
from test_quirks import LargestTensor
from torch import Tensor

import qgmil
from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.models import wikg
from qgmil.models.base import Aggregator


@settings(max_examples=20)
@given(n=st.integers(1, 70), k=st.integers(1, 8), seed=st.integers(0, 999))
def test_nearest_are_the_largest_products(n: int, k: int, seed: int) -> None:
    k = min(k, n)
    head, tail = features(n, 5, seed=seed), features(n, 5, seed=seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wikg, "SIMILARITY_ENTRIES", 1)  # blocks of the least rows
        found = wikg.nearest(head, tail, k)
    products = head @ tail.T
    assert found.shape == (n, k)
    for i in range(n):
        assert len(set(found[i].tolist())) == k
        rest = [j for j in range(n) if j not in found[i].tolist()]
        assert not rest or products[i, found[i]].min() >= products[i, rest].max() - 1e-5


def step(model: Aggregator, x: Tensor) -> list[Tensor]:
    """Logits, attention and all gradients."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    output = model(PackedBags(x, (100, 1, 50)), return_attention=True)
    model.loss(output, torch.tensor([0, 1, 2])).backward()
    kept = [output.logits.detach(), output.attention.detach(), x.grad]
    return kept + [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("scores", ["inner", "released"])
def test_blocks_change_no_number(scores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are worked on a few at a time, recomputed in the backward pass, with the gradient of all at once."""
    model, x = small_model("wikg", scores=scores).double(), features(151, D, dtype=torch.float64)
    whole = step(model, x)
    with torch.no_grad():
        predicted = model(x[:100]).logits
    monkeypatch.setattr(wikg, "SIMILARITY_ENTRIES", 1)
    monkeypatch.setattr(wikg, "NEIGHBOUR_ENTRIES", 1)
    for a, b in zip(whole, step(model, x), strict=True):
        assert difference(a, b) < 1e-10 * max(1.0, float(a.abs().max()))
    with torch.no_grad():
        assert difference(model(x[:100]).logits, predicted) < 1e-10


def test_memory_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the similarities nor all neighbours' vectors are there at once, and none is kept for the gradient."""
    n = 1_500
    monkeypatch.setattr(wikg, "SIMILARITY_ENTRIES", 50_000)
    monkeypatch.setattr(wikg, "NEIGHBOUR_ENTRIES", 10_000)
    model, x = small_model("wikg").train(), features(n, D).requires_grad_()
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        output = model(x, return_attention=True)
        output.logits.sum().backward()
    assert largest.elements <= 50_000, largest.culprit
    assert sum(sizes.values()) < 25 * n * 32


def test_gradients_are_exact() -> None:
    """Through the chosen entries; the choice itself has none."""
    model = small_model("wikg", width=6, topk=2).double()
    x = features(7, D, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: model(v, return_attention=True).logits, (x,))


def test_bags_smaller_than_k_use_all_instances() -> None:
    x = features(4, D, dtype=torch.float64)
    models = [small_model("wikg", topk=k).double() for k in (3, 4, 9)]
    three, four, nine = (model(x).logits for model in models)
    assert difference(four, nine) < 1e-12
    assert difference(three, four) > 1e-6


def test_neighbours_are_of_the_same_bag() -> None:
    model, x = small_model("wikg").double(), features(20, D, dtype=torch.float64)
    other = x.clone()
    other[10:] *= -3
    a, b = (model(PackedBags(v, (10, 10))).logits for v in (x, other))
    assert difference(a[0], b[0]) < 1e-12
    assert difference(a[1], b[1]) > 1e-6


def test_every_weight_learns() -> None:
    for readout in wikg.READOUTS:
        model = small_model("wikg", readout=readout).double()
        assert model.has_attention == (readout == "attention")
        model(features(3, 12, D, dtype=torch.float64)).logits.square().sum().backward()
        without = {key for key, p in model.named_parameters() if p.grad.abs().max() < 1e-10}
        assert without == ({"attention_weights.bias"} if readout == "attention" else set())


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown scores 'outer': choose one of inner, released"):
        qgmil.create_model("wikg", in_dim=D, num_classes=2, scores="outer")
    with pytest.raises(ConfigError, match="unknown readout 'cls': choose one of attention, mean, max"):
        qgmil.create_model("wikg", in_dim=D, num_classes=2, readout="cls")
    with pytest.raises(ConfigError, match="topk must be a whole number of at least 1, got 0"):
        qgmil.create_model("wikg", in_dim=D, num_classes=2, topk=0)
