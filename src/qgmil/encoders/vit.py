"""Encoders of timm and of transformers, by name from the hub or from a local checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qgmil.encoders.base import EncoderInfo, file_hash, pooled, state_hash
from qgmil.encoders.checkpoint import read_checkpoint
from qgmil.errors import ConfigError


class Tokens(nn.Module):
    """A network and what is taken of its tokens."""

    def __init__(self, network: nn.Module, tokens: Callable[[Any, Tensor], Tensor], pooling: str, prefix: int) -> None:
        super().__init__()
        self.network, self.tokens, self.pooling, self.prefix = network, tokens, pooling, prefix

    def forward(self, x: Tensor) -> Tensor:
        """Features of normalised pictures ``(B, 3, S, S)``."""
        return pooled(self.tokens(self.network, x), self.pooling, self.prefix)


def load_timm(info: EncoderInfo, weights: Path | None) -> tuple[EncoderInfo, nn.Module, str]:
    """A model of timm; `info.options` may name the architecture for a local checkpoint.

    Raises:
        ConfigError: timm is not there, the hub does not give the model, or it has no such architecture.
        ReadError: the checkpoint does not fit.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"{info.name} needs timm and torchvision: pip install 'qgmil[timm]' ({error})") from None
    options: dict[str, Any] = {k: _layer(v) for k, v in info.options.items() if k != "architecture"}
    options.setdefault("num_classes", 0)
    if weights is not None:
        architecture = info.options.get("architecture", info.source)
        if architecture.startswith("hf-hub:"):
            raise ConfigError(f"{info.name}: a local checkpoint needs the name of its architecture, as timm:NAME")
        network = made(info, lambda: timm.create_model(architecture, pretrained=False, **options))
        read_checkpoint(network, weights, info.name)
        digest = file_hash(weights)
    else:
        network = made(info, lambda: timm.create_model(info.source, pretrained=True, **options))
        digest = state_hash(network)
    take = "forward" if info.pooling == "pooled" else "forward_features"
    if info.width is None:
        said = timm.data.resolve_model_data_config(network)
        info = as_said(info, said["mean"], said["std"], said["input_size"][-1])
    return info, Tokens(network.eval(), lambda net, x: getattr(net, take)(x), info.pooling, info.prefix), digest


def load_transformers(info: EncoderInfo, weights: Path | None) -> tuple[EncoderInfo, nn.Module, str]:
    """A vision model of transformers, from the hub or from a folder that `save_pretrained` wrote.

    Raises:
        ConfigError: transformers is not there, or neither hub nor folder gives the model.
    """
    try:
        from transformers import AutoModel
    except ImportError:
        raise ConfigError(f"{info.name} needs transformers: pip install 'qgmil[transformers]'") from None
    source = str(weights) if weights is not None else info.source
    if weights is not None and not weights.is_dir():
        raise ConfigError(f"{weights}: transformers wants the folder that save_pretrained wrote")
    network = made(info, lambda: AutoModel.from_pretrained(source, local_files_only=weights is not None))
    if info.width is None:
        said = _processing(source, local=weights is not None)
        size = said.get("crop_size") or said.get("size") or {}
        edge = size.get("height") or size.get("shortest_edge") if isinstance(size, dict) else size
        info = as_said(info, said.get("image_mean"), said.get("image_std"), edge)
    return info, Tokens(network.eval(), hidden, info.pooling, info.prefix), state_hash(network)


def as_said(info: EncoderInfo, mean: Any, std: Any, size: Any) -> EncoderInfo:
    """An encoder that the registry does not know, with what its own files say of its pictures."""
    said = {"mean": mean, "std": std}
    known: dict[str, Any] = {k: tuple(float(x) for x in v) for k, v in said.items() if v is not None and len(v) == 3}
    if size:
        known["input_size"] = int(size)
    return replace(info, **known)


def _processing(source: str, local: bool) -> dict[str, Any]:
    """How a model of transformers wants its pictures, from the file beside it; empty where there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        said, _ = ImageProcessingMixin.get_image_processor_dict(source, local_files_only=local)
    except OSError:
        return {}
    return dict(said)


def hidden(network: Any, x: Tensor) -> Tensor:
    """The tokens ``(B, T, D)`` after the last layer of a model of transformers."""
    return network(pixel_values=x).last_hidden_state


def made(info: EncoderInfo, make: Callable[[], Any]) -> Any:
    """What `make` makes; whatever hub and library raise says what to do."""
    try:
        return make()
    except Exception as error:  # the libraries raise anything: HTTP errors, missing files, unknown names
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(
            f"encoder {info.name}: cannot be loaded ({type(error).__name__}: {first}). {_advice(info)}"
        ) from None


def _advice(info: EncoderInfo) -> str:
    hub = info.source.removeprefix("hf-hub:")
    offline = (
        f"; or name a checkpoint that lies here with --weights (HF_HOME is {os.environ.get('HF_HOME', 'not set')})"
    )
    if info.gated:
        return (
            f"Its owner asks for a registration: request access at https://huggingface.co/{hub}, then run "
            f"`hf auth login` or set HF_TOKEN{offline}"
        )
    return f"It is looked for as {info.source!r}; check the name and the network{offline}"


def _layer(value: Any) -> Any:
    """Layers are named in the table, as importing timm takes seconds."""
    if value == "SwiGLUPacked":
        from timm.layers import SwiGLUPacked

        return SwiGLUPacked
    return torch.nn.SiLU if value == "SiLU" else value
