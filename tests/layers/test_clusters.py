"""Attention to clusters of keys."""

from __future__ import annotations

import pytest
import torch

from qgmil import create_model
from qgmil.errors import BagError, ConfigError
from qgmil.layers.clusters import clustered_attention, group
from qgmil.layers.segments import segment_attention


def random(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    made_by = torch.Generator().manual_seed(7)
    return [torch.randn(s, generator=made_by, dtype=torch.float64) for s in shapes]


def test_like_keys_in_one_cluster_are_exact() -> None:
    q, k, v, u = random((400, 4, 8), (20, 2, 8), (20, 2, 8), (20, 32))
    k, v, u = k.repeat(20, 1, 1), v.repeat(20, 1, 1), u.repeat(20, 1)
    k[:200], v[:200], u[:200] = k[0], v[0], u[0]  # groups of very different sizes: the counts must weigh in
    ours = clustered_attention(q, k, v, u, (400,), 64)
    assert torch.allclose(ours, segment_attention(q, k, v, (400,)), atol=1e-6)


def test_small_bags_are_exact_and_bags_apart() -> None:
    q, k, v, u = random((90, 2, 8), (90, 2, 8), (90, 2, 8), (90, 16))
    ours = clustered_attention(q, k, v, u, (30, 60), 30)
    assert torch.allclose(ours[:30], segment_attention(q[:30], k[:30], v[:30], (30,)), atol=1e-12)
    assert torch.equal(ours[30:], clustered_attention(q[30:], k[30:], v[30:], u[30:], (60,), 30))


def test_the_order_of_instances_changes_nothing() -> None:
    q, k, v, u = random((300, 2, 8), (300, 2, 8), (300, 2, 8), (300, 16))
    mixed = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    straight = clustered_attention(q, k, v, u, (300,), 16)
    assert torch.allclose(
        clustered_attention(q[mixed], k[mixed], v[mixed], u[mixed], (300,), 16), straight[mixed], atol=1e-5
    )


def test_blobs_are_found() -> None:
    centres, noise = random((5, 16), (500, 16))
    truth = torch.arange(500) % 5
    members, counts = group((centres * 10)[truth] + 0.1 * noise, 5, iterations=10)
    assert counts.tolist() == [100.0] * 5
    assert len({(int(a), int(b)) for a, b in zip(truth, members, strict=True)}) == 5


def test_identical_instances_are_one_group() -> None:
    members, counts = group(torch.ones(50, 4), 8)
    assert members.tolist() == [0] * 50
    assert counts.tolist() == [50.0]


def test_a_model_with_clusters_trains_and_refuses_maps() -> None:
    torch.manual_seed(0)
    model = create_model("qgmil", in_dim=8, num_classes=2, width=16, num_heads=2, ffn_dim=32, key_clusters=10)
    out = model([torch.randn(40, 8), torch.randn(7, 8)])
    model.loss(out, torch.tensor([0, 1])).backward()
    assert all(bool(torch.isfinite(p.grad).all()) and bool(p.grad.any()) for p in model.parameters())
    with pytest.raises(BagError, match="attends to 10 clusters"):
        model.layer_attention(torch.randn(40, 8))
    assert model.layer_attention(torch.randn(7, 8))[0][0].attention.shape == (2, 7, 7)
    with pytest.raises(ConfigError, match="key_clusters cannot be exported"):
        model.to_released()
    with pytest.raises(ConfigError, match="key_clusters must be a whole number"):
        create_model("qgmil", in_dim=8, num_classes=2, key_clusters=0)
