"""CLAM: attention pooling with instance-level clustering (Lu et al. 2021, arXiv 2004.09666)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.layers.branches import BranchScores, of_predicted_class, weighted_sums
from qgmil.layers.dropout import Dropout
from qgmil.layers.linear import Linear
from qgmil.layers.pooling import segment_softmax
from qgmil.models.base import (
    Aggregator,
    apply_head,
    check_rates,
    check_sizes,
    fold_standardization,
    load_strict,
    rename_state,
)
from qgmil.models.checkpoints import matrix_shape, released_options
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model

_TRUNK = {
    "attention_net.0.": "embed.0.",
    "attention_net.3.attention_a.0.": "scores.attention_V.0.",
    "attention_net.3.attention_b.0.": "scores.attention_U.0.",
    "attention_net.3.attention_c.": "scores.attention_weights.",
    "instance_classifiers.": "instance_classifiers.",
}
_SINGLE = {**_TRUNK, "classifiers.": "heads.0."}
_MULTI = {**_TRUNK, "classifiers.": "heads."}


@register_model("clam_mb", "CLAM, an attention branch a class (Lu 2021)", multi_branch=True)
@register_model("clam_sb", "CLAM, one attention branch (Lu 2021)", multi_branch=False)
class CLAM(Aggregator):
    """Gated attention pooling whose most and least attended instances also train instance classifiers.

    ``h = Dropout(ReLU(W x))``, ``a_k = softmax(w_k^T (tanh(V h) * sigmoid(U h)))``, ``M_k = sum a_k h`` (equations 1
    and 2). With one branch all logits are ``W M + b``; with a branch a class, ``logit_c = w_c^T M_c + b_c``.

    For each class c a classifier of two classes sees the k most attended instances of its branch (the only one with a
    single branch) as positive and the k least attended as negative. The instance loss of a bag is the mean
    cross-entropy of its own class's classifier over these 2k; `subtyping` adds, for each other class, the mean
    cross-entropy of that class's top k as negative, and divides the sum by the number of classes. The training loss is
    ``bag_weight * bag loss + (1 - bag_weight) * instance loss``; class weights and label smoothing act on the bag
    loss. In evaluation mode `loss` is the bag loss alone, which is what the release validates.

    Bags of fewer than k instances use all of them (the release fails there); below 2k an instance can be both
    among the most and among the least attended, as in the release. One logit (``num_classes=1``) has one branch and two
    instance classifiers. The instance loss is cross-entropy; the smooth SVM loss that the release offers is not here.

    `auxiliary` has ``instance_loss_in`` and ``instance_loss_out``, both ``(B, C)`` (two columns with one logit): the
    loss of each class's classifier if the bag is, or is not, of that class; and with a branch a class
    ``class_attention`` ``(T, C)``, where `attention` is then that of the predicted class. The embedding is
    ``(B, width)`` or, with a branch a class, ``(B, C * width)``.

    Args:
        width: size of the instance embedding h.
        attention_dim: rows of V and U.
        dropout: on h and on both factors of the attention's gate.
        k_sample: instances at each end of the attention that the instance classifiers see.
        subtyping: classes exclude each other, so that what speaks for one speaks against the others.
        bag_weight: share of the bag loss.
        multi_branch: an attention branch a class.
    """

    published_recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 1e-4,
        "betas": (0.9, 0.999),
        "weight_decay": 1e-5,
        "schedule": "constant",
        "warmup": 0.0,
        "clip": 0.0,
        "batch_size": 1,
        "epochs": 200,
        # The release may keep an early epoch but never stops before the 50th: patience from the best one on says both.
        "min_epochs": 1,
        "patience": 50,
        "monitor": "val_loss",
        "label_smoothing": 0.0,
        "scaling": "none",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        width: int = 512,
        attention_dim: int = 256,
        dropout: float = 0.25,
        k_sample: int = 8,
        subtyping: bool = False,
        bag_weight: float = 0.7,
        multi_branch: bool = False,
    ) -> None:
        super().__init__(in_dim, num_classes)
        check_sizes(width=width, attention_dim=attention_dim, k_sample=k_sample)
        check_rates(dropout=dropout)
        if not isinstance(bag_weight, int | float) or not 0 <= bag_weight <= 1:
            raise ConfigError(f"bag_weight must be at least 0 and at most 1, got {bag_weight!r}")
        for option, value in (("subtyping", subtyping), ("multi_branch", multi_branch)):
            if not isinstance(value, bool):
                raise ConfigError(f"{option} must be true or false, got {value!r}")
        self.k_sample, self.subtyping, self.bag_weight, self.multi_branch = (
            k_sample,
            subtyping,
            bag_weight,
            multi_branch,
        )
        self.has_class_attention = multi_branch
        branches = num_classes if multi_branch else 1
        self.embed = nn.Sequential(Linear(in_dim, width), nn.ReLU(), Dropout(dropout))
        self.scores = BranchScores(width, attention_dim, branches, dropout)
        self.heads = nn.ModuleList(Linear(width, num_classes // branches) for _ in range(branches))
        self.instance_classifiers = nn.ModuleList(Linear(width, 2) for _ in range(max(2, num_classes)))

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        h = self.embed(bags.features)
        branches = segment_softmax(self.scores(h), bags.sizes)  # (T, K)
        vectors = weighted_sums(branches, h, bags.sizes)  # (B, K, width)
        logits = torch.cat([apply_head(head, vectors[:, k]) for k, head in enumerate(self.heads)], dim=1)
        inside, outside = self._instance_losses(h, branches.detach(), bags.sizes)
        auxiliary = {"instance_loss_in": inside, "instance_loss_out": outside}
        attention = None
        if return_attention:
            attention = of_predicted_class(branches, logits, bags.sizes) if len(self.heads) > 1 else branches[:, 0]
            if self.multi_branch:
                auxiliary["class_attention"] = branches
        return BagOutput(logits, vectors.flatten(1), attention, auxiliary)

    def _instance_losses(self, h: Tensor, attention: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``(B, C)`` each: what each class's classifier costs if the bag is, and if it is not, of the class."""
        ends = [min(self.k_sample, n) for n in sizes]
        seen = []
        for part, weights, k in zip(h.split(list(sizes)), attention.split(list(sizes)), ends, strict=True):
            top, bottom = weights.topk(k, dim=0).indices, weights.topk(k, dim=0, largest=False).indices
            seen.append(part[torch.cat([top, bottom])])  # (2k, K, width)
        instances = torch.cat(seen)
        columns = range(instances.shape[1]) if instances.shape[1] > 1 else [0] * len(self.instance_classifiers)
        logits = torch.stack(
            [apply_head(f, instances[:, c]) for f, c in zip(self.instance_classifiers, columns, strict=True)], dim=1
        )
        wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        inside, outside = [], []
        for costs in (-wide.log_softmax(dim=-1)).split([2 * k for k in ends]):  # (2k, C, 2)
            top, bottom = costs.chunk(2)
            inside.append((top[..., 1].mean(dim=0) + bottom[..., 0].mean(dim=0)) / 2)
            outside.append(top[..., 0].mean(dim=0))
        return torch.stack(inside), torch.stack(outside)

    def instance_loss(self, output: BagOutput, labels: Tensor) -> Tensor:
        """The mean instance loss of a batch, before it is weighted.

        Args:
            output: of `forward`.
            labels: ``(B,)`` class indices; 0 or 1 with one logit.
        """
        inside, outside = output.auxiliary["instance_loss_in"], output.auxiliary["instance_loss_out"]
        own = labels.long()[:, None]
        if not self.subtyping:
            return inside.gather(1, own).mean()
        return outside.scatter(1, own, inside.gather(1, own)).mean()

    def loss(
        self,
        output: BagOutput,
        labels: Tensor,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """``bag_weight * bag loss + (1 - bag_weight) * instance loss`` in training, the bag loss in evaluation.

        Args:
            output: of `forward`.
            labels: ``(B,)`` class indices; 0 or 1 with one logit.
            class_weights: ``(C,)`` (two with one logit), on the bag loss.
            label_smoothing: of the bag loss.
        """
        bag = super().loss(output, labels, class_weights=class_weights, label_smoothing=label_smoothing)
        if not self.training:
            return bag
        return self.bag_weight * bag + (1 - self.bag_weight) * self.instance_loss(output, labels)

    @classmethod
    def from_released(cls, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Self:
        """Weights under the names of the authors' release (gated attention); sizes are read off the weights.

        Args:
            state_dict: released weights; those of the smooth SVM loss are passed over.
            config: ``k_sample``, ``subtyping``, ``dropout`` and ``bag_weight``, which the weights do not tell; sizes
                (``in_dim``, ``embed_dim``, ``attention_dim``, ``num_classes``) must be the weights'.

        Raises:
            ConfigError: not such a checkpoint, or a configuration that does not fit it.
        """
        released = {k: v for k, v in state_dict.items() if not k.startswith("instance_loss_fn.")}
        multi = "classifiers.weight" not in released
        width, in_dim = matrix_shape(released, "attention_net.0.weight", "CLAM")
        attention_dim, _ = matrix_shape(released, "attention_net.3.attention_a.0.weight", "CLAM")
        branches, _ = matrix_shape(released, "attention_net.3.attention_c.weight", "CLAM")
        num_classes = branches if multi else matrix_shape(released, "classifiers.weight", "CLAM")[0]
        sizes = {"in_dim": in_dim, "embed_dim": width, "attention_dim": attention_dim, "num_classes": num_classes}
        chosen = released_options(config, sizes, ("k_sample", "subtyping", "dropout", "bag_weight"))
        options = {"width": width, "attention_dim": attention_dim, **chosen}
        model = cls(in_dim, num_classes, multi_branch=multi, **options)
        model.name, model.options = "clam_mb" if multi else "clam_sb", options
        load_strict(model, rename_state(released, _MULTI if multi else _SINGLE), "the released checkpoint")
        return model.eval()

    def to_released(self) -> dict[str, Tensor]:
        """Weights under the names of the authors' release; standardisation is folded into the embedding."""
        state = fold_standardization(self.state_dict(), self, "embed.0")
        names = _MULTI if self.multi_branch else _SINGLE
        return rename_state(state, {ours: theirs for theirs, ours in names.items()})
