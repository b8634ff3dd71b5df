"""The two poolings without attention: mean embedding and maximal instance."""

from __future__ import annotations

import torch
from torch import nn

from qgmil.bags.bag import PackedBags
from qgmil.layers.dropout import Dropout
from qgmil.layers.linear import Linear
from qgmil.layers.pooling import segment_max, segment_mean
from qgmil.models.base import Aggregator, apply_head, check_rates, check_sizes
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model


class _Embedded(Aggregator):
    """What both share: ``h = Dropout(ReLU(W x))`` and a linear head.

    Args:
        width: size of the instance embedding.
        dropout: on the instance embedding.
    """

    has_attention = False

    def __init__(self, in_dim: int, num_classes: int, *, width: int = 512, dropout: float = 0.25) -> None:
        super().__init__(in_dim, num_classes)
        check_sizes(width=width)
        check_rates(dropout=dropout)
        self.embed = nn.Sequential(Linear(in_dim, width), nn.ReLU(), Dropout(dropout))
        self.head = Linear(width, num_classes)


@register_model("mean", "mean of embedded instances, then a linear head")
class MeanPool(_Embedded):
    """``z = mean h``, ``logits = W_c z`` with ``h = Dropout(ReLU(W x))``.

    Args:
        width: size of the instance embedding.
        dropout: on the instance embedding.
    """

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        embedding = segment_mean(self.embed(bags.features), bags.sizes)
        return BagOutput(apply_head(self.head, embedding), embedding)


@register_model("max", "maximum over instance logits")
class MaxPool(_Embedded):
    """``logits_c = max_i (W_c h_i)_c`` with ``h = Dropout(ReLU(W x))``.

    The embedding is that of the instance with the highest logit of any class. `auxiliary["instance_logits"]`
    is packed ``(T, C)``.

    Args:
        width: size of the instance embedding.
        dropout: on the instance embedding.
    """

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        h = self.embed(bags.features)
        instance_logits = apply_head(self.head, h)
        critical = [part.amax(dim=1).argmax() for part in bags.unpack(instance_logits)]
        embedding = torch.stack([part[i] for part, i in zip(bags.unpack(h), critical, strict=True)])
        logits = segment_max(instance_logits, bags.sizes)
        return BagOutput(logits, embedding, auxiliary={"instance_logits": instance_logits})
