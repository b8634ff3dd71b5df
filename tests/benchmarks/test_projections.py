"""What is compared must be the same: one product for all projections gives what three give, gradients too."""

from __future__ import annotations

import torch
from projections import OneProduct

from qgmil.layers.attention import GatedSelfAttention


def test_one_product_gives_what_three_give() -> None:
    torch.manual_seed(0)
    layers = [kind(48, 4, 4, 12) for kind in (GatedSelfAttention, OneProduct)]
    layers[1].load_state_dict(layers[0].state_dict())
    u, found = torch.randn(37, 48), []
    for layer in layers:
        made = [x for x in layer.project(u) if x is not None]
        sum((x * (i + torch.arange(x.shape[-1]))).sum() for i, x in enumerate(made)).backward()
        found.append([*made, *(p.grad for p in layer.parameters() if p.grad is not None)])
    assert len(found[0]) == 4 + 5  # q, k, v, gate; the weights of three products and two norms
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
