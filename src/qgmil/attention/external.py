"""Attention that was computed elsewhere: arrays of scores from npz, npy, h5, CSV and parquet files.

One file holds one bag (its name is the bag's), or all of them: an archive or HDF5 file with an array a bag, or a table
with a line an instance and the columns ``bag_id`` and ``score`` (or one of the usual names). A folder holds such files;
where it has none itself, its folders do (CLAM writes ``LABEL/ID/ID_blockmap.h5``).

A file that says which instance each score is of (a column ``instance``, or coordinates) may have another order than the
bag.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from qgmil.attention.given import GivenScores
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
INSTANCE_NAMES = ("instance", "instance_id", "instance_index")
COORDS = "coords"
BESIDE = (COORDS, "instance_labels", "instance_ids", "features")
BLOCKMAP = "_blockmap"
MAX_BAGS = 1_000_000


def read_scores(where: str | Path) -> dict[str, GivenScores]:
    """Every bag's scores, by bag, as they stand in the files.

    Raises:
        ReadError: nothing there, a layout that is none of those above, a bag twice, scores that are not finite numbers
            (the file, bag and instance are named), or coordinates that are not two numbers a score.
        ManifestError: a table that cannot be read.
    """
    where = Path(where)
    found: dict[str, GivenScores] = {}
    for path in score_files(where):
        for given in _READERS[path.suffix.lower()](path):
            bag_id = given.bag_id
            if bag_id in found:
                raise ReadError(f"{path}: bag {bag_id!r} is in {found[bag_id].path} as well; remove one of them")
            found[bag_id] = given
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


def score_files(where: Path) -> list[Path]:
    """The files that `read_scores` reads: the file itself, those of a folder, or else those of the folders in it.

    Raises:
        ReadError: nothing there, or nothing that can hold scores.
    """
    if not where.exists():
        raise ReadError(f"{where}: no such file or folder; name the file of scores, or the folder of such files")
    if where.is_file():
        if where.suffix.lower() not in _READERS:
            raise ReadError(f"{where}: scores are read from {listing(sorted(_READERS))}; this is none of them")
        return [where]
    files = _readable(where.iterdir()) or _readable(where.rglob("*"))
    if not files:
        raise ReadError(f"{where}: has no files of scores ({listing(sorted(_READERS))})")
    return files


def _readable(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in _READERS and p.name[0] != "." and p.is_file())


def _checked(
    path: Path,
    bag_id: str,
    values: np.ndarray,
    coords: np.ndarray | None = None,
    instances: Sequence[str] | None = None,
) -> GivenScores:
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
    return GivenScores(
        bag_id,
        wide,
        path,
        instances=None if instances is None else tuple(instances),
        coords=None if coords is None else _places(path, bag_id, coords, len(wide)),
    )


def _places(path: Path, bag_id: str, coords: np.ndarray, rows: int) -> FloatArray:
    """Coordinates ``(rows, 2)``; some tools write them with a leading axis of one."""
    flat = coords[0] if coords.ndim == 3 and len(coords) == 1 else coords
    if flat.dtype.kind not in "fiu" or flat.shape != (rows, 2) or not np.isfinite(flat).all():
        raise ReadError(
            f"{path}: the coords of bag {bag_id!r} are {coords.dtype} of shape {coords.shape}; expected two finite "
            f"numbers for each of its {rows} scores"
        )
    return flat.astype(np.float64)


def _npy(path: Path) -> Iterator[GivenScores]:
    with guarded(path, "npy"):
        yield _checked(path, path.stem, npy.read_array(path))


def _npz(path: Path) -> Iterator[GivenScores]:
    """One bag where an array has a name of attention, else an array a bag."""
    with guarded(path, "npz"):
        with zipfile.ZipFile(path):
            have = [m.filename.removesuffix(".npy") for m in check_zip(path) if m.filename.endswith(".npy")]
        known = _known(have)
        if known is not None:
            coords = npz.read_array(path, COORDS) if COORDS in have else None
            yield _checked(path, _bag_of(path), npz.read_array(path, known), coords)
            return
        for name in have:
            if name not in BESIDE:
                yield _checked(path, name, npz.read_array(path, name))


def _h5(path: Path) -> Iterator[GivenScores]:
    """As npz; bags may also be groups with one of the names of attention in each."""
    with open_h5(path) as file:
        have = names(file, MAX_BAGS)
        known = _known(have)
        if known is not None:
            yield _of_group(path, _bag_of(path), file, known)
            return
        for name in have:
            if name in BESIDE:
                continue
            item = own(file, name)
            if isinstance(item, h5py.Group):
                yield _of_group(path, name, item, *SCORE_NAMES)
            elif isinstance(item, h5py.Dataset):
                yield _checked(path, name, read_array(path, item))
            else:
                raise ReadError(f"{path}: {name!r} holds no scores; expected an array, or a group with 'scores' in it")


def _of_group(path: Path, bag_id: str, group: h5py.Group, *called: str) -> GivenScores:
    scores, coords = own_dataset(group, *called), own_dataset(group, COORDS)
    if scores is None:
        raise ReadError(f"{path}: {bag_id!r} holds no scores; expected an array, or a group with 'scores' in it")
    return _checked(path, bag_id, read_array(path, scores), None if coords is None else read_array(path, coords))


def _known(have: Collection[str]) -> str | None:
    return next((name for name in SCORE_NAMES if name in have), None)


def _bag_of(path: Path) -> str:
    return path.stem.removesuffix(BLOCKMAP) or path.stem


def _table(path: Path) -> Iterator[GivenScores]:
    table = read_text_table(path)
    if table.problems:
        raise ReadError(f"{path}: {table.problems[0].message}")
    score = _known(table.columns)
    if score is None:
        raise ReadError(f"{path}: has no column of scores ({listing(SCORE_NAMES)}); it has {listing(table.columns)}")
    bag = next((c for c in BAG_NAMES if c in table.columns), None)
    instance = next((c for c in INSTANCE_NAMES if c in table.columns), None)
    places = ("x", "y") if {"x", "y"} <= set(table.columns) else ()
    numbers: dict[str, list[list[float]]] = {}
    instances: dict[str, list[str]] = {}
    for number, row in table.rows:
        bag_id = path.stem if bag is None else row[bag]
        if not bag_id:
            raise ReadError(f"{path}: {table.word} {number} has a blank {bag!r}; name the bag of every instance")
        cells = [_number(path, f"{table.word} {number}", c, row[c]) for c in (score, *places)]
        numbers.setdefault(bag_id, []).append(cells)
        if instance is not None:
            instances.setdefault(bag_id, []).append(row[instance])
    for bag_id, lines in numbers.items():
        columns = np.array(lines)
        yield _checked(path, bag_id, columns[:, 0], columns[:, 1:] if places else None, instances.get(bag_id))


def _number(path: Path, where: str, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ReadError(f"{path}: {where}, column {column!r}: {text!r} is no number") from None


_READERS: Mapping[str, Callable[[Path], Iterator[GivenScores]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".h5": _h5,
    ".hdf5": _h5,
    **dict.fromkeys(TABLE_SUFFIXES, _table),
}
