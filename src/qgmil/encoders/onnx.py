"""Any ONNX file that takes images and gives one vector each, through onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qgmil.bags.readers.base import check_path, guarded
from qgmil.encoders.base import EncoderError, EncoderInfo, file_hash
from qgmil.errors import ConfigError, ReadError


def load(
    info: EncoderInfo, weights: Path, device: str, input_size: int | None = None
) -> tuple[EncoderInfo, Callable[[Tensor], Tensor], str]:
    """The encoder as the file describes it, what computes it, and the hash of the file.

    The file's one input is ``(batch, 3, height, width)`` float32 or float16; of its outputs the first is taken, maps
    ``(B, D, h, w)`` averaged over their pixels.

    Raises:
        ConfigError: onnxruntime is not installed, or the file takes pictures of another size.
        ReadError: no ONNX file, or one with other inputs.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(f"{weights}: needs onnxruntime: pip install 'qgmil[onnx]'") from None
    if not weights.is_file():
        raise ConfigError(f"{weights}: no such file; name the ONNX file")
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
    edges = [n for n in shape[2:] if isinstance(n, int) and n > 0]
    if len(set(edges)) > 1:
        raise ReadError(f"{weights}: takes pictures of {shape[2]} x {shape[3]} pixels; an encoder takes squares")
    if edges and input_size not in (None, edges[0]):
        raise ConfigError(f"{weights}: takes pictures of {edges[0]} pixels, not input_size={input_size}")
    if edges:
        info = replace(info, input_size=edges[0])
    return info, _runner(session, inputs[0], info.name), file_hash(weights)


def _runner(session: Any, taken: Any, name: str) -> Callable[[Tensor], Tensor]:
    half = taken.type == "tensor(float16)"
    fixed = taken.shape[0] if isinstance(taken.shape[0], int) and taken.shape[0] > 0 else None

    def run(x: Tensor) -> Tensor:
        pixels = x.cpu().contiguous().numpy()
        pixels = pixels.astype("float16") if half else pixels
        count = len(pixels)
        if fixed is not None:  # exported for batches of one size: the last is filled up
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], -count % fixed, axis=0)])
        parts = [pixels] if fixed is None else [pixels[i : i + fixed] for i in range(0, len(pixels), fixed)]
        try:
            said = [torch.from_numpy(session.run(None, {taken.name: part})[0]) for part in parts]
        except Exception as error:  # onnxruntime's own classes
            raise EncoderError(f"encoder {name}: cannot compute ({str(error).splitlines()[0][:300]})") from None
        out = torch.cat(said)[:count].float()
        return out.mean(dim=(2, 3)) if out.ndim == 4 else out

    return run
