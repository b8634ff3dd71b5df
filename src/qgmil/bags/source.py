"""What a user points at (manifest, long table, feature files or a folder of them) as bags, with its problems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from qgmil.bags import hints
from qgmil.bags.bag import Bag, merge_bags
from qgmil.bags.manifest import BagRecord, Manifest, records_per_patient, scan_manifest
from qgmil.bags.problems import Problem, bad_id
from qgmil.bags.readers import feature_suffixes, is_companion
from qgmil.bags.store.columns import stored_records
from qgmil.bags.store.layout import FEATURES, HEADER, is_store
from qgmil.bags.store.reading import StoredRecord, open_store, stored_per_patient
from qgmil.bags.table import looks_like_table, scan_table
from qgmil.bags.tabular import TABLE_SUFFIXES, os_errors
from qgmil.errors import ManifestError

PathLikes = str | PathLike[str] | Sequence[str | PathLike[str]]
Item = BagRecord | Bag


@dataclass(frozen=True)
class Source:
    """The bags that can be used, in order, and what is wrong with the others. `path` stands for all in messages.

    `skipped` is ``(bag_id, reason)`` of what was left out before, when a store was packed.
    """

    items: tuple[Item, ...]
    problems: tuple[Problem, ...]
    path: Path
    skipped: tuple[tuple[str, str], ...] = ()


def scan_source(
    path: PathLikes,
    *,
    features: str | None = None,
    label: str = "label",
    bag_id: str = "bag_id",
    patient_id: str | None = "patient_id",
    labels: bool = True,
    dataset: str | None = None,
) -> Source:
    """Read the table, open the store, or list the files; no features are read.

    A table is one of instances or of files by its content; with `features`, a column of files, it is one of files.
    `dataset` is only compared with what a store was packed from.

    Raises:
        ManifestError: unreadable, a missing column, or bare files where labels are wanted.
        ReadError: a broken store.
        ConfigError: a store of other features than the options ask for.
    """
    if not isinstance(path, str | PathLike):
        return _bare([Path(p) for p in path], Path("the given files"), labels)
    path = Path(path)
    if is_store(path):
        store = open_store(path)
        options = {"label": label, "bag_id": bag_id, "patient_id": patient_id, "labels": labels, "dataset": dataset}
        records, found = stored_records(store, features=features, **options)  # type: ignore[arg-type]
        return Source(records, tuple(found), path, tuple(store.index.skipped))
    with os_errors(path):
        if path.is_dir():
            return _bare(_inside(path), path, labels)
    suffix = path.suffix.lower()
    if suffix in feature_suffixes() - TABLE_SUFFIXES:
        return _bare([path], path, labels)
    name = None if bag_id == "bag_id" else bag_id
    if features is None and looks_like_table(path, label=label, bag_id=name, patient_id=patient_id):
        bags, problems = scan_table(path, label=label, bag_id=name, patient_id=patient_id, require_labels=labels)
        return Source(tuple(bags), tuple(problems), path)
    manifest, problems = scan_manifest(
        path, features=features, label=label, bag_id=bag_id, patient_id=patient_id, require_labels=labels
    )
    return Source(manifest.records, tuple(problems), path)


def items_per_patient(items: Sequence[Item]) -> tuple[tuple[Item, ...], list[Problem]]:
    """One item a patient; patients whose bags disagree are left out and returned as problems."""
    stored = [i for i in items if isinstance(i, StoredRecord)]
    if stored:
        return stored_per_patient(stored)
    records = [i for i in items if isinstance(i, BagRecord)]
    if len(records) == len(items):
        return records_per_patient(records)
    merged: list[Item] = []
    problems = []
    by_group: dict[str, list[Bag]] = {}
    for bag in items:
        assert isinstance(bag, Bag)
        by_group.setdefault(bag.group, []).append(bag)
    for group, bags in by_group.items():
        labels = {bag.label: bag.bag_id for bag in reversed(bags)}
        if reason := bad_id(group):
            problems.append(Problem("bad-id", group, f"patient {group!r} cannot name a bag, {reason}"))
        elif len(labels) > 1:
            has = " but ".join(f"bag {i!r} has {x!r}" for x, i in labels.items())
            problems.append(Problem("label", group, f"the bags of patient {group!r} disagree: {has}"))
        else:
            merged.append(merge_bags(bags, group))
    return tuple(merged), problems


def _bare(files: Iterable[Path], path: Path, labels: bool) -> Source:
    if labels:
        raise ManifestError(
            f"{path}: feature files alone have no labels; give a manifest (CSV or parquet) with the columns "
            f"bag_id, label and features ({hints.flag('label')} names another column of labels); without labels "
            "there is only qgmil predict (labels=False in Python)"
        )
    return Source(Manifest.from_files(files).records, (), path)


def _inside(folder: Path) -> list[Path]:
    known = feature_suffixes()
    files = sorted(
        f for f in folder.iterdir() if f.suffix.lower() in known and not f.name.startswith(".") and not is_companion(f)
    )
    if (folder / FEATURES).exists():
        raise ManifestError(f"{folder}: is a store that was not finished (it has no {HEADER}); pack it again")
    if not files:
        raise ManifestError(f"{folder}: has no feature files (endings {', '.join(sorted(known))})")
    return files
