"""An encoder by name, loaded and on its device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from qgmil.encoders import conch, dinobloom, lite0, onnx, vit
from qgmil.encoders.base import RESIZING, Encoder, EncoderInfo, sized
from qgmil.encoders.registry import DEFAULT, find_encoder
from qgmil.errors import ConfigError
from qgmil.planning.device import choose_device

LOADERS: dict[str, Callable[[EncoderInfo, Path | None], tuple[EncoderInfo, nn.Module, str]]] = {
    "lite0": lite0.load,
    "timm": vit.load_timm,
    "transformers": vit.load_transformers,
    "dinobloom": dinobloom.load,
    "conch": conch.load,
}
PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


def load_encoder(
    name: str = DEFAULT,
    *,
    weights: str | Path | None = None,
    input_size: int | None = None,
    resize: str = "bilinear",
    device: str = "auto",
    precision: str = "auto",
) -> Encoder:
    """Load an encoder.

    Args:
        name: a known one (`ENCODERS`), ``timm:NAME``, ``hf:REPOSITORY`` or ``hf:FOLDER``, or an ONNX file.
        weights: a checkpoint of your own instead of the published weights.
        input_size: edge of the square that it sees, instead of its own.
        resize: "bilinear", "bicubic" or "lanczos", all with the picture low-passed when it shrinks.
        device: "auto", "cpu", "cuda", ...
        precision: "auto" is bf16 on GPUs and 32 bits on CPUs; "32", "bf16", "16".

    Raises:
        ConfigError: an unknown name or value, a package that is missing, a model that the hub does not give.
        ReadError: weights that are broken or of another model.
    """
    if resize not in RESIZING:
        raise ConfigError(f"resize={resize!r}: there are {', '.join(RESIZING)}")
    if precision not in (*PRECISIONS, "auto"):
        raise ConfigError(f"precision={precision!r}: there are auto, {', '.join(PRECISIONS)}")
    asked = find_encoder(name, None if weights is None else Path(weights))
    device = choose_device(device)
    wide = PRECISIONS["bf16" if device.startswith("cuda") else "32"] if precision == "auto" else PRECISIONS[precision]
    if asked.info.family == "onnx":
        assert asked.weights is not None
        info, run, digest = onnx.load(asked.info, asked.weights, device, input_size)
        return Encoder(sized(info, input_size), run, digest, "cpu", None, resize)
    info, module, digest = LOADERS[asked.info.family](asked.info, asked.weights)
    module = module.eval().requires_grad_(False).to(device)
    return Encoder(sized(info, input_size), module, digest, device, module, resize, wide)
