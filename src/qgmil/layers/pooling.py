"""Pooling of packed instances to one vector a bag."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qgmil.layers.linear import Linear, filled


def segment_softmax(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """Softmax within each bag, in at least float32: ``(T,) -> (T,)`` or ``(T, K) -> (T, K)``, summing to 1 a bag."""
    wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    if len(sizes) == 1:
        return wide.softmax(dim=0)
    return torch.cat([part.softmax(dim=0) for part in wide.split(list(sizes))])


def weighted_sum(weights: Tensor, values: Tensor, sizes: Sequence[int]) -> Tensor:
    """``sum_i a_i z_i`` a bag: weights ``(T,)``, values ``(T, E)`` -> ``(B, E)``."""
    # One small matrix product a bag: blocked summation, no (T, E) temporary, and a batch gives exactly what
    # its bags give alone.
    pairs = zip(weights.to(values.dtype).split(list(sizes)), values.split(list(sizes)), strict=True)
    return torch.stack([filled(a) @ filled(z) for a, z in pairs])


def segment_mean(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean a bag: ``(T, E) -> (B, E)``."""
    return torch.stack([part.mean(dim=0) for part in values.split(list(sizes))])


def segment_max(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Maximum of each channel a bag: ``(T, E) -> (B, E)``."""
    return torch.stack([part.amax(dim=0) for part in values.split(list(sizes))])


def attention_scores(z: Tensor, value: nn.Module, gate: nn.Module | None, weights: nn.Module) -> Tensor:
    """``w^T (value(z) * gate(z))``: ``(T, dim) -> (T,)`` (Ilse 2018, 1802.04712, equations 8 and 9)."""
    hidden = value(z)
    if gate is not None:
        hidden = hidden * gate(z)
    return weights(hidden).squeeze(-1)


class AttentionScore(nn.Module):
    """Instance scores ``w^T tanh(V z)``, or gated ``w^T (tanh(V z) * sigmoid(U z))``."""

    def __init__(self, dim: int, hidden: int, gated: bool = True) -> None:
        super().__init__()
        self.attention_V = nn.Sequential(Linear(dim, hidden), nn.Tanh())
        self.attention_U = nn.Sequential(Linear(dim, hidden), nn.Sigmoid()) if gated else None
        self.attention_weights = Linear(hidden, 1)

    def forward(self, z: Tensor) -> Tensor:
        """``(T, dim) -> (T,)`` unnormalised scores."""
        return attention_scores(z, self.attention_V, self.attention_U, self.attention_weights)


class NormedAttentionPool(nn.Module):
    """QG-MIL's pooling: ``a = softmax(w^T (tanh(V z) * sigmoid(U z)))``, ``bag = sum a_i z_i``, ``z = norm(h)``."""

    def __init__(self, dim: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.attention_V = nn.Sequential(Linear(dim, dim // 2), nn.Tanh())
        self.attention_U = nn.Sequential(Linear(dim, dim // 2), nn.Sigmoid())
        self.attention_weights = Linear(dim // 2, 1)

    def forward(self, h: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``(T, dim)`` -> bag vectors ``(B, dim)`` and weights ``(T,)``."""
        z = self.norm(h)
        scores = attention_scores(z, self.attention_V, self.attention_U, self.attention_weights)
        attention = segment_softmax(scores, sizes)
        return weighted_sum(attention, z, sizes), attention
