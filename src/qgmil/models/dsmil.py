"""DSMIL: dual-stream MIL (Li, Li and Eliceiri 2021, arXiv 2011.08939)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.layers.branches import of_predicted_class, weighted_sums
from qgmil.layers.linear import Linear
from qgmil.layers.pooling import segment_softmax
from qgmil.models.base import Aggregator, apply_head, check_sizes, fold_standardization, load_strict, rename_state
from qgmil.models.checkpoints import matrix_shape, released_options
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model

_NAMES = {"i_classifier.fc.0.": "instance_head.", "b_classifier.q.": "query.", "b_classifier.fcc.": "head."}
LOSSES = ("bce", "ce")


@register_model("dsmil", "dual stream: critical instances and attention to them (Li 2021)")
class DSMIL(Aggregator):
    """Two streams over features x: the maximal instance of each class, and attention by likeness to it.

    ``s = W_0 x`` gives instance logits and, for each class c, the critical instance ``m_c = argmax_i s_ic`` (of equals
    the first). With ``q = tanh(W_2 ReLU(W_1 x))``, ``a_c = softmax_i(q_i^T q_{m_c} / sqrt(attention_dim))`` and
    ``B_c = sum_i a_ci x_i``; the logits are ``W [B_1 ... B_C] + b`` (equations 3 to 6). The release writes the last map
    as a convolution over the classes with a kernel as wide as the features, which is this matrix. As in the release's
    default the values of the attention are the features themselves (``passing_v`` off).

    The loss is the mean of that of the logits and that of the critical instances' logits. ``loss_kind="bce"`` is the
    release's: a binary cross-entropy of each class against the rest, averaged over classes. Probabilities here are a
    softmax of the logits: the order of the classes is that of the release's sigmoids, but trained with "bce" they
    are too sure of themselves (with two classes each logit learns the whole log-odds, so that their difference
    is twice that), which calibration by temperature undoes. ``loss_kind="ce"`` trains both streams by the
    cross-entropy of the other aggregators. With one logit both are the same.

    The release can report the mean of both streams' sigmoids (``--average``); here predictions are the logits', and
    those of the other stream are in `auxiliary`: ``max_logits`` ``(B, C)`` and ``instance_logits`` ``(T, C)``, with
    ``class_attention`` ``(T, C)`` when attention is asked for. `attention` is that of the predicted class. The
    embedding is ``(B, C * in_dim)``.

    Args:
        attention_dim: size of the queries q.
        loss_kind: "bce" as released, or "ce".
    """

    published_recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 1e-4,
        "betas": (0.5, 0.9),
        "weight_decay": 1e-3,
        "schedule": "cosine",
        "warmup": 0.0,
        "clip": 0.0,
        "batch_size": 1,
        "epochs": 200,
        "min_epochs": 1,
        "patience": 200,
        "monitor": "val_auroc",
        "label_smoothing": 0.0,
        "scaling": "none",
    }

    has_class_attention = True

    def __init__(self, in_dim: int, num_classes: int, *, attention_dim: int = 128, loss_kind: str = "bce") -> None:
        super().__init__(in_dim, num_classes)
        check_sizes(attention_dim=attention_dim)
        if loss_kind not in LOSSES:
            raise ConfigError(f"loss_kind must be one of {', '.join(LOSSES)}, got {loss_kind!r}")
        self.loss_kind = loss_kind
        self.instance_head = Linear(in_dim, num_classes)
        self.query = nn.Sequential(
            Linear(in_dim, attention_dim), nn.ReLU(), Linear(attention_dim, attention_dim), nn.Tanh()
        )
        self.head = Linear(num_classes * in_dim, num_classes)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        instance_logits = apply_head(self.instance_head, bags.features)
        critical = [part.argmax(dim=0) for part in bags.unpack(instance_logits)]  # (C,) rows a bag
        best = [part.gather(0, i[None]) for part, i in zip(bags.unpack(instance_logits), critical, strict=True)]
        scores = self._scores(bags, self.query(bags.features), critical)
        attention = segment_softmax(scores, bags.sizes)  # (T, C)
        embedding = weighted_sums(attention, bags.features, bags.sizes).flatten(1)
        logits = apply_head(self.head, embedding)
        auxiliary = {"max_logits": torch.cat(best), "instance_logits": instance_logits}
        if not return_attention:
            return BagOutput(logits, embedding, auxiliary=auxiliary)
        auxiliary["class_attention"] = attention
        return BagOutput(logits, embedding, of_predicted_class(attention, logits, bags.sizes), auxiliary)

    @staticmethod
    def _scores(bags: PackedBags, queries: Tensor, critical: list[Tensor]) -> Tensor:
        """Likeness of every instance to its bag's critical instances: ``(T, C)``, in at least float32."""
        with torch.autocast(queries.device.type, enabled=False):
            wide = queries.float() if queries.dtype in (torch.float16, torch.bfloat16) else queries
            parts = zip(bags.unpack(wide), critical, strict=True)
            return torch.cat([q @ q[i].T for q, i in parts]) / math.sqrt(queries.shape[1])

    def loss(
        self,
        output: BagOutput,
        labels: Tensor,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Half the loss of the logits and half that of the critical instances' logits, in training and evaluation.

        Args:
            output: of `forward`.
            labels: ``(B,)`` class indices; 0 or 1 with one logit.
            class_weights: ``(C,)`` (two with one logit); each bag's loss is multiplied by its class's.
            label_smoothing: share of the target spread over all classes.
        """
        top = replace(output, logits=output.auxiliary["max_logits"])
        if self.loss_kind == "ce" or self.num_classes == 1:
            each = [
                super(DSMIL, self).loss(stream, labels, class_weights=class_weights, label_smoothing=label_smoothing)
                for stream in (output, top)
            ]
        else:
            each = [_one_against_rest(s.logits, labels, class_weights, label_smoothing) for s in (output, top)]
        return 0.5 * (each[0] + each[1])

    @classmethod
    def from_released(cls, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Self:
        """Weights under the names of the authors' release (non-linear queries, ``passing_v`` off).

        Args:
            state_dict: released weights.
            config: ``loss_kind``; ``in_dim`` and ``num_classes`` must be the weights'.

        Raises:
            ConfigError: not such a checkpoint, or a configuration that does not fit it.
        """
        num_classes, in_dim = matrix_shape(state_dict, "i_classifier.fc.0.weight", "DSMIL")
        attention_dim, _ = matrix_shape(state_dict, "b_classifier.q.2.weight", "DSMIL")
        sizes = {"in_dim": in_dim, "num_classes": num_classes, "attention_dim": attention_dim}
        options = {"attention_dim": attention_dim, **released_options(config, sizes, ("loss_kind",))}
        state = rename_state(state_dict, _NAMES)
        if "head.weight" in state and state["head.weight"].ndim == 3:
            state["head.weight"] = state["head.weight"].flatten(1)
        model = cls(in_dim, num_classes, **options)
        model.name, model.options = "dsmil", options
        load_strict(model, state, "the released checkpoint")
        return model.eval()

    def to_released(self) -> dict[str, Tensor]:
        """Weights under the names of the authors' release; standardisation is folded into the three layers it feeds."""
        state = self.state_dict()
        if self.standardize is not None:
            # Attention sums to 1, so bag vectors are standardised as instances are.
            std, mean = (v.double().repeat(self.num_classes) for v in (self.standardize.std, self.standardize.mean))
            weight = state["head.weight"].double() / std
            state["head.bias"] = (state["head.bias"].double() - weight @ mean).to(state["head.bias"].dtype)
            state["head.weight"] = weight.to(state["head.weight"].dtype)
        first = fold_standardization(state, self, "instance_head")
        state = fold_standardization(first, self, "query.0")
        state["head.weight"] = state["head.weight"].unflatten(1, (self.num_classes, self.in_dim))
        return rename_state(state, {ours: theirs for theirs, ours in _NAMES.items()})


def _one_against_rest(logits: Tensor, labels: Tensor, class_weights: Tensor | None, label_smoothing: float) -> Tensor:
    """Binary cross-entropy with one-hot targets, averaged over classes, then over bags."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    num_classes = logits.shape[1]
    spread = label_smoothing / num_classes
    targets = torch.full_like(logits, spread).scatter(1, labels.long()[:, None], 1 - label_smoothing + spread)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
    if class_weights is not None:
        losses = losses * class_weights.to(logits)[labels.long()]
    return losses.mean()
