"""TransMIL: correlated MIL by a transformer with Nystrom attention (Shao 2021, arXiv 2106.00908)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.layers.linear import Linear
from qgmil.layers.norm import LayerNorm
from qgmil.layers.nystrom import NystromAttention
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

_NAMES = {"_fc1.": "embed.", "_fc2.": "head."}
EPS = 1e-5  # of LayerNorm in the release
KERNEL = 33  # of the values' convolution


class TransLayer(nn.Module):
    """``H + Attn(norm(H))``: no feed-forward."""

    def __init__(self, attention: NystromAttention, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, EPS)
        self.attn = attention

    def forward(self, h: Tensor, rows: int | None = None) -> Tensor:
        """``(n, dim) -> (n, dim)``, or only the first `rows`."""
        return h[:rows] + self.attn(self.norm(h), rows)


class PPEG(nn.Module):
    """Pyramid position encoding: on the square of instances the sum of itself and of depthwise convolutions 7, 5, 3.

    The three kernels, centred, are added up first: one convolution instead of three.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.proj1 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, h: Tensor, side: int) -> Tensor:
        """``(1 + side^2, dim)``, the class token first, which stays as it is, to the same shape."""
        kernel = self.proj.weight + F.pad(self.proj1.weight, (1,) * 4) + F.pad(self.proj2.weight, (2,) * 4)
        bias = torch.stack([b for b in (self.proj.bias, self.proj1.bias, self.proj2.bias) if b is not None]).sum(dim=0)
        square = h[1:].T.reshape(1, -1, side, side)
        mixed = square + F.conv2d(square, kernel, bias, padding=3, groups=kernel.shape[0])
        return torch.cat([h[:1], mixed.flatten(2)[0].T.to(h.dtype)])


@register_model("transmil", "transformer with Nystrom attention (Shao 2021)")
class TransMIL(Aggregator):
    """Class token over Nystrom self-attention, PPEG in between; depends on the order of instances.

    ``h = ReLU(W x)``; the first instances are repeated until the bag fills a square; class token; Nystrom layer; PPEG
    on the square; Nystrom layer; LayerNorm; head on the class token. Bags are worked off one by one, so that a batch
    gives exactly what its bags give (the release, too, takes one bag at a time: its pseudo-inverse starts from the
    largest sums of a batch). Memory is linear in instances.

    Attention is the class token's row of ``F1 pinv(A) F3`` in the last layer, mean over heads, with both paddings
    undone: weights on the zeros in front and on the token itself are dropped, those of a repeated instance are added to
    it. The pseudo-inverse makes some weights slightly negative where a softmax, which it approximates, has none: they
    count as 0 (all instances alike, if none is positive). Then they are divided by their sum.

    Args:
        width: width d of the stream.
        num_heads: heads; must divide the width.
        num_landmarks: landmarks of the Nystrom attention. None: width / 2, as released.
        pinv_iterations: iterations of the pseudo-inverse.
        dropout: on the output of each attention.

    Raises:
        ConfigError: heads that do not divide the width.
    """

    permutation_invariant: ClassVar[bool] = False
    published_recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "lookahead_radam",
        "lr": 2e-4,
        "weight_decay": 1e-5,
        "schedule": "constant",
        "warmup": 0.0,
        "clip": 0.0,
        "label_smoothing": 0.0,
        "batch_size": 1,
        "epochs": 200,
        "min_epochs": 1,
        "patience": 10,
        "monitor": "val_loss",
        "scaling": "none",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        width: int = 512,
        num_heads: int = 8,
        num_landmarks: int | None = None,
        pinv_iterations: int = 6,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_dim, num_classes)
        check_sizes(width=width, num_heads=num_heads, pinv_iterations=pinv_iterations)
        if num_landmarks is None:
            num_landmarks = max(1, width // 2)
        check_sizes(num_landmarks=num_landmarks)
        check_rates(dropout=dropout)

        def layer() -> TransLayer:
            attention = NystromAttention(
                width, num_heads, num_landmarks, iterations=pinv_iterations, kernel=KERNEL, dropout=dropout
            )
            return TransLayer(attention, width)

        self.embed = nn.Sequential(Linear(in_dim, width), nn.ReLU())
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.layer1 = layer()
        self.pos_layer = PPEG(width)
        self.layer2 = layer()
        self.norm = LayerNorm(width, EPS)
        self.head = Linear(width, num_classes)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        states, weights = [], []
        for rows in self.embed(bags.features).split(bags.sizes):
            h = self._mixed(rows)
            states.append(self._layer(self.layer2, h, 1))
            if return_attention:
                weights.append(self._attention(h, rows.shape[0]))
        embedding = self.norm(torch.cat(states))
        return BagOutput(apply_head(self.head, embedding), embedding, torch.cat(weights) if return_attention else None)

    def _mixed(self, rows: Tensor) -> Tensor:
        """Input of the last layer: one bag's embedded instances ``(n, d)`` to class token and square."""
        side = 1 + math.isqrt(rows.shape[0] - 1)
        repeated = rows[: side**2 - rows.shape[0]]
        h = torch.cat([self.cls_token[0].to(rows.dtype), rows, repeated])
        return self.pos_layer(self._layer(self.layer1, h), side)

    def _layer(self, layer: TransLayer, h: Tensor, rows: int | None = None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, h, rows, use_reentrant=False)
        return layer(h, rows)

    def _attention(self, h: Tensor, n: int) -> Tensor:
        """Weights ``(n,)`` of the instances from the last layer's input, see the class."""
        row = self.layer2.attn.row(self.layer2.norm(h), 0)[1:]
        repeated = row[n:]
        weights = torch.cat([row[: len(repeated)] + repeated, row[len(repeated) : n]]).clamp_min(0)
        total = weights.sum()
        tiny = torch.finfo(weights.dtype).tiny  # no 0 / 0, whose gradient would be NaN
        return torch.where(total > 0, weights / total.clamp_min(tiny), torch.full_like(weights, 1 / n))

    @classmethod
    def from_released(cls, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Self:
        """Weights under the names of the authors' release, in evaluation mode.

        Args:
            state_dict: sizes are read off the weights.
            config: optional fields ``in_dim``, ``embed_dim``, ``num_classes`` and ``num_heads``, as the weights decide,
                and ``num_landmarks``, which no weight shows (half the width if absent).

        Raises:
            ConfigError: not such a checkpoint, or a configuration that does not fit it.
        """
        width, in_dim = matrix_shape(state_dict, "_fc1.0.weight", "TransMIL")
        num_classes, _ = matrix_shape(state_dict, "_fc2.weight", "TransMIL")
        kernels = state_dict.get("layer1.attn.res_conv.weight")  # one a head
        if kernels is None or kernels.ndim != 4:
            raise ConfigError("not a checkpoint of the TransMIL release: layer1.attn.res_conv.weight is not as there")
        heads = kernels.shape[0]
        sizes = {"in_dim": in_dim, "embed_dim": width, "num_classes": num_classes, "num_heads": heads}
        options = {"width": width, "num_heads": heads, **released_options(config, sizes, ("num_landmarks",))}
        model = cls(in_dim, num_classes, **options)
        model.name, model.options = "transmil", options
        load_strict(model, rename_state(state_dict, _NAMES), "the released checkpoint")
        return model.eval()

    def to_released(self) -> dict[str, Tensor]:
        """Weights under the names of the authors' release; standardisation is folded into the embedding."""
        state = fold_standardization(self.state_dict(), self, "embed.0")
        return rename_state(state, {ours: theirs for theirs, ours in _NAMES.items()})
