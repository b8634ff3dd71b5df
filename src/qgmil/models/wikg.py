"""WiKG: dynamic graph with knowledge-aware attention (Li 2024, arXiv 2403.07719)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.layers.dropout import Dropout
from qgmil.layers.linear import Linear
from qgmil.layers.norm import LayerNorm
from qgmil.layers.pooling import attention_scores, segment_max, segment_mean, segment_softmax, weighted_sum
from qgmil.models.base import Aggregator, apply_head, check_rates, check_sizes
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model

#: Entries of the similarity map that a block of rows aims at, and the least rows of one.
SIMILARITY_ENTRIES, LEAST_ROWS = 2**21, 32
#: Entries of the neighbours' vectors ``(rows, k, width)`` that a block of rows aims at.
NEIGHBOUR_ENTRIES = 2**22

SCORES = ("inner", "released")
READOUTS = ("attention", "mean", "max")


@torch.no_grad()
def nearest(head: Tensor, tail: Tensor, k: int) -> Tensor:
    """The k tails with the largest inner product with each head of one bag: ``(n, width)`` both, gives ``(n, k)``.

    The map of all similarities is made in blocks of rows. Choosing has no gradient, so none of them is kept.
    """
    rows = max(LEAST_ROWS, SIMILARITY_ENTRIES // len(tail))
    # bfloat16 would tie what differs, and exchange neighbours.
    with torch.autocast(head.device.type, enabled=False):
        return torch.cat([(block @ tail.T).topk(k, dim=1, sorted=False).indices for block in head.split(rows)])


def aggregate_neighbours(head: Tensor, tail: Tensor, neighbours: Tensor, *, released: bool) -> Tensor:
    """Knowledge-aware attention to the chosen tails (equations 3 to 7).

    Args:
        head: some heads ``(m, width)`` of a bag.
        tail: all tails ``(n, width)`` of the bag.
        neighbours: indices ``(m, k)`` into the tails.
        released: scores as the release has them.

    Returns:
        ``e_N`` ``(m, width)``.
    """
    t, h = tail[neighbours], head.unsqueeze(1)  # (m, k, width), (m, 1, width)
    # Sums of products instead of matrix products, so that autocast leaves them in float32.
    weights = ((h * t).sum(dim=-1) * head.shape[1] ** -0.5).softmax(dim=1).unsqueeze(-1)
    edge = weights * t + (1 - weights) * h
    gate = torch.tanh(h + edge)
    scores = t.sum(dim=-1) * gate.sum(dim=-1) if released else (t * gate).sum(dim=-1)
    return (scores.softmax(dim=1).unsqueeze(-1) * t).sum(dim=1)


@register_model("wikg", "dynamic graph with knowledge-aware attention (Li 2024)")
class WiKG(Aggregator):
    """Each instance attends to its k nearest in a learned space; two-way fusion, then attention pooling.

    ``x = LeakyReLU(W x)``, ``x <- (x + mean x) / 2``, heads ``h = W_h x`` and tails ``t = W_t x`` (1). The neighbours
    N(i) are the k largest ``h_i . t_j / sqrt(d)``, with weights ``p_ij`` softmax over them (2, 3). Edges
    ``r_ij = p_ij t_j + (1 - p_ij) h_i`` (4), scores ``u_ij = t_j . tanh(h_i + r_ij)`` (6), and
    ``e_i = sum_j softmax_j(u_ij) t_j`` (5, 7). Then ``z_i = LeakyReLU(W_1 (h_i + e_i)) + LeakyReLU(W_2 (h_i * e_i))``
    (8), dropout, pooling by ``softmax_i(w . LeakyReLU(V z_i))``, LayerNorm and a linear head.

    Where the paper has an inner product, the release's code sums over both widths, ``u_ij = (sum t_j) (sum tanh(h_i +
    r_ij))``: that is `scores="released"`. It keeps three layers that nothing uses, which are left out here, and its
    training script pools by the mean, `readout="mean"`, which has no attention. Bags of fewer instances than k use all
    of them. Memory is linear in instances: neither similarities nor the neighbours' vectors are kept.

    Args:
        width: of the embedding, the heads and the tails.
        topk: neighbours k of an instance, itself among them where it is near.
        dropout: on the updated instances.
        scores: "inner" (the paper's) or "released".
        readout: "attention", "mean" or "max".

    Raises:
        ConfigError: unknown scores or readout.
    """

    published_recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 1e-4,
        "weight_decay": 1e-5,
        "betas": (0.9, 0.999),
        "schedule": "constant",
        "warmup": 0.0,
        "batch_size": 1,
        "epochs": 100,
        "min_epochs": 1,
        "patience": 100,
        "monitor": "val_auroc",
        "label_smoothing": 0.0,
        "clip": 0.0,
        "scaling": "none",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        width: int = 512,
        topk: int = 6,
        dropout: float = 0.3,
        scores: str = "inner",
        readout: str = "attention",
    ) -> None:
        super().__init__(in_dim, num_classes)
        check_sizes(width=width, topk=topk)
        check_rates(dropout=dropout)
        for name, value, known in (("scores", scores, SCORES), ("readout", readout, READOUTS)):
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
        self.topk, self.scores, self.readout = topk, scores, readout
        self.has_attention = readout == "attention"
        self.embed = nn.Sequential(Linear(in_dim, width), nn.LeakyReLU())
        self.head_proj = Linear(width, width)
        self.tail_proj = Linear(width, width)
        self.sum_proj = nn.Sequential(Linear(width, width), nn.LeakyReLU())
        self.product_proj = nn.Sequential(Linear(width, width), nn.LeakyReLU())
        self.dropout = Dropout(dropout)
        if self.has_attention:
            hidden = max(1, width // 2)
            self.attention_V = nn.Sequential(Linear(width, hidden), nn.LeakyReLU())
            self.attention_weights = Linear(hidden, 1)
        self.norm = LayerNorm(width, 1e-5)
        self.head = Linear(width, num_classes)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        x = self.embed(bags.features)
        x = torch.cat([(part + part.mean(dim=0)) * 0.5 for part in bags.unpack(x)])
        head, tail = self.head_proj(x), self.tail_proj(x)
        pairs = zip(bags.unpack(head), bags.unpack(tail), strict=True)
        around = torch.cat([self.neighbourhood(_wide(h), _wide(t)) for h, t in pairs]).to(head.dtype)
        z = self.dropout(self.sum_proj(head + around) + self.product_proj(head * around))
        attention = None
        if self.has_attention:
            scores = attention_scores(z, self.attention_V, None, self.attention_weights)
            attention = segment_softmax(scores, bags.sizes)
            pooled = weighted_sum(attention, z, bags.sizes)
        else:
            pooled = (segment_mean if self.readout == "mean" else segment_max)(z, bags.sizes)
        embedding = self.norm(pooled)
        return BagOutput(apply_head(self.head, embedding), embedding, attention if return_attention else None)

    def neighbourhood(self, head: Tensor, tail: Tensor) -> Tensor:
        """``e_N`` of all instances of one bag, ``(n, width)``, in blocks that the backward pass recomputes."""
        k = min(self.topk, len(head))
        neighbours = nearest(head, tail, k)
        rows = max(LEAST_ROWS, NEIGHBOUR_ENTRIES // (k * head.shape[1]))
        each = partial(aggregate_neighbours, released=self.scores == "released")
        if len(head) <= rows:
            return each(head, tail, neighbours)
        blocks = zip(head.split(rows), neighbours.split(rows), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([each(h, tail, chosen) for h, chosen in blocks])
        return torch.cat([checkpoint(each, h, tail, chosen, use_reentrant=False) for h, chosen in blocks])


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
