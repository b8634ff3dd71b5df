"""Iterative low-rank attention MIL (Xiang and Zhang 2023, ICLR, "Exploring low-rank property in MIL")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.layers.linear import Linear
from qgmil.layers.norm import LayerNorm
from qgmil.layers.pooling import segment_softmax
from qgmil.models.base import Aggregator, apply_head, check_sizes
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model


class CrossAttention(nn.Module):
    """``O = norm(Q' + MHA(Q', K', V'))``, ``O <- norm(O + ReLU(W O))``, times ``SiLU(W_g Q)`` with a gate.

    ``Q' = W_Q Q``, ``K' = W_K X`` and ``V' = W_V X`` come before the projections that multi-head attention has itself:
    only the stream ``Q'`` is a residual, so this is no plain transformer layer.

    Args:
        query_dim: width of the queries Q.
        key_dim: width of what they attend to.
        width: of the result.
        num_heads: divides width.
        norm: LayerNorm after both sums.
        gated: multiply by the gate.
    """

    def __init__(self, query_dim: int, key_dim: int, width: int, num_heads: int, *, norm: bool, gated: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.embed_q_proj = Linear(query_dim, width)
        self.embed_k_proj = Linear(key_dim, width)
        self.embed_v_proj = Linear(key_dim, width)
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)
        self.ffn = Linear(width, width)
        self.attention_norm = LayerNorm(width, 1e-5) if norm else nn.Identity()
        self.ffn_norm = LayerNorm(width, 1e-5) if norm else nn.Identity()
        self.gate = nn.Sequential(Linear(query_dim, width), nn.SiLU()) if gated else None

    def heads(self, x: Tensor) -> Tensor:
        """``(T, width) -> (T, H, d)``."""
        return x.unflatten(-1, (self.num_heads, -1))

    def project(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The stream ``Q'`` ``(Q, width)`` and the heads ``(Q, H, d)``, ``(K, H, d)``, ``(K, H, d)``."""
        stream = self.embed_q_proj(queries)
        k, v = self.k_proj(self.embed_k_proj(keys)), self.v_proj(self.embed_v_proj(keys))
        return stream, self.heads(self.q_proj(stream)), self.heads(k), self.heads(v)

    def finish(self, queries: Tensor, stream: Tensor, attended: Tensor) -> Tensor:
        """What follows attention: residuals, norms and the gate, ``(Q, width)``."""
        o = self.attention_norm(stream + self.out_proj(attended))
        o = self.ffn_norm(o + F.relu(self.ffn(o)))
        return o if self.gate is None else o * self.gate(queries)


class GatedAttentionBlock(nn.Module):
    """``H = CrossAttention(L, X)``, then ``X <- CrossAttention(X, H)`` (the paper's GAB): linear in instances.

    The learned latents L, as many as the rank, ask the instances; then the instances ask the latents.

    Args:
        in_dim: width of the instances.
        width: of the result and the latents.
        num_heads: divides width.
        num_latents: rank r.
        norm: LayerNorm inside.
    """

    def __init__(self, in_dim: int, width: int, num_heads: int, num_latents: int, *, norm: bool) -> None:
        super().__init__()
        self.latents = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_latents, width)))
        self.forth = CrossAttention(width, in_dim, width, num_heads, norm=norm, gated=True)
        self.back = CrossAttention(in_dim, width, width, num_heads, norm=norm, gated=True)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """``(T, in_dim) -> (T, width)``."""
        stream, q, k, v = self.forth.project(self.latents, x)
        parts = zip(k.split(list(sizes)), v.split(list(sizes)), strict=True)
        attended = torch.stack([attend(q, k_bag, v_bag) for k_bag, v_bag in parts])  # (B, r, width)
        hidden = self.forth.finish(self.latents, stream, attended)
        stream, q, k, v = self.back.project(x, hidden)
        bags = zip(q.split(list(sizes)), k, v, strict=True)
        attended = torch.cat([attend(q_bag, k_bag, v_bag) for q_bag, k_bag, v_bag in bags])
        return self.back.finish(x, stream, attended)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Multi-head attention of queries ``(Q, H, d)`` to keys and values ``(K, H, d)``: ``(Q, H d)``."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).squeeze(0).transpose(0, 1).flatten(1)


class NonLocalPool(nn.Module):
    """One learned query attends to all instances (the paper's NLP)."""

    def __init__(self, width: int, num_heads: int, *, norm: bool) -> None:
        super().__init__()
        self.query = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, width)))
        self.attention = CrossAttention(width, width, width, num_heads, norm=norm, gated=False)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``(T, width)`` -> bag vectors ``(B, width)`` and the weights of all heads ``(T, H)``."""
        stream, q, k, v = self.attention.project(self.query, x)
        wide = q.float() if q.dtype in (torch.float16, torch.bfloat16) else q
        scores = (k * (wide * q.shape[-1] ** -0.5)).sum(dim=-1)  # (T, H)
        weights = segment_softmax(scores, sizes)
        pairs = zip(weights.to(v.dtype).split(list(sizes)), v.split(list(sizes)), strict=True)
        attended = torch.stack([(a.T.unsqueeze(1) @ z.transpose(0, 1)).flatten() for a, z in pairs])
        return self.attention.finish(self.query, stream, attended), weights


@register_model("ilra", "iterative low-rank attention (Xiang 2023)")
class ILRA(Aggregator):
    """Blocks of low-rank attention, non-local pooling and a linear head.

    Attention is the pooling's, the mean over its heads. The paper's other half, contrastive pre-training of the encoder
    with a low-rank constraint, is about features, not about the aggregator, and is not part of this. The authors'
    configuration for CAMELYON16 has one latent; as many queries of the pooling as latents, as their code builds them,
    give more than one prediction a bag, so that there is always one query here.

    Args:
        width: of the stream and the latents.
        num_heads: of all attentions; divides width.
        num_layers: blocks.
        num_latents: rank r of a block's attention.
        layer_norm: LayerNorm in blocks and pooling.

    Raises:
        ConfigError: num_heads does not divide width.
    """

    published_recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 1e-4,
        "weight_decay": 0.0,
        "betas": (0.9, 0.999),
        "schedule": "cosine",
        "warmup": 0.0,
        "batch_size": 1,
        "epochs": 100,
        "min_epochs": 1,
        "patience": 100,
        "monitor": "val_loss",
        "label_smoothing": 0.0,
        "clip": 0.0,
        "scaling": "none",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        width: int = 256,
        num_heads: int = 8,
        num_layers: int = 2,
        num_latents: int = 64,
        layer_norm: bool = True,
    ) -> None:
        super().__init__(in_dim, num_classes)
        check_sizes(width=width, num_heads=num_heads, num_layers=num_layers, num_latents=num_latents)
        if width % num_heads:
            raise ConfigError(f"num_heads={num_heads} must divide width={width}")
        if not isinstance(layer_norm, bool):
            raise ConfigError(f"layer_norm must be true or false, got {layer_norm!r}")
        self.blocks = nn.ModuleList(
            GatedAttentionBlock(width if i else in_dim, width, num_heads, num_latents, norm=layer_norm)
            for i in range(num_layers)
        )
        self.pooling = NonLocalPool(width, num_heads, norm=layer_norm)
        self.head = Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        x = bags.features
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, bags.sizes, use_reentrant=False)
            else:
                x = block(x, bags.sizes)
        embedding, weights = self.pooling(x, bags.sizes)
        attention = weights.mean(dim=1) if return_attention else None
        return BagOutput(apply_head(self.head, embedding), embedding, attention)
