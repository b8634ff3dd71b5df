"""A named data set as the table that `qgmil train` and everything else accepts."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from qgmil.bags.bag import Bag
from qgmil.bags.manifest import BagRecord, Manifest
from qgmil.bags.readers.h5_facts import write_facts
from qgmil.bags.splits import Split
from qgmil.datasets.base import NamedDataset
from qgmil.datasets.registry import load_dataset
from qgmil.errors import ReadError
from qgmil.files import atomic_path

MARKER = "made_by_qgmil_datasets.txt"  # a folder without it is somebody else's and never replaced


def write_manifest(
    name: str,
    root: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "bags.csv",
    *,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Load a data set and write its table of bags, with the official split as columns where there is one.

    Args:
        name, root, options: as for `load_dataset`.
        out: the CSV to write. Feature files that exist are named in it; bags that were made in memory are written
            into the folder ``<out without .csv>_features`` beside it, one h5 file each.
        overwrite: replace what is there.

    Raises:
        ReadError: `out` or its folder is there already, or is no CSV; otherwise as `load_dataset`. With `overwrite`, a
            folder that was not made here is still refused.
    """
    check_target(out, overwrite=overwrite)
    return export(load_dataset(name, root, **options), out, overwrite=overwrite)


def export(dataset: NamedDataset, out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """As `write_manifest`, for a data set that is loaded already."""
    out = check_target(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    in_memory = [item for item in dataset.bags.items if isinstance(item, Bag)]
    folder = out.with_name(f"{out.stem}_features")
    if in_memory and folder.exists():
        _check_folder(folder, overwrite)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=out.parent)) if in_memory else None
    try:
        for bag in in_memory:
            assert partial is not None
            _write_bag(partial / f"{bag.bag_id}.h5", bag)
        if partial is not None:
            (partial / MARKER).write_text(f"{dataset.info.name}: {dataset.info.licence}\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            partial.chmod(0o755)
            partial.rename(folder)
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    columns = _split_columns(dataset)
    records = [_record(item, folder, columns.get(item.bag_id, {})) for item in dataset.bags.items]
    with atomic_path(out) as target:
        Manifest(tuple(records)).to_csv(target)
    return out


def check_target(out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """The path of the table, if writing there destroys nothing.

    Raises:
        ReadError: it is there already, or it is no CSV.
    """
    path = Path(out)
    if path.suffix.lower() != ".csv":
        raise ReadError(f"{path}: the table of bags is a CSV; end its name with .csv")
    if path.is_dir() or (path.exists() and not overwrite):
        raise _taken(path)
    return path


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that is in the way, unless it may be replaced and was made here."""
    if not overwrite:
        raise _taken(folder)
    if not (folder / MARKER).is_file():
        raise ReadError(f"{folder}: was not made by qgmil datasets, so it is not replaced; name another table")


def _taken(path: Path) -> ReadError:
    return ReadError(f"{path}: is there already; name another table, or --overwrite (overwrite=True in Python)")


def _record(item: BagRecord | Bag, folder: Path, split: dict[str, str]) -> BagRecord:
    if isinstance(item, BagRecord):
        return replace(item, files=tuple(file.absolute() for file in item.files))
    file = folder.absolute() / f"{item.bag_id}.h5"
    return BagRecord(item.bag_id, item.label, item.patient_id, (file,), split)


def _split_columns(dataset: NamedDataset) -> dict[str, dict[str, str]]:
    """For each bag, the side of each official split. Records carry theirs already."""
    columns: dict[str, dict[str, str]] = {}
    splits: tuple[Split, ...] = dataset.splits if dataset.split_columns else ()
    for name, split in zip(dataset.split_columns, splits, strict=True):
        for side, ids in split.sides().items():
            for bag_id in ids:
                columns.setdefault(bag_id, {})[name] = side
    return columns


def _write_bag(path: Path, bag: Bag) -> None:
    """One bag in an h5 file that is read as it was: features, coordinates with their unit, tiles, labels, names."""
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", data=bag.features.numpy())
        write_facts(features, vars(bag))
        if bag.instance_labels is not None:
            file.create_dataset("instance_labels", data=bag.instance_labels.numpy())
        if bag.instance_ids is not None:
            file.create_dataset("instance_ids", data=np.array([i.encode() for i in bag.instance_ids]))
        if bag.coords is not None:
            file.create_dataset("coords", data=bag.coords.numpy())
