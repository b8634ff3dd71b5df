"""DinoBloom (Koch et al., MICCAI 2024) from its published checkpoints: DINOv2 weights under their original names.

The checkpoint of a self-supervised training holds the teacher's backbone beside its heads, with fused projections and
blocks that may be numbered by chunk. Here they become those of `transformers.Dinov2Model`; the sizes are read off the
tensors.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qgmil.encoders.base import EncoderInfo, file_hash
from qgmil.encoders.checkpoint import read_weights
from qgmil.encoders.vit import Tokens, hidden
from qgmil.errors import ConfigError, ReadError

HEADS = ("dino_head.", "ibot_head.")
HEAD_WIDTH, PATCH = 64, 14  # of every DINOv2
NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
}
BLOCK = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "attn.proj.": "attention.o_proj.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w3.": "mlp.down_proj.",
    "mlp.": "mlp.",
}
#: Projections that DINOv2 keeps in one matrix, one below the other.
FUSED = {
    "attn.qkv.": ("attention.q_proj.", "attention.k_proj.", "attention.v_proj."),
    "mlp.w12.": ("mlp.gate_proj.", "mlp.up_proj."),
}
NEEDED = ("embeddings.cls_token", "embeddings.position_embeddings", "layernorm.weight")


def load(info: EncoderInfo, weights: Path | None) -> tuple[EncoderInfo, nn.Module, str]:
    """What it is, the network and the hash of its checkpoint.

    Raises:
        ConfigError: no checkpoint is named, or transformers is not installed.
        ReadError: the file is no DINOv2 checkpoint, or of another size.
    """
    if weights is None:
        raise ConfigError(
            f"{info.name}: its weights are a file to be downloaded ({info.source}); name it with --weights FILE.pth"
        )
    network = from_checkpoint(weights)
    if info.width is not None and network.config.hidden_size != info.width:
        raise ReadError(f"{weights}: is {network.config.hidden_size} wide, not {info.width} as {info.name} is")
    return info, Tokens(network.eval(), hidden, "cls", 1), file_hash(weights)


def from_checkpoint(path: Path) -> Any:
    """A `transformers.Dinov2Model` with the weights of a DINOv2 checkpoint."""
    try:
        from transformers import Dinov2Config, Dinov2Model
    except ImportError:
        raise ConfigError(f"{path}: DINOv2 weights need transformers: pip install 'qgmil[transformers]'") from None
    found = converted(path, read_weights(path))
    width = found["embeddings.cls_token"].shape[-1]
    side = math.isqrt(found["embeddings.position_embeddings"].shape[1] - 1)
    swiglu = any("gate_proj" in name for name in found)
    layers = 1 + max(int(n.split(".")[2]) for n in found if n.startswith("encoder.layer."))
    inner = next((v.shape[0] for n, v in found.items() if n.endswith("mlp.fc1.bias")), 4 * width)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(1, width // HEAD_WIDTH),
            image_size=side * PATCH, patch_size=PATCH, use_swiglu_ffn=swiglu, mlp_ratio=inner // width,
        )
    )  # fmt: skip
    own = model.state_dict()
    if not any("q_proj" in name for name in own):
        raise ConfigError(f"{path}: DINOv2 weights need transformers 5 or newer: pip install 'transformers>=5'")
    found.setdefault("embeddings.mask_token", torch.zeros_like(own["embeddings.mask_token"]))
    wrong = sorted({*own} ^ {*found}) or [k for k in own if own[k].shape != found[k].shape]
    if wrong:
        raise ReadError(
            f"{path}: is no checkpoint of a DINOv2: {wrong[0]!r} is missing, not needed or of another shape"
        )
    model.load_state_dict(found)
    return model


def converted(path: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names of transformers; heads and the mask token, which no feature needs, are left out."""
    made: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = key.removeprefix("module.").removeprefix("backbone.").removeprefix("model.")
        if name.startswith(HEADS) or name == "mask_token":
            continue
        for new, part in _renamed(name, value):
            made[new] = part
    missing = [name for name in NEEDED if name not in made]
    if missing or not any(name.startswith("encoder.layer.") for name in made):
        raise ReadError(f"{path}: is no checkpoint of a DINOv2: it has no {missing[0] if missing else 'blocks'}")
    return made


def _renamed(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    block = re.fullmatch(r"blocks\.(?:\d+\.)?(\d+)\.(\D.*)", name)
    if block is None:
        for old, new in NAMES.items():
            if name.startswith(old):
                return [(new + name.removeprefix(old), value)]
        return [(name, value)]
    at, rest = f"encoder.layer.{block[1]}.", block[2]
    for old, parts in FUSED.items():
        if rest.startswith(old):
            kind = rest.removeprefix(old)
            return [(at + part + kind, v) for part, v in zip(parts, value.chunk(len(parts)), strict=True)]
    for old, new in BLOCK.items():
        if rest.startswith(old):
            return [(at + new + rest.removeprefix(old), value)]
    return [(at + rest, value)]
