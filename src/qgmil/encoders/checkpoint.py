"""Weights from files: safetensors, or pickles of tensors and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qgmil.bags.readers.base import check_path, guarded, listing
from qgmil.errors import ReadError

#: What training scripts wrap their weights in, outermost first.
WRAPPERS = ("teacher", "state_dict", "model", "model_state_dict")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; wrappers (``teacher``, ``state_dict``, ``model``) are opened.

    Raises:
        ReadError: missing, broken, or with anything but tensors in it.
    """
    check_path(path)
    with guarded(path, "a checkpoint"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found:
        raise ReadError(f"{path}: holds no weights by name (state_dict); save those")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ReadError(f"{path}: holds no tensors; it has {listing(map(str, found))}")
    return tensors


def read_checkpoint(
    module: nn.Module, path: Path, name: str, convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
) -> None:
    """Load weights into a module, all of them and no others.

    Args:
        module: the network.
        path: the checkpoint.
        name: of the encoder, for messages.
        convert: from the names of the file to those of the module.

    Raises:
        ReadError: names or shapes differ; some of them are listed.
    """
    found = read_weights(path)
    found = convert(found) if convert is not None else {_bare(key): value for key, value in found.items()}
    own = module.state_dict()
    missing, extra = [k for k in own if k not in found], [k for k in found if k not in own]
    shapes = [
        f"{k} {tuple(found[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in found and found[k].shape != own[k].shape
    ]
    if missing or extra or shapes:
        said = [("lacks", missing), ("has besides", extra), ("has of another shape", shapes)]
        parts = "; ".join(f"{verb} {len(names)}: {listing(names, 3)}" for verb, names in said if names)
        raise ReadError(f"{path}: are not the weights of {name}: it {parts}")
    module.load_state_dict(found)


def _bare(key: str) -> str:
    for prefix in ("module.", "backbone."):
        key = key.removeprefix(prefix)
    return key
