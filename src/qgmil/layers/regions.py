"""Attention within and across regions of a square of instances (Tang 2024, arXiv 2402.17228); memory linear in N."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qgmil.errors import ConfigError
from qgmil.layers.dropout import Dropout
from qgmil.layers.fused import attend, widened
from qgmil.layers.linear import Linear
from qgmil.layers.nystrom import HeadConv


@dataclass(frozen=True)
class Grid:
    """A square of ``side^2`` positions in square regions of ``region^2``; row by row, zeros behind the instances."""

    side: int
    region: int

    @classmethod
    def of(cls, instances: int, region_num: int, min_instances: int) -> Grid:
        """The smallest square that holds the instances and divides into ``region_num x region_num`` regions.

        With fewer instances than `min_instances`: one region, of an even side (the release's rule).
        """
        side = 1 + math.isqrt(instances - 1)
        if instances < min_instances:
            side += side % 2
            return cls(side, side)
        side += -side % region_num
        return cls(side, side // region_num)

    def split(self, x: Tensor) -> Tensor:
        """Instances ``(n, d)`` to regions ``(R, region^2, d)``, each row by row."""
        per_side = self.side // self.region
        padded = F.pad(x, (0, 0, 0, self.side**2 - x.shape[0]))
        parts = padded.view(per_side, self.region, per_side, self.region, -1).transpose(1, 2)
        return parts.reshape(per_side**2, self.region**2, -1)

    def join(self, regions: Tensor, instances: int) -> Tensor:
        """The inverse of `split`, without the padding."""
        per_side = self.side // self.region
        parts = regions.view(per_side, per_side, self.region, self.region, -1).transpose(1, 2)
        return parts.reshape(self.side**2, -1)[:instances]


class SequenceAttention(nn.Module):
    """Multi-head self-attention of sequences ``(B, n, dim)``, with EPEG if it has a kernel.

    EPEG adds to the scores ``E = Q K^T / sqrt(d)`` their own convolution along the queries, one kernel w a head:
    ``E_ij + sum_t w_t E_(i+t)j``. That is linear in the queries, ``((q_i + sum_t w_t q_(i+t)) . k_j) / sqrt(d)``: the
    convolution is done on them, and the scores are never stored. The release's bias of that convolution is the same for
    all scores of a head and so does nothing in their softmax: it is left out.

    Args:
        dim: width.
        num_heads: heads; must divide dim.
        kernel: of EPEG, odd; None: without.
        dropout: on the output.

    Raises:
        ConfigError: heads that do not divide the width, or an even kernel.
    """

    def __init__(self, dim: int, num_heads: int, *, kernel: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"num_heads={num_heads} must divide width={dim}")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.epeg = None if kernel is None else HeadConv(num_heads, kernel)
        self.proj = nn.Sequential(Linear(dim, dim), Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, n, dim) -> (B, n, dim)``."""
        batch, n, dim = x.shape
        qkv = self.qkv(x).view(batch, n, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.epeg is not None:
            q = widened(q) + self.epeg(q)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2).to(x.dtype))


class RegionAttention(nn.Module):
    """R-MSA: self-attention within each region. The zeros that fill the square take part, as released."""

    def __init__(self, dim: int, num_heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.attn = SequenceAttention(dim, num_heads, kernel=kernel, dropout=dropout)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """``(n, dim) -> (n, dim)`` of one bag."""
        return grid.join(self.attn(grid.split(x)), x.shape[0])


class CrossRegionAttention(nn.Module):
    """CR-MSA: k representatives of each region attend to those of the other regions, and hand back what they saw.

    Scores ``S = X phi`` of a region's positions for each representative r. The representative is the mean of X with
    weights ``softmax_positions(S)``; those of one r attend to each other over all regions; position p then gets
    ``sum_r softmax_r(S)_pr * minmax_positions(S)_pr * rep_r``, minmax being ``(S - min) / (max - min + 1e-8)``.
    """

    def __init__(self, dim: int, num_heads: int, representatives: int, dropout: float) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.empty(dim, representatives))
        nn.init.kaiming_uniform_(self.phi, a=math.sqrt(5))
        self.attn = SequenceAttention(dim, num_heads, dropout=dropout)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """``(n, dim) -> (n, dim)`` of one bag."""
        regions = grid.split(x)  # (R, P, d)
        with torch.autocast(x.device.type, enabled=False):
            wide = widened(regions)
            scores = (wide @ self.phi.to(wide.dtype)).transpose(1, 2)  # (R, k, P)
            means = scores.softmax(dim=2) @ wide
        seen = self.attn(means.to(x.dtype).transpose(0, 1)).transpose(0, 1)  # (R, k, d)
        with torch.autocast(x.device.type, enabled=False):
            least, most = scores.amin(dim=2, keepdim=True), scores.amax(dim=2, keepdim=True)
            share = scores.softmax(dim=1) * (scores - least) / (most - least + 1e-8)
            out = share.transpose(1, 2) @ widened(seen)
        return grid.join(out.to(x.dtype), x.shape[0])
