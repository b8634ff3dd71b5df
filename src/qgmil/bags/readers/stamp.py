"""STAMP: ``feats`` (older: ``patch_embeddings``) with ``coords`` in microns and attributes at the root.

Microns cannot be turned into level-0 pixels without the slide's own resolution, which the file does not hold: they
stay microns. ``tile_size_um / tile_size_px`` is the resolution of the tiles, not of level 0.
"""

from __future__ import annotations

from pathlib import Path

import h5py

from qgmil.bags import hints
from qgmil.bags.readers.base import BagFile, as_coords, as_features, positive
from qgmil.bags.readers.h5 import SUFFIXES as SUFFIXES
from qgmil.bags.readers.h5 import features_of, find, instance_columns, open_h5, own_dataset, raw_shape, read_array
from qgmil.bags.readers.h5_attributes import number, text
from qgmil.errors import ReadError

NAME = "stamp"
FEATURES = ("feats", "patch_embeddings")
MICRONS = frozenset({"um", "µm", "μm", "micron", "microns"})  # both signs that look like a mu


def recognises(path: Path, file: h5py.File | None) -> bool:
    """Whether it has STAMP's data set of features with its attributes, or its older data set."""
    if file is None or own_dataset(file, *FEATURES) is None:
        return False
    coords = own_dataset(file, "coords")
    if coords is not None and ("patch_size" in coords.attrs or "patch_size_level0" in coords.attrs):
        return False
    has = file.attrs.__contains__
    signed = has("tile_size_um") or has("feat_type") or (has("unit") and has("tile_size"))
    return signed or own_dataset(file, "patch_embeddings") is not None


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read features and coordinates in microns.

    Raises:
        ReadError: embeddings of whole slides or patients, or attributes that cannot be.
    """
    with open_h5(path) as file:
        features = as_features(path, read_array(path, _features(path, file, dataset)))
        rows = features.shape[0]
        coords = find(path, file, "coords")
        unit = _unit(path, file)
        size = number(path, file, "tile_size_um" if "tile_size_um" in file.attrs else "tile_size")
        size = positive(path, "tile_size_um", size) if unit == "um" else None
        pixels = positive(path, "tile_size_px", number(path, file, "tile_size_px"))
        labels, ids = instance_columns(path, file, rows)
        return BagFile(
            features,
            coords=None if coords is None else as_coords(path, read_array(path, coords), rows),
            coord_unit=None if coords is None else unit,
            tile_size=None if coords is None else size,
            tile_mpp=size / pixels if size and pixels else None,
            instance_labels=labels,
            instance_ids=ids,
        )


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """The shape of the features, without reading them."""
    with open_h5(path) as file:
        return raw_shape(path, _features(path, file, dataset))


def _features(path: Path, file: h5py.File, dataset: str | None) -> h5py.Dataset:
    kind = text(path, file, "feat_type")
    if kind is not None and kind != "tile":
        raise ReadError(
            f"{path}: holds one embedding of a whole {kind} (feat_type is {kind!r}), not the features of its tiles; "
            f"name the tile features, or read it as a bag of one instance with {hints.option('format', 'h5')}"
        )
    named = next((name for name in FEATURES if find(path, file, name) is not None), None)
    return features_of(path, file, dataset if dataset is not None else named)


def _unit(path: Path, file: h5py.File) -> str | None:
    """Microns where the file says so. The oldest files count in pixels of tiles that were scaled: not level 0."""
    unit = text(path, file, "unit")
    if unit is None:
        return "um" if "tile_size_um" in file.attrs else None
    return "um" if unit.strip().lower() in MICRONS else None
