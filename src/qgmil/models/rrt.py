"""RRT-MIL: re-embedding of instances by regional transformers (Tang 2024, arXiv 2402.17228)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.layers.dropout import Dropout
from qgmil.layers.linear import Linear
from qgmil.layers.norm import LayerNorm
from qgmil.layers.pooling import attention_scores, segment_softmax, weighted_sum
from qgmil.layers.regions import CrossRegionAttention, Grid, RegionAttention
from qgmil.models.base import Aggregator, apply_head, check_rates, check_sizes
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model

EPS = 1e-5  # of LayerNorm in the release


class RegionLayer(nn.Module):
    """``H + Attn(norm(H))``: no feed-forward."""

    def __init__(self, attention: RegionAttention | CrossRegionAttention, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, EPS)
        self.attn = attention

    def forward(self, h: Tensor, grid: Grid) -> Tensor:
        """``(n, dim) -> (n, dim)`` of one bag."""
        return h + self.attn(self.norm(h), grid)


@register_model("rrt", "re-embedding by regional transformers, then attention pooling (Tang 2024)")
class RRTMIL(Aggregator):
    """Attention pooling over instances that regional self-attention has re-embedded; depends on their order.

    ``h = Dropout(ReLU(W x))``; the bag is laid out as a square of ``region_num x region_num`` regions, zeros behind it;
    R-MSA within the regions, with EPEG on its scores; CR-MSA across them (both ``H + Attn(norm(H))``); LayerNorm; then
    ``a = softmax(w^T tanh(V h))`` without biases, ``sum a_i h_i``, and a linear head. Defaults are the release's, with
    the tanh of the paper's attention pooling (the code has ReLU for a default and tanh in its example). Bags are worked
    off one by one. Scores are never stored, whatever the size of a region (see `SequenceAttention`), so that memory is
    linear in instances and needs no bound on regions.

    A departure: with 64 regions a bag of 64 instances has one instance a region, R-MSA has nothing to attend to, and
    CR-MSA returns exact zeros. So a bag is one region while regions would hold fewer than four instances on average, in
    both kinds of attention. The release has this rule, but leaves it off and only in R-MSA: ``min_instances=1``. Its
    other rule, about the share of padding, is not here.

    Args:
        width: width d of the stream.
        num_heads: heads; must divide the width.
        num_layers: layers of R-MSA before the one of CR-MSA.
        region_num: regions along each side of the square.
        min_instances: bags with fewer instances are one region. None: ``4 region_num^2``.
        epeg_kernel: width of EPEG's kernel, odd.
        representatives: of each region in CR-MSA.
        shortcut: add the instances as they were before the first layer to those after the last (released off).
        attention_dim: rows of V.
        dropout: on the instance embedding.
        projection_dropout: on the output of each attention.

    Raises:
        ConfigError: heads that do not divide the width, or an even kernel.
    """

    permutation_invariant: ClassVar[bool] = False
    noiseless: ClassVar[Mapping[str, Any]] = {"dropout": 0.0, "projection_dropout": 0.0}
    #: The release does not stop before epoch 70 but may choose an earlier one: hence the patience.
    published_recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 2e-4,
        "weight_decay": 1e-5,
        "schedule": "cosine",
        "warmup": 0.0,
        "clip": 0.0,
        "label_smoothing": 0.0,
        "batch_size": 1,
        "epochs": 200,
        "min_epochs": 1,
        "patience": 70,
        "monitor": "val_auroc",
        "scaling": "none",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        width: int = 512,
        num_heads: int = 8,
        num_layers: int = 1,
        region_num: int = 8,
        min_instances: int | None = None,
        epeg_kernel: int = 15,
        representatives: int = 3,
        shortcut: bool = False,
        attention_dim: int = 128,
        dropout: float = 0.25,
        projection_dropout: float = 0.1,
    ) -> None:
        super().__init__(in_dim, num_classes)
        check_sizes(width=width, num_heads=num_heads, num_layers=num_layers, region_num=region_num)
        check_sizes(epeg_kernel=epeg_kernel, representatives=representatives, attention_dim=attention_dim)
        check_rates(dropout=dropout, projection_dropout=projection_dropout)
        if not isinstance(shortcut, bool):
            raise ConfigError(f"shortcut must be true or false, got {shortcut!r}")
        if min_instances is None:
            min_instances = 4 * region_num**2
        check_sizes(min_instances=min_instances)
        self.region_num, self.min_instances, self.shortcut = region_num, min_instances, shortcut
        self.embed = nn.Sequential(Linear(in_dim, width), nn.ReLU(), Dropout(dropout))
        self.layers = nn.ModuleList(
            RegionLayer(RegionAttention(width, num_heads, epeg_kernel, projection_dropout), width)
            for _ in range(num_layers)
        )
        self.layers.append(
            RegionLayer(CrossRegionAttention(width, num_heads, representatives, projection_dropout), width)
        )
        self.norm = LayerNorm(width, EPS)
        self.attention_V = nn.Sequential(Linear(width, attention_dim, bias=False), nn.Tanh())
        self.attention_weights = Linear(attention_dim, 1, bias=False)
        self.head = Linear(width, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier normal for weights, zero biases, as released."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        h = self.embed(bags.features)
        z = self.norm(torch.cat([self._embedded_again(rows) for rows in h.split(bags.sizes)]))
        attention = segment_softmax(attention_scores(z, self.attention_V, None, self.attention_weights), bags.sizes)
        embedding = weighted_sum(attention, z, bags.sizes)
        return BagOutput(apply_head(self.head, embedding), embedding, attention if return_attention else None)

    def _embedded_again(self, rows: Tensor) -> Tensor:
        """One bag ``(n, d)`` through R-MSA and CR-MSA."""
        grid = Grid.of(rows.shape[0], self.region_num, self.min_instances)
        h = rows
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(layer, h, grid, use_reentrant=False)
            else:
                h = layer(h, grid)
        return h + rows if self.shortcut else h
