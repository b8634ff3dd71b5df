"""Double-tier feature distillation MIL (Zhang 2022, arXiv 2203.12081)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.layers.dropout import Dropout
from qgmil.layers.linear import Linear
from qgmil.layers.pooling import AttentionScore, segment_softmax, weighted_sum
from qgmil.models.base import Aggregator, apply_head, bag_losses, check_rates, check_sizes
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model

#: What a pseudo-bag hands on to the second tier.
DISTILLATIONS = ("afs", "maxs", "maxmins", "mas")


@register_model("dtfd", "attention pooling of pseudo-bags, then of what they distil (Zhang 2022)")
class DTFD(Aggregator):
    """Two tiers of gated attention pooling: one over each pseudo-bag, one over what the pseudo-bags hand on.

    ``h = ReLU(W x)``, no bias. The bag is divided into pseudo-bags of (nearly) equal size. Tier 1, shared by them, is
    gated attention ``a`` over a pseudo-bag, its vector ``f = sum a h`` and the prediction ``W_1 f``. Each hands on

    - "afs" (aggregated feature selection): f;
    - "maxs": the h of the instance most probably positive; "maxmins": that and the least probable one's;
    - "mas": the h of the instance with the largest attention.

    An instance's probability is the softmax of its class activation ``W_1 (n a h)`` in a pseudo-bag of n instances (the
    release leaves n out, which changes no order of two classes). "Positive" is the last class where there are one or
    two, as in the release, and the class that the pseudo-bag is predicted to be where there are more. Tier 2 is gated
    attention of its own over all that was handed on, and a head of its own. The loss is the mean cross-entropy of the
    pseudo-bags, which carry the bag's label, plus that of the bag. In training each tier has the gradient of its own
    loss alone, as in the paper and the release, whose two optimisers are one here.

    The split is drawn at random in training. In evaluation instance i belongs to pseudo-bag i modulo their number, so
    that predictions are repeatable (the release draws there as well) but depend on the order of instances. Bags of
    fewer instances than pseudo-bags have one for each instance.

    Attention is tier 2's weight of what was handed on: times tier 1's weight of the instance with "afs"; else the
    instances handed on have all of it. `auxiliary` has `pseudo_logits` ``(P, C)``, and `pseudo_bag` ``(P,)``, the
    bag in the batch of each pseudo-bag, and `pseudo_share` ``(P,)``, one over the number of its bag's pseudo-bags.

    Args:
        width: of the embedding.
        attention_dim: of both gated attentions.
        pseudo_bags: of a bag. The paper has 5 for CAMELYON16 and 8 for TCGA; the release's script 4.
        distillation: "afs", "maxs", "maxmins" or "mas".
        dropout: before both heads. The release has none.
        shuffle: draw the split at random in training; else it is that of evaluation.
        joint: let the second tier's loss train the first tier too.

    Raises:
        ConfigError: an unknown distillation.
    """

    permutation_invariant = False
    noiseless: ClassVar[Mapping[str, Any]] = {"dropout": 0.0, "shuffle": False}
    # The release lowers the learning rate to a fifth after half of the epochs, for which the cosine stands, clips each
    # part's gradient norm instead of the whole one, and chooses among the last fifth of the epochs.
    published_recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "betas": (0.9, 0.999),
        "schedule": "cosine",
        "warmup": 0.0,
        "batch_size": 1,
        "epochs": 200,
        "min_epochs": 161,
        "patience": 200,
        "monitor": "val_auroc",
        "label_smoothing": 0.0,
        "clip": 5.0,
        "scaling": "none",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        width: int = 512,
        attention_dim: int = 128,
        pseudo_bags: int = 5,
        distillation: str = "afs",
        dropout: float = 0.0,
        shuffle: bool = True,
        joint: bool = False,
    ) -> None:
        super().__init__(in_dim, num_classes)
        check_sizes(width=width, attention_dim=attention_dim, pseudo_bags=pseudo_bags)
        check_rates(dropout=dropout)
        if not isinstance(distillation, str) or distillation.lower() not in DISTILLATIONS:
            raise ConfigError(f"unknown distillation {distillation!r}: choose one of {', '.join(DISTILLATIONS)}")
        for name, value in (("shuffle", shuffle), ("joint", joint)):
            if not isinstance(value, bool):
                raise ConfigError(f"{name} must be true or false, got {value!r}")
        self.pseudo_bags, self.distillation = pseudo_bags, distillation.lower()
        self.shuffle, self.joint = shuffle, joint
        self.embed = nn.Sequential(Linear(in_dim, width, bias=False), nn.ReLU())
        self.pseudo_score = AttentionScore(width, attention_dim)
        self.pseudo_head = Linear(width, num_classes)
        self.score = AttentionScore(width, attention_dim)
        self.head = Linear(width, num_classes)
        self.dropout = Dropout(dropout)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        counts = [min(self.pseudo_bags, n) for n in bags.sizes]
        device = bags.features.device
        order = self.divide(bags.sizes, counts, device)
        sizes = [size for n, count in zip(bags.sizes, counts, strict=True) for size in pseudo_sizes(n, count)]
        h = self.embed(bags.features.index_select(0, order))
        weights = segment_softmax(self.pseudo_score(h), sizes)
        pooled = weighted_sum(weights, h, sizes)
        pseudo_logits = apply_head(self.pseudo_head, self.dropout(pooled))
        if self.distillation == "afs":
            chosen, distilled = None, pooled
        else:
            chosen = self.choose(h, weights, pseudo_logits, sizes)
            distilled = h.index_select(0, chosen)
        if self.training and not self.joint:
            distilled = distilled.detach()
        handed = [count * len(distilled) // len(sizes) for count in counts]
        bag_weights = segment_softmax(self.score(distilled), handed)
        embedding = weighted_sum(bag_weights, distilled, handed)
        logits = apply_head(self.head, self.dropout(embedding))
        attention = None
        if return_attention:
            attention = instance_weights(weights, bag_weights, chosen, sizes, order)
        batch = torch.tensor([b for b, count in enumerate(counts) for _ in range(count)], device=device)
        share = [1.0 / count for count in counts for _ in range(count)]
        auxiliary = {
            "pseudo_logits": pseudo_logits,
            "pseudo_bag": batch,
            "pseudo_share": torch.tensor(share, dtype=logits.dtype, device=device),
        }
        return BagOutput(logits, embedding, attention, auxiliary)

    def divide(self, sizes: Sequence[int], counts: Sequence[int], device: torch.device) -> Tensor:
        """Order ``(T,)`` in which the instances of each bag's pseudo-bags come one after the other."""
        parts, start = [], 0
        for n, count in zip(sizes, counts, strict=True):
            if self.training and self.shuffle:
                parts.append(torch.randperm(n, device=device) + start)
            else:
                parts += [torch.arange(start + i, start + n, count, device=device) for i in range(count)]
            start += n
        return torch.cat(parts)

    @torch.no_grad()
    def choose(self, h: Tensor, weights: Tensor, pseudo_logits: Tensor, sizes: Sequence[int]) -> Tensor:
        """Rows of h that the pseudo-bags hand on, one or two each, in their order."""
        score = weights if self.distillation == "mas" else self.positive(h, weights, pseudo_logits, sizes)
        chosen, start = [], 0
        for part in score.split(list(sizes)):
            chosen.append(part.argmax() + start)
            if self.distillation == "maxmins":
                chosen.append(part.argmin() + start)
            start += len(part)
        return torch.stack(chosen)

    def positive(self, h: Tensor, weights: Tensor, pseudo_logits: Tensor, sizes: Sequence[int]) -> Tensor:
        """An increasing function of each instance's probability of the positive class, ``(T,)``."""
        with torch.autocast(h.device.type, enabled=False):
            activation = h.to(weights.dtype) @ self.pseudo_head.weight.to(weights.dtype).T  # (T, C)
        if self.num_classes == 1:
            return activation[:, 0] * weights
        lengths = torch.tensor(sizes, device=h.device)
        rows = torch.repeat_interleave(lengths, output_size=len(h))  # the pseudo-bag of each instance
        log_p = (activation * (weights * lengths[rows])[:, None]).log_softmax(dim=1)
        if self.num_classes == 2:
            # The probability's logarithm is flat where it is near 1: the log odds are not.
            return log_p[:, 1] - log_p[:, 0]
        classes = pseudo_logits.argmax(dim=1)[rows]
        return log_p.gather(1, classes[:, None])[:, 0]

    def loss(
        self,
        output: BagOutput,
        labels: Tensor,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """``CE(bag) + mean CE(pseudo-bags)``, mean over bags; class weights and label smoothing count in both.

        Args:
            output: of `forward`.
            labels: ``(B,)`` class indices; 0 or 1 with one logit.
            class_weights: ``(C,)`` (two with one logit).
            label_smoothing: share of the target spread over all classes.
        """
        bag = super().loss(output, labels, class_weights=class_weights, label_smoothing=label_smoothing)
        pseudo_labels = labels.index_select(0, output["pseudo_bag"])
        pseudo = bag_losses(
            output["pseudo_logits"], pseudo_labels, class_weights=class_weights, label_smoothing=label_smoothing
        )
        return bag + (pseudo * output["pseudo_share"].to(pseudo.dtype)).sum() / len(labels)


def pseudo_sizes(n: int, count: int) -> list[int]:
    """Sizes of `count` parts of n that differ by one at most, larger ones first."""
    return [(n - i - 1) // count + 1 for i in range(count)]


def instance_weights(
    weights: Tensor, bag_weights: Tensor, chosen: Tensor | None, sizes: Sequence[int], order: Tensor
) -> Tensor:
    """Attention ``(T,)`` of the instances in the batch's order, summing to 1 in each bag.

    Args:
        weights: of tier 1 ``(T,)``, in the pseudo-bags' order.
        bag_weights: of tier 2.
        chosen: rows that were handed on; None: the pseudo-bags' vectors.
        sizes: of the pseudo-bags.
        order: the instance of each row.
    """
    if chosen is None:
        parts = weights.split(list(sizes))
        spread = torch.cat([part * weight for part, weight in zip(parts, bag_weights, strict=True)])
    else:
        spread = torch.zeros_like(weights).index_add(0, chosen, bag_weights)
    return torch.zeros_like(spread).index_copy(0, order, spread)
