"""The pre-norm transformer block of QG-MIL."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from qgmil.errors import ConfigError
from qgmil.layers.attention import GatedSelfAttention
from qgmil.layers.dropout import Dropout
from qgmil.layers.feedforward import MLPS
from qgmil.layers.norm import make_norm


class GatedBlock(nn.Module):
    """``H <- H + Dropout(Attn(norm(H)))``, then ``H <- H + Dropout(MLP(norm(H)))``.

    Args:
        attention: the self-attention module.
        dim: width of the stream.
        ffn_dim: hidden size of the SwiGLU (the plain MLP matches its parameters).
        norm: "rms" or "layer".
        mlp: "swiglu" or "plain".
        activation: of the feed-forward.
        dropout: on both residual branches.

    Raises:
        ConfigError: an unknown norm, mlp or activation.
    """

    def __init__(
        self,
        attention: GatedSelfAttention,
        dim: int,
        ffn_dim: int,
        *,
        norm: str,
        mlp: str,
        activation: str,
        dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        if not isinstance(mlp, str) or mlp not in MLPS:
            raise ConfigError(f"unknown mlp {mlp!r}: choose one of {', '.join(MLPS)}")
        self.input_layernorm = make_norm(norm, dim, eps)
        self.self_attn = attention
        self.post_attention_layernorm = make_norm(norm, dim, eps)
        self.mlp = MLPS[mlp](dim, ffn_dim, activation)
        self.dropout = Dropout(dropout)

    def forward(self, h: Tensor, sizes: Sequence[int]) -> Tensor:
        """``(T, dim) -> (T, dim)``."""
        h = h + self.dropout(self.self_attn(self.input_layernorm(h), sizes))
        return h + self.dropout(self.mlp(self.post_attention_layernorm(h)))
