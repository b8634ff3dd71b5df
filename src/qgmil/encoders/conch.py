"""CONCH (Lu et al., Nature Medicine 2024) through its own package, which its owners give out with the weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from qgmil.encoders.base import EncoderInfo, file_hash, state_hash
from qgmil.encoders.vit import made
from qgmil.errors import ConfigError


class Conch(nn.Module):
    """The picture's side of the model, before the projection that texts are compared in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Features of normalised pictures ``(B, 3, 448, 448)``: ``(B, 512)``."""
        encode = getattr(self.network, "encode_image")  # noqa: B009 - not a method that nn.Module knows
        return encode(x, proj_contrast=False, normalize=False)


def load(info: EncoderInfo, weights: Path | None) -> tuple[EncoderInfo, nn.Module, str]:
    """What it is, the network and the hash of its weights.

    Raises:
        ConfigError: its package is not installed, or the weights cannot be had.
    """
    try:
        from conch.open_clip_custom import create_model_from_pretrained
    except ImportError:
        raise ConfigError(
            "conch needs the package of its owners: pip install git+https://github.com/mahmoodlab/CONCH.git"
        ) from None
    source = str(weights) if weights is not None else f"hf_hub:{info.source}"
    network, _ = made(info, lambda: create_model_from_pretrained("conch_ViT-B-16", source))
    assert isinstance(network, torch.nn.Module)
    return info, Conch(network.eval()), file_hash(weights) if weights is not None else state_hash(network)
