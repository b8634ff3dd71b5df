"""The bags of a data set, as the planning process and the workers open them, and the identity of what is in them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset
from qgmil.bags.readers import bag_files, split_part
from qgmil.bags.source import Item
from qgmil.bags.splits import Split
from qgmil.bags.store import StoredRecord
from qgmil.benchmark.spec import SourceSpec
from qgmil.datasets.registry import load_dataset
from qgmil.errors import ReadError
from qgmil.training.config import DataConfig, TrainConfig
from qgmil.training.run import IN_MEMORY_BYTES, open_training_bags

WHOLE_BYTES = 1 << 20  # up to here a file is hashed whole
SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True, eq=False)
class OpenSource:
    """Bags that are open.

    Args:
        bags: the labelled bags.
        identity: hash of the bags, their labels, patients and features, of how they are read, and of the name and the
            options of a named data set. It names the same data on every machine, wherever it lies.
        path: what was read.
        splits: the named data set's own splits; empty for a manifest.
    """

    bags: BagDataset
    identity: str
    path: Path
    splits: tuple[Split, ...] = ()


def describe_source(source: SourceSpec, draw: int | None = None) -> dict[str, Any]:
    """A source as JSON, for a worker: its own fields, and the draw of a data set that is drawn."""
    values = source.model_dump(mode="json", exclude_unset=True)
    if draw is not None:
        values["options"] = {**values.get("options", {}), "seed": draw + int(source.options.get("seed", 0))}
    return {k: v for k, v in values.items() if k not in ("draws", "official")}


def reading(source: SourceSpec | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `DataConfig` that a source sets."""
    values = source.model_dump(mode="json", exclude_unset=True) if isinstance(source, SourceSpec) else source
    return {k: v for k, v in values.items() if k in DataConfig.model_fields}


def open_source(source: Mapping[str, Any], *, in_memory: str = "auto", splits: bool = False) -> OpenSource:
    """Open the bags that `describe_source` describes.

    Args:
        in_memory: as in `TrainConfig`: whether bags are kept once they are read.
        splits: also the named data set's own splits.

    Raises:
        QGMILError: as `open_bags` and `load_dataset`.
    """
    if source.get("manifest"):
        path = Path(source["manifest"])
        config = TrainConfig.build({**reading(source), "in_memory": in_memory}, str(path))
        bags = open_training_bags(path, config)
        how = {k: v for k in ("format", "dataset", "bag_per") if (v := getattr(config, k)) is not None}
        return OpenSource(bags, _identity({"reading": how}, bags), path)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in source.get("options", {}).items()}
    named = load_dataset(source["named"], source.get("root"), **options)
    bags = named.bags
    if in_memory == "yes" or (in_memory == "auto" and bags.bytes_on_disk() <= IN_MEMORY_BYTES):
        bags = bags.in_memory()
    identity = _identity({"name": source["named"], "options": options}, bags)
    return OpenSource(bags, identity, named.path, named.splits if splits else ())


def _identity(head: Mapping[str, Any], bags: BagDataset) -> str:
    """Hash of the options and the bags: names, labels, patients, and the features or what is in their files."""
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for item in bags.items:
        digest.update(json.dumps([item.bag_id, item.label, item.group, *_content(item)]).encode())
    return digest.hexdigest()


def _content(item: Item) -> list[Any]:
    if isinstance(item, Bag):
        data = item.features.contiguous().view(torch.uint8).numpy().tobytes()
        return [list(item.features.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(item, StoredRecord):  # every byte of a store is in its identity
        return [item.store.header.identity, list(item.parts)]
    how = {k: v for k, v in item.reading().items() if v is not None}
    return [how, *(_file_content(path) for path in item.files)]


def _file_content(path: Path) -> list[Any]:
    """What a cell of the table points at: the part of a file, and the digest of each file behind it."""
    _, part = split_part(path)
    try:
        return [part, *(file_digest(file) for file in bag_files(path))]
    except (ReadError, OSError):  # said when the bag is read
        return [part, None]


def file_digest(path: Path) -> str:
    """Hash of the size and the content of a file, whatever its name: all of a small one, of a large one a part at its
    beginning, middle and end, so that thousands of slides take seconds. Features computed anew change all parts.

    Raises:
        OSError: it cannot be read.
    """
    stat = path.stat()
    return _digest(str(path.absolute()), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 18)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """`mtime_ns` is there for the cache: a file that was written again is read again."""
    digest = hashlib.sha256(f"{size}\0".encode())
    with Path(path).open("rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            for start in (0, (size - SAMPLE_BYTES) // 2, size - SAMPLE_BYTES):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
