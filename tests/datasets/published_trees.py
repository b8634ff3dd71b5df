"""Small trees of the shape in which data sets are published."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from PIL import Image


def image(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> Path:
    """A noisy image whose content depends on the seed alone; bmp and png keep every pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def npy(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(value))
    return path


def trident(path: Path, rows: int, width: int = 5) -> Path:
    """A slide's features as TRIDENT writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = np.full((rows, width), rows, dtype=np.float32)
        file["coords"] = np.arange(2 * rows).reshape(rows, 2) * 512
        file["coords"].attrs["patch_size_level0"] = 512
    return path
