"""PyTorch ``.pt``/``.pth``: a tensor ``(N, D)``, or a dict with ``features`` and, if any, ``coords``."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qgmil.bags import hints
from qgmil.bags.readers.base import BagFile, as_coords, as_features, as_instance_labels, check_zip, choose
from qgmil.bags.readers.pickles import check_pickles, python_objects
from qgmil.errors import ReadError

NAME = "pt"
SUFFIXES = (".pt", ".pth")
EXTRAS = ("coords", "instance_labels")


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read tensors only: anything that would need unpickling of other objects is refused.

    Raises:
        ReadError: Python objects in the file, or no tensor that could be the features.
    """
    tensor, extras = _features(path, dataset)
    features = as_features(path, tensor)
    rows = features.shape[0]
    coords, labels = (_plain(path, extras[k]) if k in extras else None for k in EXTRAS)
    return BagFile(
        features,
        coords=None if coords is None else as_coords(path, coords, rows),
        instance_labels=None if labels is None else as_instance_labels(path, labels, rows),
    )


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """The shape of the features. A .pt has no header: the file is read."""
    return tuple(_features(path, dataset)[0].shape)


def _features(path: Path, dataset: str | None) -> tuple[Tensor, dict[str, Tensor]]:
    """The features as they are stored, and the other tensors of the file by name."""
    content = _load(path)
    if isinstance(content, Tensor):
        if dataset is not None:
            raise ReadError(f"{path}: holds one tensor without a name; leave out {hints.option('dataset', dataset)}")
        return _plain(path, content), {}
    if not isinstance(content, dict):
        raise ReadError(f"{path}: holds a {type(content).__name__}; expected a tensor or a dict with 'features'")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    name = choose(path, tensors, dataset, sole=[k for k in tensors if k not in EXTRAS])
    return _plain(path, tensors.pop(name)), tensors


def _load(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        check_zip(path)  # torch writes its archives uncompressed, but inflates those of others
    check_pickles(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise python_objects(path) from error


def _plain(path: Path, tensor: Tensor) -> Tensor:
    """A dense tensor that owns every element it declares (strides of zero can declare any size)."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
        raise ReadError(f"{path}: holds a {tensor.layout} tensor on {tensor.device}; expected a dense one")
    declared, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if declared > stored:
        raise ReadError(
            f"{path}: a tensor of shape {tuple(tensor.shape)} declares {declared:,} bytes but {stored:,} are stored; "
            "the file is broken or hostile, make it again"
        )
    return tensor.clone() if stored > 2 * declared else tensor  # a slice keeps its whole storage alive
