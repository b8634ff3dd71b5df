"""Bags on disk, in the layout that TRIDENT writes and every tool reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from qgmil.encoders.settings import Extraction
from qgmil.files import atomic_path


def write_bag(
    path: Path, features: Tensor, made: Extraction, facts: dict[str, Any], names: tuple[str, ...] | None,
    coords: np.ndarray | None,
) -> None:  # fmt: skip
    """Write one bag, whole or not at all.

    ``features`` ``(N, D)`` float16; of tiles ``coords`` ``(N, 2)`` int64 in level-0 pixels with `facts` as
    attributes; of cells ``instance_ids``.

    Args:
        path: the file.
        features: ``(N, D)``.
        made: how they were made, for the attributes.
        facts: attributes of the coordinates.
        names: of the instances.
        coords: ``(N, 2)`` upper left corners.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        stored = file.create_dataset("features", data=features.half().numpy(), chunks=_chunks(features))
        stored.attrs["encoder"] = made.encoder
        stored.attrs["encoder_sha256"] = made.weights
        stored.attrs["input_size"] = made.input_size
        stored.attrs["resize"] = made.resize
        stored.attrs["name"] = path.stem
        if coords is not None:
            placed = file.create_dataset("coords", data=coords.astype(np.int64))
            for name, value in {**facts, "name": path.stem}.items():
                placed.attrs[name] = value
        if names is not None:
            file.create_dataset("instance_ids", data=np.array([n.encode() for n in names]))


def _chunks(features: Tensor) -> tuple[int, int]:
    rows, width = features.shape
    return min(rows, max(1, 2**20 // (2 * width))), width


def slide_facts(made: Extraction, size: tuple[int, int], mpp: float, edge: int) -> dict[str, Any]:
    """The attributes that TRIDENT writes beside coordinates, and microns per pixel as numbers."""
    grid = made.grid
    assert grid is not None
    return {
        "patch_size": grid.size,
        "patch_size_level0": edge,
        "level0_magnification": round(10 / mpp, 2),
        "target_magnification": grid.magnification,
        "overlap": grid.overlap,
        "level0_width": size[0],
        "level0_height": size[1],
        "level0_mpp": mpp,
        "target_mpp": grid.mpp,
    }
