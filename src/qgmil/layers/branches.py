"""Attention with several branches: one column of weights, and one bag vector, a branch or class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qgmil.layers.dropout import Dropout
from qgmil.layers.linear import Linear, filled


class BranchScores(nn.Module):
    """Gated scores of K branches, ``W (tanh(V z) * sigmoid(U z))``: all branches share V and U.

    Args:
        dim: width of an instance.
        hidden: rows of V and U.
        branches: rows of W, K.
        dropout: on both factors of the gate.
    """

    def __init__(self, dim: int, hidden: int, branches: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_V = nn.Sequential(Linear(dim, hidden), nn.Tanh(), Dropout(dropout))
        self.attention_U = nn.Sequential(Linear(dim, hidden), nn.Sigmoid(), Dropout(dropout))
        self.attention_weights = Linear(hidden, branches)

    def forward(self, z: Tensor) -> Tensor:
        """``(T, dim) -> (T, K)`` unnormalised scores."""
        return self.attention_weights(self.attention_V(z) * self.attention_U(z))


def weighted_sums(weights: Tensor, values: Tensor, sizes: Sequence[int]) -> Tensor:
    """``sum_i a_ik z_i`` a bag and branch: weights ``(T, K)``, values ``(T, E)`` -> ``(B, K, E)``."""
    pairs = zip(weights.to(values.dtype).split(list(sizes)), values.split(list(sizes)), strict=True)
    return torch.stack([filled(a).T @ filled(z) for a, z in pairs])


def of_predicted_class(class_attention: Tensor, logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """The column of each bag's predicted class (the first of equals): ``(T, C)``, logits ``(B, C)`` -> ``(T,)``."""
    # Selected on the device: reading the classes here would make the host wait.
    predicted = logits.detach().argmax(dim=1).split(1)
    parts = zip(class_attention.split(list(sizes)), predicted, strict=True)
    return torch.cat([part.index_select(1, c).squeeze(1) for part, c in parts])
