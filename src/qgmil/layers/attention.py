"""Gated self-attention over packed bags; memory linear in the number of instances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qgmil.errors import ConfigError
from qgmil.layers.clusters import clustered_attention
from qgmil.layers.compiled import compile_rows
from qgmil.layers.linear import Linear
from qgmil.layers.norm import make_norm
from qgmil.layers.segments import segment_attention

GATES = ("headwise", "elementwise", "none")


@dataclass(frozen=True)
class LayerAttention:
    """The full attention map of one layer on one bag of n instances. Made on explicit request only.

    Args:
        attention: ``(H, n, n)``, each row summing to 1, before the gate.
        gate: sigmoid gate ``(n, H)`` headwise or ``(n, H, d)`` elementwise; None without a gate.
    """

    attention: Tensor
    gate: Tensor | None

    @property
    def gated(self) -> Tensor:
        """What the gate lets through ``(H, n, n)``: row i scaled by instance i's gate (its channel mean)."""
        if self.gate is None:
            return self.attention
        gate = self.gate.mean(dim=-1) if self.gate.ndim == 3 else self.gate
        return self.attention * gate.T.unsqueeze(-1)


class GatedSelfAttention(nn.Module):
    """Multi-head self-attention with QK norm and a sigmoid gate on its output (QG-MIL, arXiv 2606.20027).

    ``O_h = sigmoid(g_h) * softmax(norm(Q_h) norm(K_h)^T / sqrt(d)) V_h``, then ``concat(O) W_o``. The query
    projection also makes the gate. Its rows are laid out by key/value head as in the release: first the queries
    of the head's group, then the gates of the group.

    Args:
        dim: width of the stream.
        num_heads: query heads H.
        num_kv_heads: key and value heads G; must divide H.
        head_dim: width d of a head; H * d may differ from dim.
        gate: "headwise" (one scalar an instance and head), "elementwise" (one a channel) or "none".
        qk_norm: "rms", "layer" or "none"; weights shared by all heads.
        bias: biases in all four projections.
        dropout: attention dropout.
        key_clusters: most keys of a bag; larger bags attend to clusters of instances. None: all keys.

    Raises:
        ConfigError: an unknown gate, or heads that do not divide.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        gate: str = "headwise",
        qk_norm: str = "rms",
        bias: bool = False,
        dropout: float = 0.0,
        key_clusters: int | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if gate not in GATES:
            raise ConfigError(f"unknown gate {gate!r}: choose one of {', '.join(GATES)}")
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ConfigError(f"num_kv_heads={num_kv_heads} must divide num_heads={num_heads}")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.gate_dim = {"headwise": 1, "elementwise": head_dim, "none": 0}[gate]
        self.gate, self.dropout, self.key_clusters = gate, dropout, key_clusters
        self.q_proj = Linear(dim, num_heads * (head_dim + self.gate_dim), bias=bias)
        self.k_proj = Linear(dim, num_kv_heads * head_dim, bias=bias)
        self.v_proj = Linear(dim, num_kv_heads * head_dim, bias=bias)
        self.o_proj = Linear(num_heads * head_dim, dim, bias=bias)
        self.q_norm = make_norm(qk_norm, head_dim, eps) if qk_norm != "none" else nn.Identity()
        self.k_norm = make_norm(qk_norm, head_dim, eps) if qk_norm != "none" else nn.Identity()

    def project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Normalised q ``(T, H, d)``, k and v ``(T, G, d)``, and gate logits ``(T, H, 1 or d)`` or None."""
        rows, d = u.shape[0], self.head_dim
        per_group = self.num_heads // self.num_kv_heads
        mixed = self.q_proj(u).view(rows, self.num_kv_heads, per_group * (d + self.gate_dim))
        q = mixed[..., : per_group * d].reshape(rows, self.num_heads, d)
        gate = mixed[..., per_group * d :].reshape(rows, self.num_heads, self.gate_dim) if self.gate_dim else None
        k = self.k_proj(u).view(rows, self.num_kv_heads, d)
        v = self.v_proj(u).view(rows, self.num_kv_heads, d)
        return self.q_norm(q), self.k_norm(k), v, gate

    def compile_project(self, mode: str, **options: Any) -> None:
        """Compile the projections and their norms (`compile_rows`)."""
        self.__dict__.pop("project", None)  # what was compiled before
        self.__dict__["project"] = compile_rows(self.project, mode, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Copies are not compiled, as PyTorch does it: what was compiled has this module's weights."""
        return {name: value for name, value in super().__getstate__().items() if name != "project"}

    def forward(self, u: Tensor, sizes: Sequence[int]) -> Tensor:
        """Attend within each bag: ``(T, dim) -> (T, dim)``."""
        q, k, v, gate = self.project(u)
        dropout = self.dropout if self.training else 0.0
        if self.key_clusters is not None and max(sizes) > self.key_clusters:
            out = clustered_attention(q, k, v, u, sizes, self.key_clusters, dropout)
        else:
            out = segment_attention(q, k, v, sizes, dropout)
        del q, k, v  # without gradients their memory is free from here on
        if gate is not None:
            out = out * gate.sigmoid()
        return self.o_proj(out.flatten(1))

    def maps(self, u: Tensor, sizes: Sequence[int]) -> list[LayerAttention]:
        """The full maps, one a bag, from normed input ``(T, dim)``. Quadratic in the bag's size."""
        q, k, _, gate = self.project(u)
        k = k.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        gates: Sequence[Tensor | None] = [None] * len(sizes)
        if gate is not None:
            opened = gate.sigmoid()
            gates = (opened.squeeze(-1) if self.gate == "headwise" else opened).split(list(sizes))
        result = []
        for qi, ki, gi in zip(q.split(list(sizes)), k.split(list(sizes)), gates, strict=True):
            scores = torch.einsum("ihd,jhd->hij", qi, ki) / math.sqrt(self.head_dim)
            wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
            result.append(LayerAttention(wide.softmax(dim=-1), gi))
        return result
