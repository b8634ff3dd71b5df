"""Attention that was computed elsewhere: arrays of scores from npz, npy, h5, CSV and parquet files.

One file holds one bag (its name is the bag's), or all of them: an archive or HDF5 file with an array a bag, or a table
with a line an instance and the columns ``bag_id`` and ``score`` (or one of the usual names). A folder holds such files.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from qgmil.attention.scores import InstanceScores
from qgmil.bags.readers import npy, npz
from qgmil.bags.readers.base import check_zip, guarded, listing
from qgmil.bags.readers.h5 import names, open_h5, own, own_dataset, read_array
from qgmil.bags.tabular import TABLE_SUFFIXES, read_text_table
from qgmil.errors import ReadError
from qgmil.evaluation.checks import FloatArray

Normalise = Literal["none", "sum", "softmax"]
#: What attention is called in files, the surest name first.
SCORE_NAMES = ("score", "scores", "attention", "attention_score", "attention_scores", "weight", "weights", "A")
BAG_NAMES = ("bag_id", "slide_id", "slide", "case_id", "filename")
BESIDE = ("coords", "instance_labels", "instance_ids", "features")
MAX_BAGS = 1_000_000


def read_scores(where: str | Path) -> dict[str, FloatArray]:
    """Every bag's scores ``(N,)``, by bag, as they stand in the files.

    Raises:
        ReadError: nothing there, a layout that is none of those above, a bag twice, or scores that are not finite
            numbers (the file, bag and instance are named).
        ManifestError: a table that cannot be read.
    """
    where = Path(where)
    found: dict[str, FloatArray] = {}
    came_from: dict[str, Path] = {}
    for path in _files(where):
        for bag_id, values in _READERS[path.suffix.lower()](path):
            if bag_id in found:
                raise ReadError(f"{path}: bag {bag_id!r} is in {came_from[bag_id]} as well; remove one of them")
            found[bag_id], came_from[bag_id] = _checked(path, bag_id, values), path
    if not found:
        raise ReadError(f"{where}: holds no scores")
    return found


def as_weights(values: FloatArray, how: Normalise = "none", *, bag_id: str = "bag") -> InstanceScores:
    """Scores as weights that sum to 1 over the bag.

    Args:
        how: "none": they already are; "sum": divide by the sum; "softmax": they are logits.

    Raises:
        ReadError: negative scores, or ones that do not sum to 1, and what to choose instead.
    """
    if how == "softmax":
        shifted = np.exp(values - values.max())
        return _given(shifted / shifted.sum())
    if (values < 0).any():
        row = int(np.flatnonzero(values < 0)[0])
        raise ReadError(
            f"bag {bag_id!r}: the score of instance {row} is {values[row]:g}; weights are not negative: are these "
            "logits (--normalise softmax)?"
        )
    total = float(values.sum())
    if how == "sum":
        if total == 0:
            raise ReadError(f"bag {bag_id!r}: all its scores are 0, so they cannot be divided by their sum")
        return _given(values / total)
    if abs(total - 1) > 1e-3:
        raise ReadError(
            f"bag {bag_id!r}: its scores sum to {total:.6g}, not 1; say what they are with --normalise sum (weights on "
            "another scale) or --normalise softmax (logits)"
        )
    return _given(values / total)


def _given(values: FloatArray) -> InstanceScores:
    return InstanceScores(values, "given", "scores as given, sum to 1 over the bag", True)


def _files(where: Path) -> list[Path]:
    if not where.exists():
        raise ReadError(f"{where}: no such file or folder; name the file of scores, or the folder of such files")
    if where.is_file():
        if where.suffix.lower() not in _READERS:
            raise ReadError(f"{where}: scores are read from {listing(sorted(_READERS))}; this is none of them")
        return [where]
    files = sorted(p for p in where.iterdir() if p.is_file() and p.suffix.lower() in _READERS and p.name[0] != ".")
    if not files:
        raise ReadError(f"{where}: has no files of scores ({listing(sorted(_READERS))})")
    return files


def _checked(path: Path, bag_id: str, values: np.ndarray) -> FloatArray:
    if values.dtype.kind not in "fiub":
        raise ReadError(f"{path}: the scores of bag {bag_id!r} are of type {values.dtype}; expected numbers")
    if values.ndim == 2 and 1 in values.shape:
        values = values.reshape(-1)
    if values.ndim != 1 or values.size == 0:
        raise ReadError(
            f"{path}: the scores of bag {bag_id!r} have shape {values.shape}; expected one number an instance"
        )
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        row = int(np.flatnonzero(~np.isfinite(wide))[0])
        raise ReadError(f"{path}: bag {bag_id!r}: the score of instance {row} is {wide[row]}")
    return wide


def _npy(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    with guarded(path, "npy"):
        yield path.stem, npy.read_array(path)


def _npz(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """One bag where an array has a name of attention, else an array a bag."""
    with guarded(path, "npz"):
        with zipfile.ZipFile(path):
            have = [m.filename.removesuffix(".npy") for m in check_zip(path) if m.filename.endswith(".npy")]
        yield from _one_or_each(path, have, lambda name: npz.read_array(path, name))


def _h5(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """As npz; bags may also be groups with one of the names of attention in each."""
    with open_h5(path) as file:
        have = names(file, MAX_BAGS)

        def read(name: str) -> np.ndarray:
            item = own_dataset(file, name)
            if item is None:
                group = own(file, name)
                item = own_dataset(group, *SCORE_NAMES) if isinstance(group, h5py.Group) else None
            if item is None:
                raise ReadError(f"{path}: {name!r} holds no scores; expected an array, or a group with 'scores' in it")
            return read_array(path, item)

        yield from _one_or_each(path, have, read)


def _one_or_each(path: Path, have: list[str], read: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    known = [name for name in SCORE_NAMES if name in have]
    if known:
        yield path.stem, read(known[0])
        return
    for name in have:
        if name not in BESIDE:
            yield name, read(name)


def _table(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    table = read_text_table(path)
    if table.problems:
        raise ReadError(f"{path}: {table.problems[0].message}")
    score = next((c for c in SCORE_NAMES if c in table.columns), None)
    if score is None:
        raise ReadError(f"{path}: has no column of scores ({listing(SCORE_NAMES)}); it has {listing(table.columns)}")
    bag = next((c for c in BAG_NAMES if c in table.columns), None)
    values: dict[str, list[float]] = {}
    for number, row in table.rows:
        try:
            value = float(row[score])
        except ValueError:
            raise ReadError(f"{path}: {table.word} {number}, column {score!r}: {row[score]!r} is no number") from None
        values.setdefault(path.stem if bag is None else row[bag], []).append(value)
    for bag_id, numbers in values.items():
        if not bag_id:
            raise ReadError(f"{path}: a {table.word} has a blank {bag!r}; name the bag of every instance")
        yield bag_id, np.array(numbers)


_READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, np.ndarray]]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".h5": _h5,
    ".hdf5": _h5,
    **dict.fromkeys(TABLE_SUFFIXES, _table),
}
