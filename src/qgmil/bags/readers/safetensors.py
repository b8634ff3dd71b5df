"""``.safetensors``: ``features`` (or the only tensor), and ``coords``, ``instance_labels`` if any."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from qgmil.bags.readers.base import BagFile, as_coords, as_features, as_instance_labels, choose

NAME = "safetensors"
SUFFIXES = (".safetensors",)
EXTRAS = ("coords", "instance_labels")


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read the tensors; the unit of the coordinates is unknown."""
    with safe_open(path, framework="pt") as file:  # checks every declared size against the file
        names = list(file.keys())
        name = choose(path, names, dataset, sole=[n for n in names if n not in EXTRAS])
        features = as_features(path, file.get_tensor(name))
        coords, labels = (file.get_tensor(k) if k in names and k != name else None for k in EXTRAS)
    rows = features.shape[0]
    return BagFile(
        features,
        coords=None if coords is None else as_coords(path, coords, rows),
        instance_labels=None if labels is None else as_instance_labels(path, labels, rows),
    )


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """The declared shape, from the header alone."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        name = choose(path, names, dataset, sole=[n for n in names if n not in EXTRAS])
        return tuple(file.get_slice(name).get_shape())
