"""The eager reference is the same computation as the model: equal logits, attention and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager_reference import EagerQGMIL, pad
from torch import Tensor

from qgmil import PackedBags, create_model
from qgmil.models.base import Aggregator

SMALL = {"width": 24, "num_heads": 4, "head_dim": 6, "ffn_dim": 40, "dropout": 0.0}
PRESETS = (
    "qgmil",
    "qgmil_elementwise",
    "qgmil_no_gate",
    "qgmil_layernorm",
    "qgmil_no_qknorm",
    "qgmil_minimal",
    "qgmil_deep",
    "qgmil_light",
)
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {} for name in PRESETS},
    "grouped-query": {"num_kv_heads": 2},
    "grouped-query, elementwise": {"num_kv_heads": 2, "gate": "elementwise"},
    "biases": {"bias": True},
    "layer norm with RMS on q and k": {"norm": "layer", "qk_norm": "rms"},
}
BATCHES = {"one bag": (9,), "ragged": (7, 1, 12), "equal": (5, 5)}


def _pair(variant: str, dtype: torch.dtype) -> tuple[Aggregator, EagerQGMIL]:
    """A model whose every weight matters (the initial norms are ones and the biases zeros), and its copy."""
    name = variant if variant in PRESETS else "qgmil"
    model = create_model(name, in_dim=10, num_classes=3, **SMALL, **VARIANTS[variant]).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5 if weight.ndim == 2 else weight)
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
    return model.train(), EagerQGMIL(model).train()


def _batch(sizes: tuple[int, ...], dtype: torch.dtype) -> PackedBags:
    labels = torch.arange(len(sizes)) % 3
    return PackedBags(torch.randn(sum(sizes), 10, dtype=dtype), sizes, labels)


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"])
def test_same_logits_attention_and_gradients(
    variant: str, sizes: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    model, eager = _pair(variant, dtype)
    bags = _batch(sizes, dtype)
    assert bags.labels is not None
    dense, mask = pad(bags)
    ours, theirs = model(bags, return_attention=True), eager(dense, mask)
    _close(ours.logits, theirs.logits, tolerance)
    _close(ours.attention, theirs.attention[mask], tolerance)
    model.loss(ours, bags.labels).backward()
    model.loss(theirs, bags.labels).backward()
    found = eager.gradients()
    for name, weight in model.named_parameters():
        mine, other = weight.grad, found.pop(name.replace(".", "_"))
        assert mine is not None and other is not None, name
        # There is something to be wrong about, but for a shift of all scores, which the softmax takes out.
        assert float(other.abs().max()) > 1e-6 or name == "pooling.attention_weights.bias", name
        _close(mine, other, tolerance, name)
    assert not found


def _close(ours: Tensor | None, theirs: Tensor | None, tolerance: float, name: str = "") -> None:
    assert ours is not None and theirs is not None
    ours, theirs = ours.detach(), theirs.detach()
    difference = float((ours - theirs).abs().max())
    assert difference <= tolerance * max(1.0, float(theirs.abs().max())), f"{name}: {difference}"


def test_padding_is_zeros_behind_each_bag() -> None:
    bags = PackedBags(torch.arange(1.0, 9.0).view(4, 2), (1, 3))
    dense, mask = pad(bags)
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert dense.tolist() == [[[1, 2], [0, 0], [0, 0]], [[3, 4], [5, 6], [7, 8]]]


def test_what_the_reference_does_not_have_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="pooling='attention' only"):
        EagerQGMIL(create_model("qgmil", in_dim=10, num_classes=2, **SMALL, pooling="mean"))
    with pytest.raises(NotImplementedError, match="standardise"):
        EagerQGMIL(create_model("qgmil", in_dim=10, num_classes=2, standardize=True, **SMALL))
