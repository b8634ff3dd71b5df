"""Bags on disk, in the layout that TRIDENT writes and every tool reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from qgmil.bags.readers.h5 import find, open_h5
from qgmil.bags.readers.h5_attributes import text
from qgmil.encoders.settings import Extraction
from qgmil.errors import ReadError
from qgmil.files import atomic_path

#: Largest number of float16.
HALF_MAX = 65504.0
#: Bytes at the beginning and end of a file that tell it from another.
ENDS = 65_536


def write_bag(
    path: Path, features: Tensor, made: Extraction, facts: dict[str, Any], names: tuple[str, ...] | None,
    coords: np.ndarray | None, source: str, precision: str,
) -> None:  # fmt: skip
    """Write one bag, whole or not at all.

    ``features`` ``(N, D)`` float16 (float32 where that is too small for them); of tiles ``coords`` ``(N, 2)`` int64
    in level-0 pixels with `facts` as attributes; of cells ``instance_ids``.

    Args:
        path: the file.
        features: ``(N, D)``.
        made: how they were made, for the attributes.
        facts: attributes of the coordinates.
        names: of the instances.
        coords: ``(N, 2)`` upper left corners.
        source: what the images were known by (`fingerprint`).
        precision: of the encoder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        kept = features.half() if float(features.abs().max()) <= HALF_MAX else features
        stored = file.create_dataset("features", data=kept.numpy(), chunks=_chunks(features))
        stored.attrs["source"] = np.bytes_(source)
        stored.attrs["precision"] = precision
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
            file.create_dataset("instance_ids", data=np.array([n.encode(errors="backslashreplace") for n in names]))


def fingerprint(files: Sequence[Path]) -> str:
    """What tells the images of a bag from others of the same name: sizes of all, and both ends of the first.

    Raises:
        ReadError: a file that is not there.
    """
    digest = hashlib.sha256()
    try:
        for path in files:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode(errors="surrogateescape"))
        with files[0].open("rb") as file:
            digest.update(file.read(ENDS))
            file.seek(max(0, files[0].stat().st_size - ENDS))
            digest.update(file.read(ENDS))
    except OSError as error:
        raise ReadError(f"{error.filename or files[0]}: cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()


def made_of(path: Path) -> str | None:
    """The fingerprint in a file of features; None where there is none.

    Raises:
        ReadError: the file is broken.
    """
    with open_h5(path) as file:
        stored = find(path, file, "features")
        return None if stored is None else text(path, stored, "source")


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
