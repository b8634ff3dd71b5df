"""`BagDataset`: bags by index, read when they are asked for, every one checked."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from qgmil.bags import hints
from qgmil.bags.bag import Bag, PackedBags, merge_bags
from qgmil.bags.manifest import BagRecord, Manifest
from qgmil.bags.problems import raise_problems, sorted_labels
from qgmil.bags.readers import (
    EmptyBagError,
    LockedFileError,
    MissingFileError,
    bag_file_shape,
    bag_files,
    check_bag_path,
    listing,
    read_bag_file,
)
from qgmil.bags.source import Item, PathLikes, Source, items_per_patient, scan_source
from qgmil.bags.store.reading import StoredRecord
from qgmil.errors import BagError, ConfigError, ManifestError, ReadError

SKIPPABLE = frozenset({"empty", "unlabelled", "missing"})
Skipped = tuple[tuple[str, str], ...]


class BagDataset(Dataset[Bag]):
    """Bags by index, from records of a manifest (read lazily) or from memory.

    Args:
        items: `BagRecord`s and `Bag`s.
        format: name of the reader for every file; None takes that of the record, else chooses by file.
        dataset: name of the array of features, for files with several; None takes that of the record.
        width: features of an instance; None takes that of the first bag.
        in_memory: keep every bag once read, shared with subsets. Workers of a DataLoader and unpickled copies keep
            none of what they read, or each would hold the whole data set.
        skipped: ``(bag_id, reason)`` of what was left out on the way here, for the record.

    Raises:
        ManifestError: no bags, or two with one id.

    ``dataset[i]`` raises `ReadError` for a broken file and `BagError` for a bag that is empty, not finite or of
    another width; both name the bag and the file.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        format: str | None = None,
        dataset: str | None = None,
        width: int | None = None,
        in_memory: bool = False,
        skipped: Skipped = (),
    ) -> None:
        if not items:
            raise ManifestError("there are no bags (left): check the table, and what was skipped")
        self._items = tuple(items)
        ids = self.bag_ids
        if len(set(ids)) < len(ids):
            raise ManifestError(f"bag ids are there twice: {listing(sorted({i for i in ids if ids.count(i) > 1}))}")
        self._options = {"format": format, "dataset": dataset}
        self._width = width
        self._cache: dict[str, Bag] | None = {} if in_memory else None
        self.skipped = tuple(skipped)

    @classmethod
    def from_bags(cls, bags: Sequence[Bag], *, width: int | None = None, skipped: Skipped = ()) -> BagDataset:
        """A data set of bags that are in memory already."""
        return cls(bags, width=width, skipped=skipped)

    @classmethod
    def from_manifest(cls, manifest: Manifest, **options: Any) -> BagDataset:
        """A data set of the manifest's bags; options as for the class."""
        return cls(manifest.records, **options)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Bag:
        item = self._items[index]
        if self._cache is not None and item.bag_id in self._cache:
            return self._cache[item.bag_id]
        bag = self._checked(item)
        if self._cache is not None and (isinstance(item, Bag) or get_worker_info() is None):
            self._cache[item.bag_id] = bag
        return bag

    def __getstate__(self) -> dict[str, Any]:
        # Workers get the recipe, not the gigabytes, and do not gather them either: bags in memory cost nothing more.
        free = self._cache is not None and all(isinstance(item, Bag) for item in self._items)
        return {**self.__dict__, "_cache": {} if free else None}

    @property
    def bag_ids(self) -> tuple[str, ...]:
        """The ids, in order."""
        return tuple(item.bag_id for item in self._items)

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The labels, in order; None where unknown."""
        return tuple(item.label for item in self._items)

    @property
    def groups(self) -> tuple[str, ...]:
        """The patient of each bag, or its own id."""
        return tuple(item.group for item in self._items)

    @property
    def classes(self) -> tuple[str, ...]:
        """The different labels, sorted (by number where all are integers)."""
        return sorted_labels(self.labels)

    @property
    def items(self) -> tuple[Item, ...]:
        """The records or bags behind the data set, in order."""
        return self._items

    @property
    def width(self) -> int:
        """Features of an instance: as given, else those of the first bag (its file's header is read once)."""
        if self._width is None:
            item = self._items[0]
            self._width = item.width if isinstance(item, Bag) else _record_shape(item, **self._options)[1]
        return self._width

    @property
    def keeps_in_memory(self) -> bool:
        """Whether bags stay in memory once they were read."""
        return self._cache is not None

    def instances(self, index: int) -> int:
        """Instances of a bag, without reading its features where its layout allows.

        Raises:
            ReadError: as for reading the bag.
        """
        item = self._items[index]
        if isinstance(item, Bag):
            return len(item)
        if isinstance(item, StoredRecord):
            return sum(int(item.store.offsets[i + 1] - item.store.offsets[i]) for i in item.parts)
        return sum(bag_file_shape(path, **item.reading(**self._options))[0] for path in item.files)

    def will_need(self, indices: Sequence[int], rows: int | None = None) -> None:
        """Say which bags come next, and how many rows of them (None: all); it changes nothing that is read.

        Those of a store start to come from the disk, unless too few of their rows are wanted.
        """
        for index in indices:
            item = self._items[index]
            if isinstance(item, StoredRecord):
                item.store.will_need(item.parts, rows)

    def subset(self, indices: Sequence[int] | Sequence[str]) -> BagDataset:
        """The bags at these positions, or of these ids, in that order; an in-memory cache is shared.

        Raises:
            ManifestError: an unknown id, an index out of range, or nothing asked for.
        """
        position = {bag_id: i for i, bag_id in enumerate(self.bag_ids)}
        chosen = []
        for index in indices:
            at = position.get(index) if isinstance(index, str) else int(index)
            if at is None or not -len(self) <= at < len(self):
                raise ManifestError(f"there is no bag {index!r} among these {len(self)}")
            chosen.append(self._items[at])
        other = BagDataset(chosen, width=self._width, skipped=self.skipped, **self._options)  # type: ignore[arg-type]
        other._cache = self._cache
        return other

    def bytes_on_disk(self) -> int:
        """Size of all feature files; bags in memory count nothing."""
        files = {path for item in self._items if isinstance(item, BagRecord) for path in item.files}
        return sum(_size(file) for file in {file for path in files for file in _behind(path)})

    def in_memory(self) -> BagDataset:
        """The same bags, each read once and then kept."""
        other = self.subset(range(len(self)))
        other._cache = {} if self._cache is None else self._cache
        return other

    def _checked(self, item: Item) -> Bag:
        if isinstance(item, Bag):
            item.check_finite()
            _check_width(item, self.width, "")
            return item
        return read_record(item, width=self.width, **self._options)


def read_record(
    record: BagRecord, *, width: int | None = None, format: str | None = None, dataset: str | None = None
) -> Bag:
    """Read and check the files of one bag, and merge them. What comes from a store was found finite on packing.

    `format` and `dataset` win over those that the record remembers.

    Raises:
        ReadError: a file is missing or broken.
        BagError: empty, not finite, or not `width` wide. Both name the bag and the file.
    """
    if isinstance(record, StoredRecord):
        bag = record.read()
        _check_width(bag, width, f" [store {record.store.path}]")
        return bag
    parts: list[Bag] = []
    for path in record.files:
        try:
            content = read_bag_file(path, **record.reading(format, dataset))
        except (ReadError, EmptyBagError) as error:
            raise type(error)(f"bag {record.bag_id!r}: {error}") from error
        part = Bag(
            features=content.features,
            label=record.label,
            bag_id=record.bag_id,
            patient_id=record.patient_id,
            coords=content.coords,
            coord_unit=content.coord_unit,
            tile_size=content.tile_size,
            mpp=content.mpp,
            magnification=content.magnification,
            tile_mpp=content.tile_mpp,
            instance_labels=content.instance_labels,
            instance_ids=content.instance_ids,
        )
        try:
            part.check_finite()
        except BagError as error:
            raise BagError(f"{error} [file {path}]") from error
        _check_width(part, width if width is not None else parts[0].width if parts else None, f" [file {path}]")
        parts.append(part)
    return merge_bags(parts, record.bag_id)


def open_bags(
    path: PathLikes,
    *,
    features: str | None = None,
    label: str = "label",
    bag_id: str = "bag_id",
    patient_id: str | None = "patient_id",
    format: str | None = None,
    dataset: str | None = None,
    bag_per: Literal["bag", "patient"] = "bag",
    skip: Collection[str] = (),
    labels: bool = True,
    width: int | None = None,
    in_memory: bool = False,
) -> BagDataset:
    """Open whatever holds bags.

    Args:
        path: a manifest (CSV or parquet), a long table of instances, a store made by `qgmil pack`, or, with
            ``labels=False``, a feature file, several, or a folder of them.
        features, label, bag_id, patient_id: names of columns, as for `Manifest.read`.
        format, dataset: how feature files are read, as for `read_bag_file`; a store has been read already.
        bag_per: "patient" merges all bags of a patient into one.
        skip: any of "empty", "unlabelled", "missing": such rows are left out and noted in ``.skipped`` (for a row of
            several files, only its empty files are). "missing" includes rows whose file cell is blank. Otherwise they
            are errors.
        labels: False where labels are not needed (prediction): then the columns of labels and of patients may also
            be missing; every bag is then a patient of its own.
        width, in_memory: as for `BagDataset`.

    Raises:
        ConfigError: an unknown `skip` or `bag_per`.
        ManifestError: a table that cannot be used, unlabelled bags, or patients with several labels.
        ReadError: missing files (all are listed).
    """
    unknown = set(skip) - SKIPPABLE
    if isinstance(skip, str) or unknown:
        raise ConfigError(f"--skip (skip in Python) is {skip!r}; it must be a list of some of {sorted(SKIPPABLE)}")
    if bag_per not in ("bag", "patient"):
        raise ConfigError(f"--bag-per (bag_per in Python) is {bag_per!r}; it must be 'bag' or 'patient'")
    columns = {"features": features, "label": label, "bag_id": bag_id, "patient_id": patient_id, "dataset": dataset}
    source = scan_source(path, **columns, labels=labels)  # type: ignore[arg-type]
    blank = [p for p in source.problems if p.kind == "missing" and "missing" in skip]
    raise_problems(source.path, [p for p in source.problems if p not in blank])
    items, skipped = _leave_out(source, frozenset(skip), labels, {"format": format, "dataset": dataset})
    skipped = [*source.skipped, *((str(p.bag_id), "missing: it names no feature file") for p in blank), *skipped]
    if bag_per == "patient":
        items, problems = items_per_patient(items)
        raise_problems(source.path, problems)
    if not items:
        raise ManifestError(f"{source.path}: no bags are left, all {len(skipped)} were skipped: {skipped[0][1]}")
    return BagDataset(items, format=format, dataset=dataset, width=width, in_memory=in_memory, skipped=tuple(skipped))


def sample_instances(bag: Bag, k: int, *, seed: int, epoch: int) -> Bag:
    """At most `k` instances, drawn without replacement and kept in the order of their rows.

    The draw depends on (seed, epoch, bag id) alone: it is the same in every process and on every platform.

    Raises:
        ConfigError: k below 1.
    """
    if k < 1:
        raise ConfigError(f"cannot sample {k} instances of bag {bag.bag_id!r}; ask for at least 1")
    if len(bag) <= k:
        return bag
    digest = hashlib.blake2b(f"{seed}\0{epoch}\0{bag.bag_id}".encode(), digest_size=16).digest()
    # Raw bits of PCG64 are stable across numpy's versions; its shuffles are not promised to be.
    keys = np.random.PCG64(int.from_bytes(digest, "little")).random_raw(len(bag))
    rows = np.sort(np.argsort(keys, kind="stable")[:k])
    return bag.take(torch.from_numpy(rows.astype(np.int64)))


def collate(bags: Sequence[Bag], class_index: Mapping[str, int] | None = None) -> PackedBags:
    """Pack bags into a batch, with labels ``(B,)`` as class indices (long) where `class_index` is given.

    Raises:
        BagError: a bag without a label, or with one that `class_index` does not have.
    """
    if class_index is None:
        return PackedBags.from_bags(bags)
    indices = []
    for bag in bags:
        if bag.label is None or bag.label not in class_index:
            raise BagError(f"bag {bag.bag_id!r} has label {bag.label!r}; the classes are {listing(class_index)}")
        indices.append(class_index[bag.label])
    labels: Tensor = torch.tensor(indices, dtype=torch.long)
    return PackedBags.from_bags(bags, labels)


def _leave_out(
    source: Source, skip: frozenset[str], labels: bool, options: Mapping[str, str | None]
) -> tuple[tuple[Item, ...], list[tuple[str, str]]]:
    """Drop what may be skipped and note it; raise for what may not."""
    kept: list[Item] = []
    skipped: list[tuple[str, str]] = []
    unlabelled: list[str] = []
    missing: list[str] = []
    for item in source.items:
        if labels and item.label is None:
            if "unlabelled" in skip:
                skipped.append((item.bag_id, "unlabelled: it has no label"))
                continue
            unlabelled.append(item.bag_id)
        if isinstance(item, BagRecord) and not isinstance(item, StoredRecord):  # nothing in a store is missing or empty
            problem = _first_missing(item)
            if problem is not None and "missing" in skip:
                skipped.append((item.bag_id, f"missing: {problem}"))
                continue
            if problem is not None:
                missing.append(f"bag {item.bag_id!r}: {problem}")
            elif "empty" in skip:
                files = _with_instances(item, skipped, options)
                if not files:
                    continue
                item = replace(item, files=files)
        kept.append(item)
    if unlabelled:
        raise ManifestError(
            f"{source.path}: {len(unlabelled)} of {len(source.items)} bags have no label: {listing(unlabelled)}; "
            f"fill them in, or {hints.skip('unlabelled')}"
        )
    if missing:
        more = f"\n  and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise MissingFileError(f"{source.path}: " + "\n  ".join(missing[:10]) + more)
    return tuple(kept), skipped


def _first_missing(record: BagRecord) -> str | None:
    for path in record.files:
        try:
            check_bag_path(path)
        except (MissingFileError, LockedFileError) as error:
            return str(error)
        except ReadError:
            return None  # broken rather than missing: said when the bag is read
    return None


def _with_instances(
    record: BagRecord, skipped: list[tuple[str, str]], options: Mapping[str, str | None]
) -> tuple[Path, ...]:
    shapes = [bag_file_shape(path, **record.reading(**options)) for path in record.files]
    files = tuple(path for path, (rows, width) in zip(record.files, shapes, strict=True) if rows and width)
    if len(files) < len(record.files):
        empty = listing(p.name for p in record.files if p not in files)
        what = "it has no instances" if not files else f"its other {len(files)} files are used"
        skipped.append((record.bag_id, f"empty: {empty}; {what}"))
    return files


def _behind(path: Path) -> tuple[Path, ...]:
    try:
        return bag_files(path)
    except (ReadError, OSError):  # said when the bag is read
        return ()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # said when the bag is read
        return 0


def _record_shape(record: BagRecord, **options: str | None) -> tuple[int, int]:
    if isinstance(record, StoredRecord):
        return len(record.store), record.store.header.width
    try:
        rows, width = bag_file_shape(record.files[0], **record.reading(**options))
    except ReadError as error:
        raise type(error)(f"bag {record.bag_id!r}: {error}") from error
    if rows == 0 or width == 0:
        raise EmptyBagError(f"bag {record.bag_id!r}: {record.files[0]}: is empty; {hints.skip('empty')}")
    return rows, width


def _check_width(bag: Bag, width: int | None, where: str) -> None:
    if width is not None and bag.width != width:
        raise BagError(
            f"bag {bag.bag_id!r} has {bag.width} features an instance where {width} are expected; all bags must come "
            f"from the same encoder{where}"
        )
