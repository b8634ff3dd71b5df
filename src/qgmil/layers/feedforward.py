"""Feed-forward parts: SwiGLU and the plain MLP with as many parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qgmil.errors import ConfigError
from qgmil.layers.kernels.swiglu import swiglu
from qgmil.layers.linear import Linear, in_few_sizes

#: Instances above which memory counts for more than the few per cent of time that saving it costs.
LARGE = 8192

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def activation_named(name: str) -> Callable[[Tensor], Tensor]:
    """The activation function of that name.

    Raises:
        ConfigError: unknown name (the release turns a misspelt one into SiLU silently).
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class SwiGLU(nn.Module):
    """``W_down(act(W_gate x) * W_up x)`` (Shazeer 2020, 2002.05202), without biases."""

    def __init__(self, dim: int, hidden: int, activation: str = "silu") -> None:
        super().__init__()
        self.gate_proj = Linear(dim, hidden, bias=False)
        self.up_proj = Linear(dim, hidden, bias=False)
        self.down_proj = Linear(hidden, dim, bias=False)
        self.activation = activation_named(activation)

    def forward(self, x: Tensor) -> Tensor:
        """``(T, dim) -> (T, dim)``."""
        if not torch.compiler.is_compiling() and self.activation is F.silu and x.shape[0] > LARGE:
            return in_few_sizes(self._in_pieces, x)
        return in_few_sizes(self._whole, x)

    def _in_pieces(self, x: Tensor) -> Tensor:
        return swiglu(x, *(layer.weight for layer in (self.gate_proj, self.up_proj, self.down_proj)))

    def _whole(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class PlainMLP(nn.Module):
    """``W_down(act(W_up x))`` without biases: the one-factor control for SwiGLU.

    `hidden` is the SwiGLU's hidden size; ours is 1.5 times that, so that two matrices hold exactly as many
    parameters as SwiGLU's three.

    Raises:
        ConfigError: an odd hidden size, which has no exact match.
    """

    def __init__(self, dim: int, hidden: int, activation: str = "silu") -> None:
        super().__init__()
        if hidden % 2:
            raise ConfigError(f"mlp='plain' needs an even ffn_dim to match SwiGLU's parameters, got {hidden}")
        self.up_proj = Linear(dim, hidden * 3 // 2, bias=False)
        self.down_proj = Linear(hidden * 3 // 2, dim, bias=False)
        self.activation = activation_named(activation)

    def forward(self, x: Tensor) -> Tensor:
        """``(T, dim) -> (T, dim)``."""
        return self.down_proj(self.activation(self.up_proj(x)))


MLPS: dict[str, type[SwiGLU] | type[PlainMLP]] = {"swiglu": SwiGLU, "plain": PlainMLP}
