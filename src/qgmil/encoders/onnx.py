"""Any ONNX file that takes images and gives one vector each, through onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qgmil.bags.readers.base import check_path, guarded
from qgmil.encoders.base import EncoderInfo, file_hash
from qgmil.errors import ConfigError, ReadError


def load(info: EncoderInfo, weights: Path, device: str) -> tuple[EncoderInfo, Callable[[Tensor], Tensor], str]:
    """The encoder as the file describes it, what computes it, and the hash of the file.

    The file's one input is ``(batch, 3, height, width)`` float32 or float16; of its outputs the first is taken, maps
    ``(B, D, h, w)`` averaged over their pixels.

    Raises:
        ConfigError: onnxruntime is not installed.
        ReadError: no ONNX file, or one with other inputs.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(f"{weights}: needs onnxruntime: pip install 'qgmil[onnx]'") from None
    check_path(weights)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    wanted = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()] + ["CPUExecutionProvider"]
    with guarded(weights, "an ONNX model"):
        session = onnxruntime.InferenceSession(str(weights), options, providers=providers)
    inputs = session.get_inputs()
    shape = list(inputs[0].shape)
    if len(inputs) != 1 or len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        said = ", ".join(f"{i.name} {list(i.shape)}" for i in inputs)
        raise ReadError(f"{weights}: takes {said}; an encoder takes one input of shape (batch, 3, height, width)")
    if isinstance(shape[2], int) and shape[2] > 0:
        info = replace(info, input_size=shape[2])
    return info, _runner(session, inputs[0]), file_hash(weights)


def _runner(session: Any, taken: Any) -> Callable[[Tensor], Tensor]:
    half = taken.type == "tensor(float16)"
    single = taken.shape[0] == 1  # a file that was exported for one image

    def run(x: Tensor) -> Tensor:
        pixels = x.cpu().contiguous().numpy()
        pixels = pixels.astype("float16") if half else pixels
        parts = [pixels[i : i + 1] for i in range(len(pixels))] if single else [pixels]
        out = torch.cat([torch.from_numpy(session.run(None, {taken.name: part})[0]) for part in parts]).float()
        return out.mean(dim=(2, 3)) if out.ndim == 4 else out

    return run
