"""What a check wants to know of one feature file, without keeping its features. Runs beside the file, in a child."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qgmil.bags.bag import Bag
from qgmil.bags.readers import BagFile, EmptyBagError, LockedFileError, MissingFileError, read_bag_file
from qgmil.bags.readers.base import DeniedFileError
from qgmil.errors import BagError, ReadError

CHUNK = 2**22  # numbers that are looked at as float32 at a time (16 MB)
NARROW = 16  # rows of fewer features are the same by chance: nothing is concluded from it
ALL_ROWS = 2**64 - 1


@dataclass(frozen=True)
class FileFacts:
    """One file, summed up.

    Args:
        rows, width, dtype, bytes: of its features, as stored.
        digest: of type, shape and every byte of the features.
        unit, tile_size, mpp, magnification, tile_mpp: as for `BagFile`; `has_coords` tells an unknown unit from no
            coordinates.
        same_place: instances whose coordinates another one before them has.
        zero_rows: instances whose features are all zero.
        largest: the largest absolute value.
        mean, m2, low, high: of every feature ``(D,)``: mean, sum of squared deviations, smallest, largest.
        hashes: of the different rows, as far as they are below the bound that was asked for (uint64, sorted).
        distinct: number of different rows (wide features only, else the number of rows).
    """

    rows: int
    width: int
    dtype: str
    bytes: int
    digest: str
    has_coords: bool
    unit: str | None
    tile_size: float | None
    mpp: float | None
    magnification: float | None
    tile_mpp: float | None
    same_place: int
    zero_rows: int
    largest: float
    mean: np.ndarray
    m2: np.ndarray
    low: np.ndarray
    high: np.ndarray
    hashes: np.ndarray
    distinct: int


def task(path: Path, bag_id: str, format: str | None, dataset: str | None, bound: int) -> dict[str, Any]:
    """What `inspect_file` is asked: a file, whose it is, how it is read, and the bound of the hashes it returns."""
    return {"path": str(path), "bag_id": bag_id, "format": format, "dataset": dataset, "bound": bound}


def inspect_file(task: dict[str, Any]) -> dict[str, Any]:
    """The fields of `FileFacts`, or "kind" and "message" of what is wrong with the file."""
    try:
        part = read_bag_file(task["path"], format=task["format"], dataset=task["dataset"])
        return vars(sum_up(part, task["bag_id"], task["bound"]))
    except (ReadError, BagError) as error:
        return {"kind": kind_of(error), "message": str(error)}
    except MemoryError:
        return {"kind": "broken", "message": f"{task['path']}: does not fit into memory; make a smaller file"}


def kind_of(error: ReadError | BagError) -> str:
    """The kind of problem that an error of reading is."""
    if isinstance(error, EmptyBagError):
        return "empty"
    if isinstance(error, MissingFileError):
        return "missing"
    if isinstance(error, LockedFileError):
        return "locked"
    if isinstance(error, DeniedFileError):
        return "permission"
    return "broken" if isinstance(error, ReadError) else "nan"


def sum_up(part: BagFile, bag_id: str, bound: int = ALL_ROWS) -> FileFacts:
    """The facts of what a file (or a table in memory) holds.

    Raises:
        BagError: features that are not finite, naming the row.
    """
    features = part.features
    Bag(features, bag_id=bag_id).check_finite()
    rows, width = features.shape
    hashes = _row_hashes(features) if width >= NARROW else np.zeros(0, dtype=np.uint64)
    distinct = np.unique(hashes)
    return FileFacts(
        rows=rows,
        width=width,
        dtype=str(features.dtype).removeprefix("torch."),
        bytes=features.numel() * features.element_size(),
        digest=_digest(features),
        has_coords=part.coords is not None,
        unit=part.coord_unit,
        tile_size=part.tile_size,
        mpp=part.mpp,
        magnification=part.magnification,
        tile_mpp=part.tile_mpp,
        same_place=0 if part.coords is None else rows - len(np.unique(part.coords.numpy(), axis=0)),
        **_moments(features),
        hashes=distinct[distinct <= np.uint64(bound)],
        distinct=len(distinct) if width >= NARROW else rows,
    )


def _moments(features: Tensor) -> dict[str, Any]:
    """Mean, squared deviations, smallest and largest of each feature, chunk by chunk (Chan et al. 1983)."""
    width = features.shape[1]
    total = Moments(width)
    zero_rows = 0
    for chunk in features.split(max(1, CHUNK // width)):
        x = chunk.float()
        variance, mean = torch.var_mean(x, dim=0, correction=0)
        low, high = torch.aminmax(x, dim=0)
        zero_rows += int((~x.any(dim=1)).sum())
        total.add(len(x), mean.double().numpy(), variance.double().numpy() * len(x), low.numpy(), high.numpy())
    largest = float(np.maximum(-total.low, total.high).max())
    found = {"mean": total.mean, "m2": total.m2, "low": total.low, "high": total.high}
    return {"zero_rows": zero_rows, "largest": largest, **found}


class Moments:
    """Mean, squared deviations and range of every feature over the rows seen so far; float64 ``(D,)``."""

    def __init__(self, width: int) -> None:
        self.rows = 0
        self.mean, self.m2 = np.zeros(width), np.zeros(width)
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)

    def add(self, rows: int, mean: np.ndarray, m2: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        """Take in the moments of more rows."""
        total = self.rows + rows
        shift = mean - self.mean
        self.m2 = self.m2 + m2 + shift**2 * (self.rows * rows / total)
        self.mean = self.mean + shift * (rows / total)
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.rows = total

    @property
    def sd(self) -> np.ndarray:
        """Standard deviation of each feature."""
        return np.sqrt(self.m2 / max(1, self.rows))


def _digest(features: Tensor) -> str:
    state = hashlib.blake2b(f"{features.dtype}{tuple(features.shape)}".encode(), digest_size=16)
    state.update(features.contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()


def _row_hashes(features: Tensor) -> np.ndarray:
    """A hash of each row that is not all zero, the same in float16 and in float32 ``(<= N,)`` uint64.

    Rows are compared as float16, in which features are stored. Those that it cannot hold (too large, or so small that
    they would vanish) are compared as float32.
    """
    found = []
    for chunk in features.split(max(1, CHUNK // features.shape[1])):
        largest = chunk.abs().amax(dim=1).float()
        fits = (largest < 65_000) & (largest > 1e-2)
        kept = largest > 0
        half, single = chunk[fits].half(), chunk[kept & ~fits].float()
        found += [hashlib.blake2b(row, digest_size=8).digest() for part in (half, single) for row in part.numpy()]
    return np.frombuffer(b"".join(found), dtype="<u8").astype(np.uint64)
