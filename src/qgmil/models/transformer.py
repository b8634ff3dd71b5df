"""The plain transformer encoder: the control for QG-MIL's four components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.layers.attention import GatedSelfAttention
from qgmil.layers.compiled import compile_module
from qgmil.layers.dropout import Dropout
from qgmil.layers.linear import Linear
from qgmil.layers.norm import LayerNorm
from qgmil.layers.pooling import NormedAttentionPool
from qgmil.models.base import Aggregator, apply_head, check_rates, check_sizes
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model

POOLINGS = ("cls", "attention")
EPS = 1e-5  # of LayerNorm, as in torch.nn.TransformerEncoderLayer


class EncoderBlock(nn.Module):
    """``H <- H + Dropout(Attn(norm(H)))``, then ``H <- H + Dropout(W2 Dropout(GELU(W1 norm(H))))``, with all biases.

    `torch.nn.TransformerEncoderLayer` with ``norm_first=True``, over packed bags.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, EPS)
        self.self_attn = GatedSelfAttention(
            dim,
            num_heads,
            num_heads,
            dim // num_heads,
            gate="none",
            qk_norm="none",
            bias=True,
            dropout=attention_dropout,
        )
        self.norm2 = LayerNorm(dim, EPS)
        self.mlp = nn.Sequential(Linear(dim, ffn_dim), nn.GELU(), Dropout(dropout), Linear(ffn_dim, dim))
        self.dropout = Dropout(dropout)

    def forward(self, h: Tensor, sizes: Sequence[int]) -> Tensor:
        """``(T, dim) -> (T, dim)``."""
        h = h + self.dropout(self.self_attn(self.norm1(h), sizes))
        return h + self.dropout(self.mlp(self.norm2(h)))


@register_model("transformer", "plain pre-LayerNorm transformer encoder (control)")
class TransformerMIL(Aggregator):
    """Pre-LayerNorm transformer encoder without positional encoding: permuting instances changes nothing.

    ``H0 = Dropout(W x + b)``; class token; blocks (Vaswani 2017, 1706.03762, with the norm first); LayerNorm; one
    linear layer on the bag vector. Projection, initialisation and dropout are as in QG-MIL, so that the two differ in
    what they are compared for.

    Attention is the class token's row of the last block, mean over heads, without the token's weight on itself and
    divided by its sum; with ``pooling="attention"`` it is the pooling's.

    Args:
        width: width d of the stream.
        num_heads: heads; must divide the width.
        num_layers: blocks.
        ffn_dim: hidden size of the feed-forward.
        dropout: on the input, the residual branches and the feed-forward's hidden layer.
        attention_dropout: on attention weights.
        pooling: "cls" (the class token's final state) or "attention" (QG-MIL's gated attention pooling, no token).

    Raises:
        ConfigError: an unknown pooling, or heads that do not divide the width.
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        width: int = 512,
        num_heads: int = 8,
        num_layers: int = 2,
        ffn_dim: int = 2048,
        dropout: float = 0.25,
        attention_dropout: float = 0.0,
        pooling: str = "cls",
    ) -> None:
        super().__init__(in_dim, num_classes)
        check_sizes(width=width, num_heads=num_heads, num_layers=num_layers, ffn_dim=ffn_dim)
        check_rates(dropout=dropout, attention_dropout=attention_dropout)
        if pooling not in POOLINGS:
            raise ConfigError(f"unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        if width % num_heads:
            raise ConfigError(f"num_heads={num_heads} must divide width={width}")
        self.embed = nn.Sequential(Linear(in_dim, width), Dropout(dropout))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if pooling == "cls" else None
        self.blocks = nn.ModuleList(
            EncoderBlock(width, num_heads, ffn_dim, dropout, attention_dropout) for _ in range(num_layers)
        )
        self.norm = LayerNorm(width, EPS)
        self.pooling = NormedAttentionPool(width, LayerNorm(width, EPS)) if pooling == "attention" else None
        self.head = Linear(width, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of 0.02 for weights, zero biases; a class token of the scale of the normed stream.

        The token's state goes through a LayerNorm before the head. Begun near zero, it is blown up there to whatever
        direction it first takes: all bags of a class end on one point, and their ranking is lost.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token)

    def compile_rowwise(self, mode: str, **options: Any) -> None:
        for block in self.blocks:
            assert isinstance(block, EncoderBlock)
            block.self_attn.compile_project(mode, **options)
            compile_module(block.mlp, mode, **options)
        compile_module(self.embed, mode, **options)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        h, sizes = self.embed(bags.features), bags.sizes
        if self.cls_token is not None:  # first in each bag
            token = self.cls_token[0].to(h.dtype)
            h = torch.cat([part for rows in h.split(sizes) for part in (token, rows)])
            sizes = tuple(n + 1 for n in sizes)
        for block in self.blocks:
            before = h
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, sizes, use_reentrant=False)
            else:
                h = block(h, sizes)
        attention = None
        if self.pooling is not None:
            embedding, attention = self.pooling(self.norm(h), sizes)
        else:
            first = torch.tensor([0, *accumulate(sizes[:-1])], device=h.device)
            embedding = self.norm(h[first])
            if return_attention:
                attention = self._token_attention(before, sizes)
        return BagOutput(apply_head(self.head, embedding), embedding, attention if return_attention else None)

    def _token_attention(self, h: Tensor, sizes: Sequence[int]) -> Tensor:
        """Weights ``(T,)`` of the class token on the instances, from the last block's input (with tokens)."""
        block = self.blocks[-1]
        assert isinstance(block, EncoderBlock)
        q, k, _, _ = block.self_attn.project(block.norm1(h))
        parts = []
        for queries, keys in zip(q.split(list(sizes)), k.split(list(sizes)), strict=True):
            scores = torch.einsum("hd,nhd->hn", queries[0], keys) / math.sqrt(q.shape[-1])
            wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
            scaled = wide.log_softmax(dim=-1)[:, 1:].logsumexp(dim=0)  # mean over heads, up to a factor
            parts.append(scaled.softmax(dim=0))  # a token that looks at itself alone leaves no 0 / 0
        return torch.cat(parts)
