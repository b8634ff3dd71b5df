"""Published images without features: reading them safely, and colour as the features of last resort.

Mean colour separates many cohorts by their stain and their scanner alone. That makes it the control that every other
feature should beat, and it needs no encoder, so a data set of images can be looked at as soon as it is unpacked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset
from qgmil.bags.manifest import BagRecord
from qgmil.bags.readers.base import check_path, guarded
from qgmil.datasets.base import DatasetInfo, NamedDataset
from qgmil.datasets.records import Skip, feature_file, file_dataset
from qgmil.errors import ReadError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"})
FORMATS = ("JPEG", "PNG", "TIFF", "BMP")
MAX_PIXELS = 50_000_000
COLOUR = "colour"


def read_rgb(path: Path, max_width: int | None = None) -> np.ndarray:
    """An image ``(height, width, 3)`` uint8.

    Raises:
        ReadError: missing, broken, of another format, wider than `max_width` or of more than 50 million pixels.
    """
    from PIL import Image

    check_path(path)
    with guarded(path, "an image"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if max_width is not None and width > max_width:
                raise ReadError(f"{path}: is {width} px wide, more than {max_width}")
            if width * height > MAX_PIXELS:
                raise ReadError(f"{path}: is {width} x {height}, more than {MAX_PIXELS:,} pixels")
            return np.asarray(image.convert("RGB"))


def images_under(folder: Path) -> list[Path]:
    """The image files in a folder and below, sorted; links are not followed."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_symlink() and p.is_file())


def colour(rgb: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of red, green and blue ``(6,)`` float32, from 0 to 1."""
    pixels = rgb.reshape(-1, 3).astype(np.float32) / 255
    return np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)])


def tiles(rgb: np.ndarray, size: int, stride: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """The x, y and pixels of every whole tile, row by row."""
    height, width = rgb.shape[:2]
    for y in range(0, height - size + 1, stride):
        for x in range(0, width - size + 1, stride):
            yield x, y, rgb[y : y + size, x : x + size]


def with_features(
    info: DatasetInfo,
    path: Path,
    records: Sequence[BagRecord],
    features: str,
    make: Callable[[BagRecord], Bag],
    *,
    skip: Skip = (),
    notes: Sequence[str] = (),
    split_columns: Sequence[str] = (),
) -> NamedDataset:
    """The data set of published images, with features from a folder or made here.

    Args:
        records: the bags, with their images as files.
        features: "colour", or a folder with a file for each bag, or with one for each image in a folder a bag.
        make: the bag with colour features.

    Raises:
        ReadError: no features are named, or there are none of some bag.
    """
    if not features:
        raise ReadError(
            f"{path}: {info.name} is published as images; name a folder with a feature file for each bag with "
            f"--options.features FOLDER (features='FOLDER' in Python), or take '{COLOUR}' (mean and spread of the "
            "colours), a control that says how much the stain alone gives away"
        )
    if features == COLOUR:
        kinds = skip if isinstance(skip, str) else set(skip) - {"empty"}  # an image always has pixels
        described = file_dataset(info, path, records, skip=kinds, notes=notes, split_columns=split_columns)
        bags = BagDataset.from_bags([make(r) for r in described.bags.items if isinstance(r, BagRecord)])
        return replace(described, bags=bags, notes=(*described.notes, "features: colour, a control"))
    folder = Path(features).expanduser()
    found = [replace(r, files=_features_of(folder, r)) for r in records]
    return file_dataset(info, path, found, skip=skip, notes=notes, split_columns=split_columns)


def _features_of(folder: Path, record: BagRecord) -> tuple[Path, ...]:
    """One file of the bag, or one of each of its images."""
    inside = folder / record.bag_id
    if not inside.is_dir():
        return (feature_file(folder, record.bag_id),)
    return tuple(feature_file(inside, image.stem) for image in record.files)


def tensor(rows: Sequence[np.ndarray]) -> torch.Tensor:
    """Rows of features as one matrix ``(N, D)``."""
    return torch.from_numpy(np.stack(rows))
