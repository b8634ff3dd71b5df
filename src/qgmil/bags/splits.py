"""Splits by patient, stratified by label, with the validation part nested inside the training part."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qgmil.bags.manifest import BagRecord
from qgmil.bags.readers.base import listing
from qgmil.bags.stratify import GroupedBags, generator
from qgmil.errors import SplitError

SIDES = ("train", "val", "test")
SAME = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Split:
    """The bag ids of one training, validation and test part, in the order of the data set."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    name: str = "split"

    def sides(self) -> dict[str, tuple[str, ...]]:
        """The parts by name: train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}


def holdout(
    bag_ids: Sequence[str],
    labels: Sequence[str | None],
    groups: Sequence[str] | None = None,
    *,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    name: str = "holdout",
) -> Split:
    """One split into training, validation and test bags.

    Args:
        bag_ids, labels, groups: of each bag; `groups` are patients (None: every bag is its own).
        val, test: their shares of all bags of each class, as near as whole patients allow; 0 asks for none.
        seed: the same seed gives the same split.

    Raises:
        SplitError: unlabelled or repeated bags, shares out of range, or fewer patients than parts.
    """
    bags = GroupedBags.of(bag_ids, labels, groups)
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise SplitError(f"val={val} and test={test} must be at least 0 and add up to less than 1")
    parts = 1 + (val > 0) + (test > 0)
    if len(bags.unique) < parts:
        raise SplitError(f"{len(bags.unique)} patients cannot fill {parts} parts (train, val, test); add patients")
    rng = generator(seed, 1)
    everyone = frozenset(range(len(bags.unique)))
    in_test = bags.carve(everyone, test, rng, leave=parts - 1)
    in_val = bags.carve(everyone - in_test, val / (1 - test), rng, leave=1)
    return Split(*bags.parts(in_val, in_test), name)


def kfold(
    bag_ids: Sequence[str],
    labels: Sequence[str | None],
    groups: Sequence[str] | None = None,
    *,
    k: int = 5,
    val: float = 0.2,
    seed: int = 0,
) -> tuple[Split, ...]:
    """`k` splits named "fold_0" ...; every bag is in exactly one test part.

    Args:
        bag_ids, labels, groups: as for `holdout`.
        k: number of folds.
        val: share of each training part that becomes its validation part; 0 asks for none.
        seed: the same seed gives the same splits.

    Raises:
        SplitError: fewer patients than folds, overall or in one class; otherwise as for `holdout`.
    """
    bags = GroupedBags.of(bag_ids, labels, groups)
    if k < 2 or not 0 <= val < 1:
        raise SplitError(f"k={k} must be at least 2 and val={val} at least 0 and less than 1")
    bags.check_folds(k, needed=4 if k == 2 and val > 0 else k)
    everyone = frozenset(range(len(bags.unique)))
    splits = []
    for fold, in_test in enumerate(bags.folds(k, seed)):
        rng = generator(seed, 2, fold)
        in_val = bags.carve(everyone - in_test, val, rng, leave=1)
        splits.append(Split(*bags.parts(in_val, in_test), f"fold_{fold}"))
    return tuple(splits)


def from_column(
    records: Sequence[BagRecord],
    columns: str | Sequence[str],
    *,
    val: float = 0.2,
    seed: int = 0,
    check: bool = True,
) -> tuple[Split, ...]:
    """Read splits from columns of the manifest.

    Args:
        records: the bags, with the columns among their `extra`.
        columns: one column of train/val/test is one split; one column of fold numbers is as many splits as it has
            numbers, each fold being the test part once; several columns of train/val/test are one split each.
        val: share of the training part that becomes the validation part, by patient, where the column has none;
            0 asks for none.
        seed: of that nested validation part.
        check: False allows patients on two sides, to show what such a split does to the scores.

    Raises:
        SplitError: a column that is not there, other values, a part without bags, a patient on two sides, or
            (also with ``check=False``) bags merged by patient whose rows disagree.
    """
    names = [columns] if isinstance(columns, str) else list(columns)
    if not names or not records:
        raise SplitError("a split needs at least one column and one bag")
    for name in names:
        _check_column(records, name)
    if len(names) == 1 and all(re.fullmatch(r"[0-9]+", r.extra[names[0]]) for r in records):
        splits = _from_folds(records, names[0])
    else:
        splits = [_from_sides(records, name) for name in names]
    groups = {r.bag_id: r.group for r in records}
    labels = {r.bag_id: r.label for r in records}
    if check:
        for split in splits:
            check_split(split, groups)
    return tuple(with_val(split, labels, groups, val=val, seed=seed) for split in splits)


def with_val(
    split: Split, labels: Mapping[str, str | None], groups: Mapping[str, str], *, val: float, seed: int
) -> Split:
    """The split with a validation part, taken by patient from its training part if it has none and `val` is not 0.

    Raises:
        SplitError: one patient only in the training part, or unlabelled bags there.
    """
    if split.val or not val:
        return split
    train, held = _carve_val(split.train, labels, groups, val=val, seed=seed)
    return Split(train, held, split.test, split.name)


def _check_column(records: Sequence[BagRecord], column: str) -> None:
    """Refuse a column that some bag lacks, because there is none or because its patient's rows disagree."""
    clashes = [r for r in records if column in r.conflicts]
    if clashes:
        first = clashes[0]
        more = f" (and {len(clashes) - 1} more patients)" if len(clashes) > 1 else ""
        raise SplitError(
            f"column {column!r}: the rows of patient {first.group!r} have {listing(first.conflicts[column])}{more}; "
            "a patient's bags must stay together, or the scores are too good: give all rows of a patient one value"
        )
    lacking = next((r for r in records if column not in r.extra), None)
    if lacking is not None:
        raise SplitError(
            f"there is no column {column!r} to read a split from (bag {lacking.bag_id!r} has none); "
            f"the other columns are {listing(lacking.extra, 40)}"
        )


