"""slideflow: ``<slide>.pt`` with ``<slide>.index.npz`` (tile centres) and ``bags_config.json`` (tile size).

The index holds the centres of the tiles in level-0 pixels. Their corners are half a tile away, and the size of a tile
in level-0 pixels is nowhere: ``tile_px`` counts pixels after scaling and ``tile_um`` microns, and no file says how
many microns a level-0 pixel has. The spacing of the centres is no substitute (tiles may overlap, or have gaps). So the
centres are given as they are and their unit is unknown, which overlays refuse.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py

from qgmil.bags.readers import npz, pt
from qgmil.bags.readers.base import BagFile, as_coords, guarded, positive
from qgmil.bags.readers.pt import SUFFIXES as SUFFIXES
from qgmil.bags.readers.pt import shape as shape
from qgmil.bags.readers.siblings import beside, is_beside
from qgmil.errors import ReadError

NAME = "slideflow"
HERE = ((0, "."),)
CONFIG = "bags_config.json"
INDEX_SUFFIX = ".index.npz"
INDEX_KEY = "arr_0"
MAX_CONFIG = 2**20  # bytes; real ones have a few thousand


def recognises(path: Path, file: h5py.File | None) -> bool:
    """Whether the index of the slide or the configuration of the folder lies beside it."""
    return is_beside(path, HERE, _index(path)) or is_beside(path, HERE, CONFIG)


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read the features, the tile centres (unit unknown) and the resolution of the tiles.

    Raises:
        ReadError: other numbers of rows, or a file beside it that cannot be used.
    """
    bag = pt.read(path, dataset)
    index, config = beside(path, HERE, _index(path)), beside(path, HERE, CONFIG)
    coords = bag.coords
    if index is not None:
        with guarded(index, NAME):
            coords = as_coords(index, npz.read_array(index, INDEX_KEY), bag.features.shape[0])
    magnification, tile_mpp = (None, None) if config is None else _resolution(config)
    return replace(bag, coords=coords, magnification=magnification, tile_mpp=tile_mpp)


def _index(path: Path) -> str:
    return path.stem + INDEX_SUFFIX


def _resolution(path: Path) -> tuple[float | None, float | None]:
    """Magnification and microns per pixel of the tiles: ``tile_um`` is a length in microns, or a text like "20x"."""
    with guarded(path, "JSON"):
        if path.stat().st_size > MAX_CONFIG:
            raise ReadError(f"{path}: has {path.stat().st_size:,} bytes, which is no configuration; copy it again")
        config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ReadError(f"{path}: holds a {type(config).__name__}; expected an object with tile_px and tile_um")
    size = config.get("tile_um")
    if isinstance(size, str) and re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,6})?x", size.strip().lower()):
        return positive(path, "tile_um", float(size.strip().lower().removesuffix("x"))), None
    microns, pixels = (positive(path, k, _number(config.get(k))) for k in ("tile_um", "tile_px"))
    return None, microns / pixels if microns and pixels else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
