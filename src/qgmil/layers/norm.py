"""Normalisation whose statistics accumulate in at least float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qgmil.errors import ConfigError
from qgmil.layers.kernels.rms import rms_norm

NORMS = ("rms", "layer")


def _accumulation(x: Tensor) -> Tensor:
    """float16 and bfloat16 are widened; float32 and float64 stay, so that gradcheck in float64 is exact."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019, 1910.07467): ``x / sqrt(mean(x^2) + eps) * weight``."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim) -> (..., dim)``, in the input's dtype."""
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return rms_norm(x, self.weight, self.eps)
        wide = _accumulation(x)
        return F.rms_norm(wide, self.weight.shape, self.weight.to(wide.dtype), self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class LayerNorm(nn.Module):
    """Layer norm with weight and bias (Ba 2016, 1607.06450)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim) -> (..., dim)``, in the input's dtype."""
        wide = _accumulation(x)
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return F.layer_norm(wide, self.weight.shape, weight, bias, self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def make_norm(kind: str, dim: int, eps: float = 1e-6) -> nn.Module:
    """The norm called "rms" or "layer".

    Raises:
        ConfigError: any other name.
    """
    if kind == "rms":
        return RMSNorm(dim, eps)
    if kind == "layer":
        return LayerNorm(dim, eps)
    raise ConfigError(f"unknown norm {kind!r}: choose one of {', '.join(NORMS)}")


def outer_norm(kind: str, dim: int, eps: float) -> nn.Module:
    """The norm outside the blocks (after the input projection, at the end, in the pooling).

    There the release builds LayerNorm with PyTorch's default eps of 1e-5 whatever the configuration says.
    """
    return make_norm(kind, dim, 1e-5 if kind == "layer" else eps)
