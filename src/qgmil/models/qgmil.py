"""QG-MIL: the gated transformer aggregator (arXiv 2606.20027)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qgmil.bags.bag import PackedBags
from qgmil.bags.packing import BagsLike, pack
from qgmil.errors import BagError, ConfigError
from qgmil.layers.attention import GatedSelfAttention, LayerAttention
from qgmil.layers.block import GatedBlock
from qgmil.layers.compiled import compile_module
from qgmil.layers.dropout import Dropout
from qgmil.layers.linear import Linear
from qgmil.layers.norm import NORMS, outer_norm
from qgmil.layers.pooling import NormedAttentionPool, segment_max, segment_mean
from qgmil.models.base import Aggregator, apply_head, check_rates, check_sizes, fold_standardization, load_strict
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model
from qgmil.models.released import infer_config, options_of_release, released_config

POOLINGS = ("attention", "mean", "max", "cls")
logger = logging.getLogger("qgmil")


@register_model("qgmil", "gated transformer, headwise gate (the paper's model)")
@register_model("qgmil_elementwise", "QG-MIL with a gate for each channel", gate="elementwise")
@register_model("qgmil_no_gate", "QG-MIL without the gate", gate="none")
@register_model("qgmil_layernorm", "QG-MIL with LayerNorm, no QK norm (as released)", norm="layer", qk_norm="none")
@register_model("qgmil_no_qknorm", "QG-MIL without QK norm", qk_norm="none")
@register_model("qgmil_minimal", "LayerNorm, no QK norm, no gate", norm="layer", qk_norm="none", gate="none")
@register_model("qgmil_deep", "QG-MIL with 4 blocks", num_layers=4)
@register_model("qgmil_light", "QG-MIL, 256 wide, 4 heads of 128", width=256, num_heads=4, head_dim=128)
class QGMIL(Aggregator):
    """Gated transformer aggregator; the equations are those of the paper (docs/design.md, section 5).

    ``H0 = Dropout(norm(X W_in + b))``; blocks of gated self-attention and SwiGLU; norm; gated attention pooling;
    head ``Linear(d, d/2)-ReLU-Dropout-Linear(d/2, C)``. Weights carry the names of the release.

    Args:
        width: width d of the stream.
        num_heads: query heads.
        num_kv_heads: key/value heads; fewer than num_heads is grouped-query attention. None: num_heads.
        head_dim: width of a head. None: width / num_heads.
        num_layers: blocks.
        ffn_dim: hidden size of the feed-forward.
        dropout: input, residual branches and head.
        attention_dropout: on attention weights.
        gate: "headwise", "elementwise" or "none".
        norm: "rms" or "layer", everywhere but on q and k.
        qk_norm: "rms", "layer" or "none" on q and k of each head. None: as norm.
        mlp: "swiglu", or "plain" with as many parameters.
        activation: of the feed-forward: "silu", "gelu", "gelu_tanh" or "relu".
        bias: biases in the attention's projections.
        pooling: "attention", "mean", "max" or "cls" (a class token, whose final state is the bag vector).
        key_clusters: most keys that an instance attends to. Larger bags are attended by means of that many clusters of
            like instances (see `qgmil.layers.clusters`), so that cost grows linearly. None: exact attention.
        eps: of RMSNorm everywhere, and of LayerNorm within the blocks (see `outer_norm`).

    Raises:
        ConfigError: an unknown name or sizes that do not divide.
    """

    derived_options: ClassVar[Mapping[str, tuple[str, ...]]] = {"head_dim": ("width", "num_heads")}

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        width: int = 512,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        num_layers: int = 1,
        ffn_dim: int = 2048,
        dropout: float = 0.25,
        attention_dropout: float = 0.0,
        gate: str = "headwise",
        norm: str = "rms",
        qk_norm: str | None = None,
        mlp: str = "swiglu",
        activation: str = "silu",
        bias: bool = False,
        pooling: str = "attention",
        key_clusters: int | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if pooling not in POOLINGS:
            raise ConfigError(f"unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        qk_norm = norm if qk_norm is None else qk_norm
        if qk_norm not in (*NORMS, "none"):
            raise ConfigError(f"unknown qk_norm {qk_norm!r}: choose one of {', '.join(NORMS)}, none")
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_sizes(width=width, num_heads=num_heads, num_kv_heads=num_kv_heads, num_layers=num_layers, ffn_dim=ffn_dim)
        check_rates(dropout=dropout, attention_dropout=attention_dropout, eps=eps)
        if key_clusters is not None:
            check_sizes(key_clusters=key_clusters)
        if head_dim is None:
            head_dim = derive_head_dim(width, num_heads)
        check_sizes(head_dim=head_dim)
        self.width, self.eps, self.activation = width, eps, activation
        self.pooling_kind, self.attention_dropout = pooling, attention_dropout
        self.has_attention = pooling == "attention"
        self.input_proj = nn.Sequential(Linear(in_dim, width), outer_norm(norm, width, eps), Dropout(dropout))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if pooling == "cls" else None
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            attention = GatedSelfAttention(
                width,
                num_heads,
                num_kv_heads,
                head_dim,
                gate=gate,
                qk_norm=qk_norm,
                bias=bias,
                dropout=attention_dropout,
                key_clusters=key_clusters,
                eps=eps,
            )
            block = GatedBlock(
                attention, width, ffn_dim, norm=norm, mlp=mlp, activation=activation, dropout=dropout, eps=eps
            )
            self.layers.append(block)
        self.final_norm = outer_norm(norm, width, eps)
        self.pooling = NormedAttentionPool(width, outer_norm(norm, width, eps)) if pooling == "attention" else None
        self.classifier = nn.Sequential(
            Linear(width, width // 2), nn.ReLU(), Dropout(dropout), Linear(width // 2, num_classes)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of 0.02 for weights, zero biases (section 5)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    @property
    def blocks(self) -> list[GatedBlock]:
        """The transformer blocks in order."""
        return [cast(GatedBlock, block) for block in self.layers]

    def compile_rowwise(self, mode: str, **options: Any) -> None:
        for block in self.blocks:
            block.self_attn.compile_project(mode, **options)
            compile_module(block.mlp, mode, **options)
        compile_module(self.input_proj, mode, **options)

    def _stream(self, bags: PackedBags) -> tuple[Tensor, tuple[int, ...]]:
        """Input of the first block ``(T, d)`` and the bag sizes, class tokens included (first of each bag)."""
        h = self.input_proj(bags.features)
        if self.cls_token is None:
            return h, bags.sizes
        token = self.cls_token[0].to(h.dtype)
        h = torch.cat([part for rows in h.split(bags.sizes) for part in (token, rows)])
        return h, tuple(n + 1 for n in bags.sizes)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        h, sizes = self._stream(bags)
        for block in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, sizes, use_reentrant=False)
            else:
                h = block(h, sizes)
        h = self.final_norm(h)
        attention = None
        if self.pooling is not None:
            embedding, attention = self.pooling(h, sizes)
        elif self.pooling_kind == "cls":
            first = [0, *accumulate(sizes[:-1])]
            embedding = h[torch.tensor(first, device=h.device)]
        elif self.pooling_kind == "max":
            embedding = segment_max(h, sizes)
        else:
            embedding = segment_mean(h, sizes)
        return BagOutput(apply_head(self.classifier, embedding), embedding, attention if return_attention else None)

    def layer_attention(
        self, bags: BagsLike, mask: Tensor | None = None, *, max_instances: int = 4096
    ) -> list[list[LayerAttention]]:
        """Full attention maps, explicitly: memory grows with the square of each bag.

        Args:
            bags, mask: as for `forward`.
            max_instances: largest bag that is allowed.

        Returns:
            For each layer, for each bag, a `LayerAttention` with ``(H, n, n)`` (with a class token: n + 1, the
            token first).

        Raises:
            BagError: a bag larger than max_instances, or than the model's key_clusters (there is no such map then).
        """
        packed = self.prepare(pack(bags, mask)[0])
        clusters = self.blocks[0].self_attn.key_clusters
        for bag_id, size in zip(packed.bag_ids, packed.sizes, strict=True):
            if clusters is not None and size > clusters:
                raise BagError(
                    f"bag {bag_id!r} has {size} instances: this model attends to {clusters} clusters of them, so there "
                    "is no map of every pair"
                )
            if size > max_instances:
                raise BagError(
                    f"bag {bag_id!r} has {size} instances: its full maps would have {size}^2 entries a head; sample "
                    f"the bag, or raise max_instances ({max_instances}) if the memory is there"
                )
        h, sizes = self._stream(packed)
        maps = []
        for block in self.blocks:
            maps.append(block.self_attn.maps(block.input_layernorm(h), sizes))
            h = block(h, sizes)
        return maps

    @classmethod
    def from_released(cls, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Self:
        """Build from a checkpoint of the authors' release, in evaluation mode.

        Args:
            state_dict: released weight names.
            config: fields of the released configuration. None: inferred from the weights, which leaves dropout
                and the activation at their defaults.

        Raises:
            ConfigError: a field that cannot be honoured, a configuration that cannot be inferred, or weights
                that do not fit.
        """
        in_dim, num_classes, options = options_of_release(infer_config(state_dict) if config is None else config)
        model = cls(in_dim, num_classes, **options)
        model.name, model.options = "qgmil", options
        load_strict(model, {k: v.detach().clone() for k, v in state_dict.items()}, "the released checkpoint")
        return model.eval()

    def to_released(self) -> dict[str, Tensor]:
        """Weights under the released names; standardisation is folded into the input projection.

        Raises:
            ConfigError: the plain MLP, which the release does not have.
        """
        released_config(self)
        state = {k: v.detach().clone() for k, v in self.state_dict().items()}
        return fold_standardization(state, self, "input_proj.0")

    def released_config(self) -> dict[str, Any]:
        """The fields of the released configuration that rebuild this model there.

        Raises:
            ConfigError: the plain MLP, or q and k norms of another kind, which the release does not have.
        """
        return released_config(self)


def derive_head_dim(width: int, num_heads: int) -> int:
    """``width / num_heads``, said in the log (the release derives it from 512 whatever the width).

    Raises:
        ConfigError: heads that do not divide the width.
    """
    if num_heads < 1 or width % num_heads:
        raise ConfigError(f"width={width} is not a multiple of num_heads={num_heads}: give head_dim as well")
    head_dim = width // num_heads
    if (width, num_heads) != (512, 8):
        logger.info("head_dim = width / num_heads = %d / %d = %d", width, num_heads, head_dim)
    return head_dim
