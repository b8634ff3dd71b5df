"""Attention-based MIL (Ilse, Tomczak and Welling 2018, arXiv 1802.04712)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.layers.dropout import Dropout
from qgmil.layers.linear import Linear
from qgmil.layers.pooling import AttentionScore, segment_softmax, weighted_sum
from qgmil.models.base import (
    Aggregator,
    apply_head,
    check_rates,
    check_sizes,
    fold_standardization,
    load_strict,
    rename_state,
)
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model

_PLAIN_NAMES = {
    "feature_extractor_part2.": "embed.",
    "attention.0.": "score.attention_V.0.",
    "attention.2.": "score.attention_weights.",
    "classifier.0.": "head.",
}
_GATED_NAMES = {
    "feature_extractor_part2.": "embed.",
    "attention_V.": "score.attention_V.",
    "attention_U.": "score.attention_U.",
    "attention_w.": "score.attention_weights.",
    "classifier.0.": "head.",
}


@register_model("abmil_gated", "gated attention pooling (Ilse 2018)", gated=True)
@register_model("abmil", "attention pooling (Ilse 2018)", gated=False)
class ABMIL(Aggregator):
    """``h = ReLU(W x)``, ``a = softmax(w^T tanh(V h))`` or gated ``w^T (tanh(V h) * sigmoid(U h))``, ``z = sum a h``.

    Args:
        width: size of the instance embedding h.
        attention_dim: rows of V and U.
        dropout: on the instance embedding.
        gated: equation 9 instead of 8.
    """

    #: That of the release: one bag a step, 20 epochs, no stopping; the paper keeps the epoch with the best validation.
    published_recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 5e-4,
        "betas": (0.9, 0.999),
        "weight_decay": 1e-4,
        "schedule": "constant",
        "warmup": 0.0,
        "clip": 0.0,
        "batch_size": 1,
        "epochs": 20,
        "min_epochs": 1,
        "patience": 20,
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
        attention_dim: int = 128,
        dropout: float = 0.25,
        gated: bool = True,
    ) -> None:
        super().__init__(in_dim, num_classes)
        check_sizes(width=width, attention_dim=attention_dim)
        check_rates(dropout=dropout)
        self.embed = nn.Sequential(Linear(in_dim, width), nn.ReLU(), Dropout(dropout))
        self.score = AttentionScore(width, attention_dim, gated)
        self.head = Linear(width, num_classes)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        h = self.embed(bags.features)
        attention = segment_softmax(self.score(h), bags.sizes)
        embedding = weighted_sum(attention, h, bags.sizes)
        return BagOutput(apply_head(self.head, embedding), embedding, attention if return_attention else None)

    @classmethod
    def from_released(cls, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Self:
        """Weights under the names of the authors' release; sizes are read off the weights.

        Raises:
            ConfigError: not such a checkpoint.
        """
        gated = "attention_U.0.weight" in state_dict
        state = rename_state(state_dict, _GATED_NAMES if gated else _PLAIN_NAMES)
        for name in ("embed.0.weight", "score.attention_V.0.weight", "head.weight"):
            if name not in state or state[name].ndim != 2:
                raise ConfigError("not a checkpoint of the ABMIL release: it lacks the weights of its layers")
        width, in_dim = state["embed.0.weight"].shape
        options = {"width": width, "attention_dim": state["score.attention_V.0.weight"].shape[0]}
        model = cls(in_dim, state["head.weight"].shape[0], gated=gated, **options)
        model.name, model.options = "abmil_gated" if gated else "abmil", options
        load_strict(model, state, "the released checkpoint")
        return model.eval()

    def to_released(self) -> dict[str, Tensor]:
        """Weights under the names of the authors' release; standardisation is folded into the embedding."""
        names = _PLAIN_NAMES if self.score.attention_U is None else _GATED_NAMES
        state = fold_standardization(self.state_dict(), self, "embed.0")
        return rename_state(state, {ours: theirs for theirs, ours in names.items()})
