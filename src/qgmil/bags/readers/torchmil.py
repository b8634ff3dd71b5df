"""torchmil: folders ``features``, ``coords``, ``inst_labels`` and ``labels`` with one .npy (or .h5) a bag of one stem.

The folders lie beside that of the features, or beside its parent where that is called ``features`` (as published:
``features/features_UNI``). Coordinates are columns and rows of the grid of tiles: nothing says how many pixels a step
is, so they stay that.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from qgmil.bags.readers import h5, npy
from qgmil.bags.readers.base import BagFile, as_coords, as_features, as_instance_labels, guarded
from qgmil.bags.readers.h5 import MAX_OBJECTS, features_of, names, open_h5, own_dataset, read_array
from qgmil.bags.readers.siblings import Place, beside, is_beside
from qgmil.errors import ReadError

NAME = "torchmil"
SUFFIXES = (*npy.SUFFIXES, *h5.SUFFIXES)
COORDS = ("coords",)
TRUTH = ("inst_labels", "patch_labels", "slice_labels")
LABELS = ("labels",)
FOLDERS_BESIDE = (*COORDS, *TRUTH, *LABELS)


def recognises(path: Path, file: h5py.File | None) -> bool:
    """Whether a file of the same name is in one of the folders beside it (and it is not itself one of those)."""
    if path.parent.name in FOLDERS_BESIDE or (file is not None and own_dataset(file, "coords") is not None):
        return False
    return is_beside(path, _places(path, FOLDERS_BESIDE), path.name)


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read features, grid positions and the truth of instances.

    Raises:
        ReadError: other numbers of rows, or a file beside it that cannot be used.
    """
    features = as_features(path, _features(path, dataset))
    rows = features.shape[0]
    coords = _coords(path, rows)
    return BagFile(
        features,
        coords=coords,
        coord_unit=None if coords is None else "grid",
        instance_labels=_truth(path, rows),
    )


def shape(path: Path, dataset: str | None = None) -> tuple[int, ...]:
    """The declared shape of the features."""
    return (npy if path.suffix.lower() in npy.SUFFIXES else h5).shape(path, dataset)


def label(path: Path, dataset: str | None = None) -> str | None:
    """The label in ``labels/<stem>`` as text ("1", not "1.0"); None where there is no such file.

    Raises:
        ReadError: not one number.
    """
    array = _beside(path, LABELS)
    if array is None:
        return None
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise ReadError(f"{path}: its label is {array.dtype} of shape {array.shape}; expected one number")
    value = float(array.reshape(()))
    return str(int(value)) if value.is_integer() else str(value)


def _coords(path: Path, rows: int) -> Tensor | None:
    array = _beside(path, COORDS)
    if array is None or (array.ndim == 2 and len(array) == rows and array.shape[1] != 2):
        return None  # slices of a volume have one or three numbers, which are no positions in a plane
    return as_coords(path, array, rows)


def _truth(path: Path, rows: int) -> Tensor | None:
    array = _beside(path, TRUTH)
    return None if array is None else as_instance_labels(path, array, rows)


def _places(path: Path, folders: tuple[str, ...]) -> list[Place]:
    nested = path.absolute().parent.parent.name == "features"
    return [(levels, name) for levels in (1, 2)[: 1 + nested] for name in folders]


def _beside(path: Path, folders: tuple[str, ...]) -> np.ndarray | None:
    """The only array of the file of this name in one of the folders."""
    found = beside(path, _places(path, folders), path.name)
    if found is None:
        return None
    with guarded(found, NAME):
        return _only(found)


def _features(path: Path, dataset: str | None) -> np.ndarray:
    if path.suffix.lower() in npy.SUFFIXES:
        npy.no_dataset(path, dataset)
        return npy.read_array(path)
    with open_h5(path) as file:
        return read_array(path, features_of(path, file, dataset))


def _only(path: Path) -> np.ndarray:
    if path.suffix.lower() in npy.SUFFIXES:
        return npy.read_array(path)
    with open_h5(path) as file:
        found = [name for name in names(file, MAX_OBJECTS) if own_dataset(file, name) is not None]
        if len(found) != 1:
            raise ReadError(f"{path}: has {len(found)} data sets; expected one")
        return read_array(path, file[found[0]])
