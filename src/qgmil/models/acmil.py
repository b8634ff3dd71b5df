"""ACMIL: attention challenging MIL with gated attention (Zhang et al. 2024, arXiv 2311.07125)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.layers.branches import BranchScores, weighted_sums
from qgmil.layers.dropout import Dropout
from qgmil.layers.linear import Linear
from qgmil.layers.pooling import segment_softmax
from qgmil.models.base import Aggregator, apply_head, check_rates, check_sizes, load_strict, rename_state
from qgmil.models.checkpoints import matrix_shape, released_options
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model

_NAMES = {
    "dimreduction.fc1.": "embed.0.",
    "attention.attention_V.0.": "scores.attention_V.0.",
    "attention.attention_U.0.": "scores.attention_U.0.",
    "attention.attention_weights.": "scores.attention_weights.",
    "Slide_classifier.fc.": "head.",
}


@register_model("acmil", "several attention branches kept apart, top instances masked (Zhang 2024)")
class ACMIL(Aggregator):
    """Multiple branch attention (MBA) with stochastic top-k instance masking (STKIM).

    ``h = ReLU(W x)``; branch k has ``a_k = softmax(w_k^T (tanh(V h) * sigmoid(U h)))``, the vector ``sum a_k h`` and a
    classifier of its own. The bag's attention is the mean of the branches', and its vector goes to the slide
    classifier, whose output are the logits. In training each branch loses a random ``mask_rate`` of its ``n_masked``
    most attended instances before the softmax (of all instances in smaller bags, rounded down, so that one at least
    stays); the draw is from torch's global generator.

    The training loss is the cross-entropy of the logits, plus the mean cross-entropy of the branches, plus the mean
    cosine of the attentions of two branches; class weights and label smoothing act on both cross-entropies. In
    evaluation mode `loss` is the cross-entropy of the logits alone, which is what the release validates. With
    one branch there is nothing but the logits' cross-entropy, as in the release.

    `auxiliary` has ``branch_logits`` ``(B, K, C)``, ``diversity_loss`` ``(B,)`` and, when attention is asked for,
    ``branch_attention`` ``(T, K)``. The release's training script passes the number of branches (5) where the paper
    has the number of masked instances (10); the default here is the paper's.

    Args:
        width: size of the instance embedding h (the release's is half the features or less: 128 for 384, 256 for 512).
        attention_dim: rows of V and U.
        n_branches: attention branches K.
        n_masked: most attended instances of a branch that may be masked.
        mask_rate: share of them that is masked in training; 0 masks none.
        dropout: on the bag vectors before their classifiers.
    """

    noiseless: ClassVar[Mapping[str, Any]] = {"dropout": 0.0, "mask_rate": 0.0}
    published_recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adamw",
        "lr": 1e-4,
        "betas": (0.9, 0.999),
        "weight_decay": 1e-5,
        "schedule": "cosine",
        "warmup": 0.0,
        "clip": 0.0,
        "batch_size": 1,
        "epochs": 100,
        "min_epochs": 1,
        "patience": 100,
        "monitor": "val_auroc",
        "label_smoothing": 0.0,
        "scaling": "none",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        width: int = 512,
        attention_dim: int = 128,
        n_branches: int = 5,
        n_masked: int = 10,
        mask_rate: float = 0.6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_dim, num_classes)
        check_sizes(width=width, attention_dim=attention_dim, n_branches=n_branches, n_masked=n_masked)
        check_rates(mask_rate=mask_rate, dropout=dropout)
        self.n_masked, self.mask_rate = n_masked, mask_rate
        self.embed = nn.Sequential(Linear(in_dim, width, bias=False), nn.ReLU())
        self.scores = BranchScores(width, attention_dim, n_branches)
        self.drop = Dropout(dropout)
        self.branch_heads = nn.ModuleList(Linear(width, num_classes) for _ in range(n_branches))
        self.head = Linear(width, num_classes)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        h = self.embed(bags.features)
        scores = self.scores(h)  # (T, K)
        if self.training and self.mask_rate > 0:
            scores = mask_top(scores, bags.sizes, self.n_masked, self.mask_rate)
        branches = segment_softmax(scores, bags.sizes)
        vectors = weighted_sums(branches, h, bags.sizes)  # (B, K, width)
        each = [apply_head(head, self.drop(vectors[:, k])) for k, head in enumerate(self.branch_heads)]
        embedding = vectors.mean(dim=1)  # the sum over the mean attention, as everything is linear
        auxiliary = {
            "branch_logits": torch.stack(each, dim=1),
            "diversity_loss": mean_cosine(branches, bags.sizes),
        }
        logits = apply_head(self.head, self.drop(embedding))
        if not return_attention:
            return BagOutput(logits, embedding, auxiliary=auxiliary)
        auxiliary["branch_attention"] = branches
        return BagOutput(logits, embedding, branches.mean(dim=1), auxiliary)

    def loss(
        self,
        output: BagOutput,
        labels: Tensor,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Cross-entropy of the logits; in training also that of the branches, and the branches' likeness.

        Args:
            output: of `forward`.
            labels: ``(B,)`` class indices; 0 or 1 with one logit.
            class_weights: ``(C,)`` (two with one logit), on both cross-entropies.
            label_smoothing: of both cross-entropies.
        """
        settings: dict[str, Any] = {"class_weights": class_weights, "label_smoothing": label_smoothing}
        slide = super().loss(output, labels, **settings)
        count = len(self.branch_heads)
        if not self.training or count == 1:
            return slide
        branches = replace(output, logits=output.auxiliary["branch_logits"].flatten(0, 1))
        branch = super().loss(branches, labels.repeat_interleave(count), **settings)
        return slide + branch + output.auxiliary["diversity_loss"].mean()

    @classmethod
    def from_released(cls, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Self:
        """Weights under the names of the authors' release, the variant with gated attention (ACMIL_GA).

        Args:
            state_dict: released weights.
            config: ``n_masked``, ``mask_rate`` and ``dropout``, which the weights do not tell; sizes (``in_dim``,
                ``embed_dim``, ``attention_dim``, ``num_classes``, ``n_token``) must be the weights'.

        Raises:
            ConfigError: not such a checkpoint, or a configuration that does not fit it.
        """
        width, in_dim = matrix_shape(state_dict, "dimreduction.fc1.weight", "ACMIL")
        branches, attention_dim = matrix_shape(state_dict, "attention.attention_weights.weight", "ACMIL")
        num_classes, _ = matrix_shape(state_dict, "Slide_classifier.fc.weight", "ACMIL")
        sizes = {"in_dim": in_dim, "embed_dim": width, "attention_dim": attention_dim, "num_classes": num_classes}
        chosen = released_options(config, {**sizes, "n_token": branches}, ("n_masked", "mask_rate", "dropout"))
        options = {"width": width, "attention_dim": attention_dim, "n_branches": branches, **chosen}
        model = cls(in_dim, num_classes, **options)
        model.name, model.options = "acmil", options
        names = {**_NAMES, **{f"classifier.{k}.fc.": f"branch_heads.{k}." for k in range(branches)}}
        load_strict(model, rename_state(state_dict, names), "the released checkpoint")
        return model.eval()

    def to_released(self) -> dict[str, Tensor]:
        """Weights under the names of the authors' release.

        Raises:
            ConfigError: the model standardises its features, for which the release's first layer lacks a bias.
        """
        if self.standardize is not None:
            raise ConfigError(
                "the release of ACMIL has no bias that standardisation could go into: train with scaling 'none' to "
                "export, or standardise the features themselves"
            )
        names = {ours: theirs for theirs, ours in _NAMES.items()}
        names |= {f"branch_heads.{k}.": f"classifier.{k}.fc." for k in range(len(self.branch_heads))}
        return rename_state(self.state_dict(), names)


def mask_top(scores: Tensor, sizes: Sequence[int], top: int, rate: float) -> Tensor:
    """Scores ``(T, K)`` with ``int(rate * min(top, n))`` of each bag's and branch's `top` highest at minus infinity."""
    masked = []
    for part in scores.split(list(sizes)):
        candidates = min(top, part.shape[0])
        count = int(candidates * rate)
        if count:
            drawn = torch.rand(candidates, part.shape[1], device=part.device).argsort(dim=0)[:count]
            part = part.scatter(0, part.topk(candidates, dim=0).indices.gather(0, drawn), float("-inf"))
        masked.append(part)
    return torch.cat(masked)


def mean_cosine(attention: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean cosine of the attentions of two branches a bag: ``(T, K) -> (B,)``; zero with one branch."""
    count = attention.shape[1]
    if count == 1:
        return attention.new_zeros(len(sizes))
    first, second = torch.triu_indices(count, count, offset=1, device=attention.device)
    found = []
    with torch.autocast(attention.device.type, enabled=False):
        for part in attention.split(list(sizes)):
            unit = part / part.norm(dim=0)
            found.append((unit.T @ unit)[first, second].mean())
    return torch.stack(found)
