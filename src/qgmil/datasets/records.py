"""From rows of a published table to a loaded data set: files that are not there, and the recommended split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from qgmil.bags import hints
from qgmil.bags.bag import Bag
from qgmil.bags.dataset import SKIPPABLE, BagDataset
from qgmil.bags.manifest import BagRecord
from qgmil.bags.problems import bad_id
from qgmil.bags.readers import (
    LockedFileError,
    MissingFileError,
    bag_file_shape,
    check_bag_path,
    feature_suffixes,
    listing,
)
from qgmil.bags.readers.siblings import check_inside
from qgmil.bags.splits import Split, from_column, kfold
from qgmil.datasets.base import DatasetInfo, NamedDataset
from qgmil.errors import ConfigError, ManifestError, ReadError

Skip = Collection[str]


def file_dataset(
    info: DatasetInfo,
    path: Path,
    records: Sequence[BagRecord],
    *,
    skip: Skip = (),
    split_columns: Sequence[str] = (),
    published: tuple[Split, ...] = (),
    notes: Sequence[str] = (),
    folds: int = 5,
) -> NamedDataset:
    """The data set of these records, read lazily.

    Args:
        skip: any of "empty", "missing", "unlabelled": such bags are left out and noted instead of refused.
        split_columns: columns of `extra` with the published split; without them `folds`-fold cross-validation by
            patient (seed 0) is recommended.

    Raises:
        ConfigError: an unknown `skip`.
        ManifestError: ids that cannot name a bag, bags without a label, or none left.
        ReadError: files that are not there (the bags are named).
    """
    unknown = set(skip) - SKIPPABLE
    if isinstance(skip, str) or unknown:
        raise ConfigError(f"--skip (skip in Python) is {skip!r}; it must be a list of some of {sorted(SKIPPABLE)}")
    _check_ids(path, [record.bag_id for record in records])
    kept, skipped = _kept(path, records, frozenset(skip))
    bags = BagDataset(kept, skipped=tuple(skipped))
    columns = tuple(split_columns)

    def recipe() -> tuple[Split, ...]:
        return from_column(kept, columns) if columns else recommended(bags, folds)

    said = [f"left out {bag_id}: {reason}" for bag_id, reason in skipped]
    return NamedDataset(info, bags, recipe, path, columns, published, (*notes, *said))


def memory_dataset(
    info: DatasetInfo, path: Path, bags: Sequence[Bag], *, notes: Sequence[str] = (), folds: int = 10
) -> NamedDataset:
    """The data set of bags in memory, with `folds`-fold cross-validation by patient (seed 0) recommended.

    Raises:
        ManifestError: ids that cannot name a bag.
    """
    _check_ids(path, [bag.bag_id for bag in bags])
    dataset = BagDataset.from_bags(bags)
    return NamedDataset(info, dataset, lambda: recommended(dataset, folds), path, notes=tuple(notes))


def recommended(bags: BagDataset, folds: int) -> tuple[Split, ...]:
    """Cross-validation by patient, stratified by label."""
    return kfold(bags.bag_ids, bags.labels, bags.groups, k=folds)


def feature_file(folder: Path, stem: str) -> Path:
    """The feature file of that name in a folder, whatever its ending; the h5 one where there is none yet.

    Raises:
        ReadError: several, or a link out of the folder.
    """
    found = [folder / f"{stem}{suffix}" for suffix in sorted(feature_suffixes())]
    found = [p for p in found if p.is_file()]
    if len(found) > 1:
        raise ReadError(f"{folder}: has {listing(p.name for p in found)}, all features of {stem!r}; keep one of them")
    if found:
        check_inside(found[0], folder)
    return found[0] if found else folder / f"{stem}.h5"


def column(path: Path, columns: Sequence[str], *names: str) -> str:
    """The first of these columns that a table has, whatever its case.

    Raises:
        ManifestError: none of them.
    """
    by_lower = {c.lower(): c for c in reversed(columns)}
    for name in names:
        if name.lower() in by_lower:
            return by_lower[name.lower()]
    raise ManifestError(f"{path}: there is no column {names[0]!r}; the columns are {listing(columns, 40)}")


def _check_ids(path: Path, ids: Sequence[str]) -> None:
    """Refuse ids that could not name a file: tables of bags are written, and files are named after bags."""
    for bag_id in ids:
        if reason := bad_id(bag_id):
            raise ManifestError(f"{path}: bag id {bag_id!r} cannot be used, {reason}")


def _kept(
    path: Path, records: Sequence[BagRecord], skip: frozenset[str]
) -> tuple[list[BagRecord], list[tuple[str, str]]]:
    kept: list[BagRecord] = []
    skipped: list[tuple[str, str]] = []
    refused: dict[str, list[str]] = {"missing": [], "unlabelled": []}
    for record in records:
        kind, reason = _problem(record, "empty" in skip)
        if kind is None:
            kept.append(record)
        elif kind in skip:
            skipped.append((record.bag_id, f"{kind}: {reason}"))
        else:
            refused[kind].append(f"{record.bag_id} ({reason})" if kind == "missing" else record.bag_id)
    if refused["unlabelled"]:
        names = refused["unlabelled"]
        raise ManifestError(f"{path}: {len(names)} bags have no label: {listing(names)}; {hints.skip('unlabelled')}")
    if refused["missing"]:
        names = refused["missing"]
        more = f"\n  and {len(names) - 10} more" if len(names) > 10 else ""
        raise MissingFileError(
            f"{path}: {len(names)} of {len(records)} bags have no features:\n  "
            + "\n  ".join(names[:10])
            + f"{more}\nadd them, or {hints.skip('missing')}"
        )
    if not kept:
        raise ManifestError(f"{path}: no bags are left{f', all were skipped: {skipped[0][1]}' if skipped else ''}")
    return kept, skipped


def _problem(record: BagRecord, look_inside: bool) -> tuple[str | None, str]:
    """Which kind of skippable problem a bag has, and why."""
    if not record.files:
        return "missing", "it has no feature file"
    for file in record.files:
        try:
            check_bag_path(file)
        except LockedFileError:
            return "missing", f"{file} is still being written"
        except MissingFileError:
            return "missing", f"there is no {file}"
    if record.label is None:
        return "unlabelled", "it has no label"
    if look_inside and not any(bag_file_shape(file)[0] for file in record.files):
        return "empty", "it has no instances"
    return None, ""
