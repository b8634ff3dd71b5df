"""``index.json``: one list a column, one entry a bag; a column that no bag has is null."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from qgmil.bags.bag import COORD_UNITS, TILE_FACTS
from qgmil.bags.problems import bad_id, bad_label
from qgmil.bags.readers.base import guarded
from qgmil.bags.store.layout import AGAIN, INDEX, read_member
from qgmil.errors import ReadError

COORD_KINDS = ("int64", "float64")
Texts = list[str | None]
Numbers = list[float | None]


@dataclass
class Index:
    """What is known of each bag beside its numbers.

    Args:
        bag_ids: unique names.
        labels, patient_ids: as of the manifest; None where unknown.
        columns: the options that the manifest was read with ("bag_id", "label", "patient_id", "features", "dataset"),
            so that they open the store as well.
        extra: every other column of the manifest.
        conflicts: position of a bag -> columns on which the rows merged into it disagree, with the values.
        merged: position of a bag -> ids of the rows merged into it.
        coords: "int64", "float64" or None: how the bag's coordinates are stored, if it has any.
        coord_unit: as of `Bag`.
        tile_facts: what the files knew of their tiles, by its name in `TILE_FACTS`.
        instance_labels: 1 where the bag has them.
        instance_ids: bytes of the bag's names in their file; 0: it has none.
        skipped: ``(bag_id, reason)`` of what was left out on packing.
    """

    bag_ids: list[str] = field(default_factory=list)
    labels: Texts = field(default_factory=list)
    patient_ids: Texts = field(default_factory=list)
    columns: dict[str, str | None] = field(default_factory=dict)
    extra: dict[str, Texts] = field(default_factory=dict)
    conflicts: dict[int, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    merged: dict[int, tuple[str, ...]] = field(default_factory=dict)
    coords: Texts = field(default_factory=list)
    coord_unit: Texts = field(default_factory=list)
    tile_facts: dict[str, Numbers] = field(default_factory=lambda: {name: [] for name in TILE_FACTS})
    instance_labels: list[int] = field(default_factory=list)
    instance_ids: list[int] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> bytes:
        """The content of ``index.json``."""
        said = {f.name: _brief(getattr(self, f.name)) for f in fields(self)}
        for table in ("extra", "tile_facts"):
            said[table] = {name: _brief(values) for name, values in getattr(self, table).items()}
        return json.dumps(said, allow_nan=False, separators=(",", ":")).encode()


def read_index(folder: Path, bags: int) -> Index:
    """Read and check ``index.json`` of a store of that many bags.

    Raises:
        ReadError: other types or lengths, ids twice, or ids and labels that no manifest may have.
    """
    path = folder / INDEX
    with guarded(path, "the index of a store"):
        return _read(path, json.loads(read_member(folder, INDEX)), bags)


def _read(path: Path, said: Any, bags: int) -> Index:
    if not isinstance(said, dict):
        raise ReadError(f"{path}: holds a {type(said).__name__}; {AGAIN}")
    column = _Columns(path, said, bags)
    index = Index(
        bag_ids=column("bag_ids", (str,)),
        labels=column("labels", (str, None)),
        patient_ids=column("patient_ids", (str, None)),
        columns=_texts(path, "columns", said.get("columns")),
        extra={c: column(c, (str, None), among="extra") for c in _table(path, "extra", said.get("extra"))},
        conflicts={
            at: {c: _names(path, "conflicts", v) for c, v in _table(path, "conflicts", found).items()}
            for at, found in _by_position(path, "conflicts", said.get("conflicts"), bags).items()
        },
        merged={
            at: _names(path, "merged", v) for at, v in _by_position(path, "merged", said.get("merged"), bags).items()
        },
        coords=column("coords", (str, None), lambda v: v in COORD_KINDS),
        coord_unit=column("coord_unit", (str, None), lambda v: v in COORD_UNITS),
        instance_labels=column("instance_labels", (int, None), lambda v: v in (0, 1)),
        instance_ids=column("instance_ids", (int, None), lambda v: 0 <= v < 2**62),
        skipped=_skipped(path, said.get("skipped")),
        tile_facts={n: column(n, (int, float, None), _positive, among="tile_facts") for n in TILE_FACTS},
    )
    _check_names(path, index)
    return index


@dataclass(frozen=True)
class _Columns:
    """Takes one list a time out of the index, of `bags` entries of the given types."""

    path: Path
    said: dict[str, Any]
    bags: int

    def __call__(
        self,
        name: str,
        types: tuple[type | None, ...],
        allowed: Callable[[Any], bool] | None = None,
        among: str | None = None,
    ) -> list[Any]:
        values = (self.said if among is None else _table(self.path, among, self.said.get(among))).get(name)
        if values is None and None in types:
            return [None] * self.bags
        if not isinstance(values, list) or len(values) != self.bags:
            what = f"{len(values)} entries" if isinstance(values, list) else f"a {type(values).__name__}"
            raise ReadError(f"{self.path}: column {name!r} has {what} for {self.bags} bags; {AGAIN}")
        known = {type(None) if t is None else t for t in types}
        if set(map(type, values)) - known:
            at = next(i for i, v in enumerate(values) if type(v) not in known)
            raise ReadError(f"{self.path}: column {name!r} holds a {type(values[at]).__name__} for bag {at}; {AGAIN}")
        if allowed is not None:
            wrong = next((v for v in set(values) - {None} if not allowed(v)), None)
            if wrong is not None:
                raise ReadError(f"{self.path}: column {name!r} holds {str(wrong)[:80]!r}; {AGAIN}")
        return values


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _check_names(path: Path, index: Index) -> None:
    """The rules of a manifest: files are named after bags, and tables are headed by classes."""
    if len(set(index.bag_ids)) < len(index.bag_ids):
        raise ReadError(f"{path}: two bags have one id; {AGAIN}")
    if not _plainly_good(index.bag_ids):
        for name in index.bag_ids:
            if reason := bad_id(name):
                raise ReadError(f"{path}: bag id {name!r} cannot be used, {reason}; {AGAIN}")
    for label in set(index.labels):
        if reason := bad_label(label):
            raise ReadError(f"{path}: the label {label!r} cannot be used, {reason}; {AGAIN}")


def _plainly_good(ids: Sequence[str]) -> bool:
    """Whether ids pass `bad_id` at a glance: looking at every character of thousands takes longer than the rest."""
    joined = " ".join(ids)
    plain = joined.isascii() and joined.isprintable() and not any(c in joined for c in ("/", "\\", ".."))
    return plain and "." not in ids and all(map(str.strip, ids))


def _table(path: Path, name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ReadError(f"{path}: {name!r} holds a {type(value).__name__}; {AGAIN}")
    return value


def _texts(path: Path, name: str, value: Any) -> dict[str, str | None]:
    table = _table(path, name, value)
    if not all(isinstance(v, str | None) for v in table.values()):
        raise ReadError(f"{path}: {name!r} holds something that is no text; {AGAIN}")
    return table


def _by_position(path: Path, name: str, value: Any, bags: int) -> dict[int, Any]:
    """A table by the number of a bag, of the few bags that have something to say."""
    table = _table(path, name, value)
    if not all(at.isascii() and at.isdigit() and len(at) < 18 and int(at) < bags for at in table):
        raise ReadError(f"{path}: {name!r} names a bag that is not there; {AGAIN}")
    return {int(at): found for at, found in table.items()}


def _names(path: Path, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ReadError(f"{path}: {name!r} should hold lists of texts; {AGAIN}")
    return tuple(value)


def _skipped(path: Path, value: Any) -> list[tuple[str, str]]:
    rows = [] if value is None else value
    if not isinstance(rows, list) or not all(
        isinstance(r, list) and len(r) == 2 and all(isinstance(x, str) for x in r) for r in rows
    ):
        raise ReadError(f"{path}: 'skipped' cannot be understood; {AGAIN}")
    return [(bag, reason) for bag, reason in rows]


def _brief(value: Any) -> Any:
    """None for a column in which nothing is said."""
    return None if isinstance(value, list) and not any(v is not None and v != 0 for v in value) else value


def as_counts(values: Sequence[int | None]) -> np.ndarray:
    """A column of counts ``(B,)`` int64, 0 where the store says nothing."""
    return np.array([v or 0 for v in values], dtype=np.int64)
