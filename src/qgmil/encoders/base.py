"""An encoder: pixels in, one vector an image out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from qgmil.errors import ConfigError

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIZING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class EncoderError(ConfigError):
    """An encoder gives something else than one finite vector an image."""


@dataclass(frozen=True)
class EncoderInfo:
    """What is known of an encoder before it is loaded.

    Args:
        name: how it is asked for.
        family: how it is loaded, a module of this package (`lite0`, `timm`, `transformers`, `onnx`, `dinobloom`,
            `conch`).
        source: the hub's name of it, or the package it comes in.
        width: of a feature; None where only the file knows.
        input_size: edge of the square that it sees, in pixels.
        licence: of the weights.
        mean, std: what pixels from 0 to 1 are normalised with.
        gated: its owner asks for a registration.
        options: of its architecture.
        pooling: what is taken of the tokens: "pooled" (what the model gives), "cls", or "cls+mean" (of the patches).
        prefix: tokens before those of patches.
    """

    name: str
    family: str
    source: str
    width: int | None
    input_size: int
    licence: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    gated: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    pooling: str = "pooled"
    prefix: int = 1


@dataclass(frozen=True, eq=False)
class Encoder:
    """An encoder that is loaded.

    Args:
        info: what it is.
        run: ``(B, 3, S, S)`` float32, normalised, on `device`, to ``(B, D)``.
        weights: SHA-256 of the weights.
        device: where it runs.
        module: the network, where it is one of torch (None for ONNX).
        resize: how pictures become `info.input_size`, a key of `RESIZING`.
        autocast: precision of mixed computing, or None.
    """

    info: EncoderInfo
    run: Callable[[Tensor], Tensor]
    weights: str
    device: str = "cpu"
    module: torch.nn.Module | None = None
    resize: str = "bilinear"
    autocast: torch.dtype | None = None

    def picture(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB picture as the encoder's square ``(S, S, 3)``; nothing is resized that has the size."""
        size = (self.info.input_size, self.info.input_size)
        return np.asarray(image if image.size == size else image.resize(size, RESIZING[self.resize]))

    def encode(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Pictures ``(B, S, S, 3)`` to features ``(B, D)``, float32 on the CPU.

        Raises:
            EncoderError: the features are not of the width that is known, or not finite.
        """
        pixels = torch.from_numpy(np.require(pictures, requirements=["C", "W"])).to(self.device, non_blocking=True)
        # a view: (B, 3, S, S) in the memory order that convolutions like best
        x = pixels.permute(0, 3, 1, 2).float().div_(255)
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (self.info.mean, self.info.std))
        with torch.inference_mode(), _autocast(self.device, self.autocast):
            features = self.run(x.sub_(mean).div_(std)).float().cpu()
        if features.ndim != 2 or (self.info.width is not None and features.shape[1] != self.info.width):
            raise EncoderError(
                f"encoder {self.info.name}: gave features of shape {tuple(features.shape)}, not ({len(pictures)}, "
                f"{self.info.width or 'width'}): an encoder gives one vector an image"
            )
        if not bool(torch.isfinite(features).all()):
            raise EncoderError(f"encoder {self.info.name}: gave features that are not finite; try --precision 32")
        return features


def _autocast(device: str, dtype: torch.dtype | None) -> Any:
    return torch.autocast(device.split(":")[0], dtype or torch.bfloat16, enabled=dtype is not None)


def sized(info: EncoderInfo, input_size: int | None) -> EncoderInfo:
    """The encoder at another input size.

    Raises:
        ConfigError: a size that is none.
    """
    if input_size is None:
        return info
    if input_size < 8:
        raise ConfigError(f"input_size={input_size}: an encoder sees at least 8 pixels")
    return replace(info, input_size=input_size)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_hash(module: torch.nn.Module) -> str:
    """SHA-256 over the names and values of a module's weights, for those that came from no file that is known."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pooled(tokens: Tensor, pooling: str, prefix: int) -> Tensor:
    """One vector of tokens ``(B, T, D)``: the class token, with the mean over patches behind it for "cls+mean"."""
    if tokens.ndim == 2:
        return tokens
    if pooling == "cls":
        return tokens[:, 0]
    return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(dim=1)], dim=1)
