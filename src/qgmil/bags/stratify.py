"""The machinery of splits: patients as a table of bags by class, divided without ever dividing a patient."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qgmil.bags import hints
from qgmil.bags.problems import sorted_labels
from qgmil.bags.readers.base import listing
from qgmil.errors import SplitError

TRIES = 20
Ids = tuple[str, ...]


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """Random numbers of their own for every use of a seed."""
    if seed < 0:
        raise SplitError(f"seed={seed} must be at least 0")
    return np.random.default_rng([seed, *purpose])


@dataclass(frozen=True)
class GroupedBags:
    """Bags with their patients as numbers, and the table of bags by patient and class."""

    ids: tuple[str, ...]
    group_of: np.ndarray  # (bags,) position in `unique`
    class_of: np.ndarray  # (bags,) position in `classes`
    unique: tuple[str, ...]
    classes: tuple[str, ...]
    counts: np.ndarray  # (patients, classes) number of bags

    @classmethod
    def of(cls, bag_ids: Sequence[str], labels: Sequence[str | None], groups: Sequence[str] | None) -> GroupedBags:
        groups = bag_ids if groups is None else groups
        if not len(bag_ids) == len(labels) == len(groups):
            raise SplitError(f"{len(bag_ids)} bag ids, {len(labels)} labels and {len(groups)} groups do not match")
        if not bag_ids:
            raise SplitError("there are no bags to split")
        if twice := [i for i, n in Counter(bag_ids).items() if n > 1]:
            raise SplitError(f"bag {listing(twice)} is there more than once; bag ids must be unique")
        if blank := [i for i, label in zip(bag_ids, labels, strict=True) if label is None]:
            raise SplitError(
                f"bag {listing(blank)} has no label, so it cannot be stratified; "
                f"fill it in, or {hints.skip('unlabelled')}"
            )
        unique, classes = tuple(dict.fromkeys(groups)), sorted_labels(labels)
        group_at = {g: i for i, g in enumerate(unique)}
        class_at: dict[str | None, int] = {c: i for i, c in enumerate(classes)}
        group_of = np.array([group_at[g] for g in groups])
        class_of = np.array([class_at[label] for label in labels])
        counts = np.zeros((len(unique), len(classes)), dtype=np.int64)
        np.add.at(counts, (group_of, class_of), 1)
        return cls(tuple(bag_ids), group_of, class_of, unique, classes, counts)

    def check_folds(self, k: int, needed: int) -> None:
        """Refuse folds that would have nobody, or nobody of some class, to test on."""
        if len(self.unique) < needed:
            raise SplitError(
                f"{len(self.unique)} patients cannot fill {k} folds; use fewer folds (--folds), or val=0 in Python"
            )
        patients = (self.counts > 0).sum(axis=0)
        rarest = int(patients.argmin())
        if patients[rarest] < k:
            few = int(patients[rarest])
            remedy = f"use at most {few} folds" if few > 1 else "leave the class out or add patients"
            raise SplitError(
                f"class {self.classes[rarest]!r} has {few} patients ({int(self.counts[:, rarest].sum())} bags), fewer "
                f"than the {k} folds; {remedy}"
            )

    def folds(self, k: int, seed: int) -> list[frozenset[int]]:
        """The patients of each test part. Each is non-empty, with every class where patients allow it."""
        from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # late: takes most of a second

        alone = len(self.unique) == len(self.ids)
        best: tuple[int, list[frozenset[int]]] | None = None
        for attempt in range(TRIES):
            state = int(generator(seed, 0, attempt).integers(2**31))
            maker = StratifiedKFold if alone else StratifiedGroupKFold
            splitter = maker(n_splits=k, shuffle=True, random_state=state)
            parts = splitter.split(np.zeros(len(self.ids)), self.class_of, None if alone else self.group_of)
            tests = [frozenset(self.group_of[test].tolist()) for _, test in parts]
            lacking = sum(int((self.counts[sorted(t)].sum(axis=0) == 0).sum()) for t in tests if t)
            if all(tests) and (best is None or lacking < best[0]):
                best = lacking, tests
            if best is not None and best[0] == 0:
                break
        if best is None:
            raise SplitError(f"{len(self.unique)} patients with {len(self.ids)} bags do not fill {k} folds; use fewer")
        return best[1]

    def carve(self, available: frozenset[int], share: float, rng: np.random.Generator, *, leave: int) -> frozenset[int]:
        """Patients that hold about `share` of the bags of each class.

        Random orders are filled greedily while that brings the shares nearer, and the nearest result is kept. At
        least one patient is taken and `leave` remain; of each class one is taken if another remains, never the last.
        """
        if share == 0:
            return frozenset()
        totals = self.counts[sorted(available)].sum(axis=0)
        scale = np.maximum(totals, 1)
        best: tuple[float, set[int]] = (math.inf, set())
        for _ in range(TRIES):
            order = rng.permutation(sorted(available)).tolist()
            taken = self._fill(order, share, totals, scale)
            self._cover_classes(order, taken)
            self._leave_classes(order, taken)
            loss = float(np.square(self.counts[sorted(taken)].sum(axis=0) / scale - share).sum()) if taken else math.inf
            if loss < best[0] - 1e-12 and len(taken) <= len(available) - leave:
                best = loss, taken
            # Half a bag of each class: no order does better. A thousandth: none needs to.
            if best[0] <= np.square(np.maximum(0.5 / scale, 0.001)).sum() + 1e-12:
                break
        if not best[1]:
            raise SplitError(
                f"{len(available)} patients do not allow a part with {share:.0%} of the bags without "
                "taking a class out of training; add patients, or ask for fewer parts"
            )
        return frozenset(best[1])

    def _fill(self, order: list[int], share: float, totals: np.ndarray, scale: np.ndarray) -> set[int]:
        taken: set[int] = set()
        now = np.zeros(len(self.classes))
        known = totals > 0
        for group in order:
            then = now + self.counts[group] / scale
            if np.square(then - share)[known].sum() < np.square(now - share)[known].sum() - 1e-12:
                taken.add(group)
                now = then
        return taken

    def _cover_classes(self, order: list[int], taken: set[int]) -> None:
        """Add the smallest patient of each class that the part lacks, where another remains."""
        for c in range(len(self.classes)):
            with_class = [g for g in order if self.counts[g, c]]
            if len(with_class) > 1 and not taken.intersection(with_class):
                taken.add(min(with_class, key=lambda g: int(self.counts[g].sum())))
        if not taken:
            taken.add(min(order, key=lambda g: int(self.counts[g].sum())))

    def _leave_classes(self, order: list[int], taken: set[int]) -> None:
        """Give back a patient of each class that would be missing from training."""
        for c in range(len(self.classes)):
            with_class = [g for g in order if self.counts[g, c]]
            if with_class and taken.issuperset(with_class):
                taken.discard(min(with_class, key=lambda g: int(self.counts[g].sum())))

    def parts(self, in_val: frozenset[int], in_test: frozenset[int]) -> tuple[Ids, Ids, Ids]:
        """The bag ids (train, val, test) whose validation and test patients these are."""
        side = [1 if g in in_val else 2 if g in in_test else 0 for g in self.group_of.tolist()]
        train, val, test = (tuple(i for i, s in zip(self.ids, side, strict=True) if s == part) for part in range(3))
        return train, val, test