def _from_sides(records: Sequence[BagRecord], column: str) -> Split:
    parts: dict[str, list[str]] = {side: [] for side in SIDES}
    for record in records:
        value = record.extra.get(column, "")
        side = SAME.get(value.lower())
        if side is None:
            raise SplitError(
                f"column {column!r}: bag {record.bag_id!r} (line {record.line}) has {value!r}; "
                "expected train, val or test, or a fold number in every row"
            )
        parts[side].append(record.bag_id)
    for side in ("train", "test"):
        if not parts[side]:
            raise SplitError(f"column {column!r}: no bag is in {side}")
    return Split(tuple(parts["train"]), tuple(parts["val"]), tuple(parts["test"]), column)


def _from_folds(records: Sequence[BagRecord], column: str) -> list[Split]:
    fold_of = {r.bag_id: int(r.extra[column]) for r in records}
    folds = sorted(set(fold_of.values()))
    if len(folds) < 2:
        raise SplitError(f"column {column!r}: all bags are in fold {folds[0]}; at least two folds are needed")
    splits = []
    for fold in folds:
        test = tuple(i for i, f in fold_of.items() if f == fold)
        train = tuple(i for i, f in fold_of.items() if f != fold)
        splits.append(Split(train, (), test, f"fold_{fold}"))
    return splits


def _carve_val(
    train: Sequence[str], labels: Mapping[str, str | None], groups: Mapping[str, str], *, val: float, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide training bags into (train, val) by patient, for splits that come without a validation part."""
    bags = GroupedBags.of(train, [labels[i] for i in train], [groups[i] for i in train])
    if len(bags.unique) < 2:
        raise SplitError(f"the training part has {len(bags.unique)} patient; a validation part needs another")
    everyone = frozenset(range(len(bags.unique)))
    train_ids, val_ids, _ = bags.parts(bags.carve(everyone, val, generator(seed, 3), leave=1), frozenset())
    return train_ids, val_ids


def check_split(split: Split, groups: Mapping[str, str]) -> None:
    """Refuse a split that leaks.

    Args:
        split: the split.
        groups: the patient of every bag id of the data set.

    Raises:
        SplitError: unknown bags, a bag twice, or a patient on two sides (named with its bags and sides).
    """
    side_of: dict[str, str] = {}
    by_group: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for side, ids in split.sides().items():
        for bag_id in ids:
            if bag_id not in groups:
                raise SplitError(
                    f"split {split.name!r}: {side} names bag {bag_id!r}, which is not in the table of bags"
                )
            if bag_id in side_of:
                raise SplitError(f"split {split.name!r}: bag {bag_id!r} is in {side_of[bag_id]} and again in {side}")
            side_of[bag_id] = side
            by_group[groups[bag_id]][side].append(bag_id)
    leaks = {g: sides for g, sides in by_group.items() if len(sides) > 1}
    if leaks:
        group, sides = next(iter(leaks.items()))
        where = "; ".join(f"{side}: {listing(ids, 5)}" for side, ids in sides.items())
        more = f" (and {len(leaks) - 1} more patients)" if len(leaks) > 1 else ""
        raise SplitError(
            f"split {split.name!r}: patient {group!r} is on {len(sides)} sides ({where}){more}; a patient's bags must "
            "stay together, or the scores are too good"
        )
