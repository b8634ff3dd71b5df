"""Scores that a file gives to the instances of a bag, and how they come into the order of that bag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qgmil.bags.bag import Bag
from qgmil.errors import BagError
from qgmil.evaluation.checks import FloatArray


@dataclass(frozen=True, eq=False)
class GivenScores:
    """The scores of one bag, as they stand in a file.

    Args:
        bag_id: name of the bag.
        values: ``(N,)``, in the order of the file.
        path: the file.
        instances: which instance each is of: its name in the bag, or its row counted from 0; None where it is not said.
        coords: ``(N, 2)``, where the file has them.
    """

    bag_id: str
    values: FloatArray
    path: Path
    instances: tuple[str, ...] | None = None
    coords: FloatArray | None = None

    def of(self, bag: Bag) -> FloatArray:
        """The scores ``(N,)`` in the order of the instances of the bag.

        By `instances` where there are any. Else by coordinates, where both have them: those of a bag in level-0 pixels
        must be the file's; in another unit they may differ, and the order of the file is then the bag's.

        Raises:
            BagError: another number of instances, or other ones.
        """
        if len(self.values) != len(bag):
            raise BagError(
                f"{self.path}: bag {self.bag_id!r} has {len(self.values)} scores but {len(bag)} instances in the "
                "manifest's file; the scores must be of the same instances"
            )
        if self.instances is not None:
            return self.values[self._by_name(bag, self.instances)]
        if self.coords is not None and bag.coords is not None:
            return self.values[self._by_place(bag, self.coords)]
        return self.values

    def _by_name(self, bag: Bag, instances: Sequence[str]) -> NDArray[np.int64]:
        position = {name: i for i, name in enumerate(instances)}
        if len(position) < len(instances):
            twice = next(name for i, name in enumerate(instances) if position[name] != i)
            raise BagError(f"{self.path}: bag {self.bag_id!r} has instance {twice!r} twice; keep one score of each")
        ids = () if bag.instance_ids is None else tuple(bag.instance_ids)
        rows = tuple(str(i) for i in range(len(bag)))
        for wanted in (ids, rows):
            if set(wanted) == set(position):  # as many as instances, so that none of them stands there twice
                return np.array([position[name] for name in wanted])
        odd = next((name for name in instances if name not in {*ids, *rows}), instances[0])
        raise BagError(
            f"{self.path}: bag {self.bag_id!r}: instance {odd!r} is not one of the bag's; name its instances as the "
            f"bag's file does, or by their rows, 0 to {len(bag) - 1}, or leave the names out if the order is the bag's"
        )

    def _by_place(self, bag: Bag, coords: FloatArray) -> NDArray[np.int64]:
        assert bag.coords is not None
        # files differ in the type of coordinates; float32 is exact for pixels up to 2^24
        here, there = bag.coords.numpy().astype(np.float32), coords.astype(np.float32)
        same = np.arange(len(bag))
        if np.array_equal(here, there):
            return same
        order, theirs = np.lexsort(here.T), np.lexsort(there.T)
        if not np.array_equal(here[order], there[theirs]):
            if bag.coord_unit != "px":
                return same
            row = int(np.flatnonzero((here != there).any(axis=1))[0])
            raise BagError(
                f"{self.path}: bag {self.bag_id!r}: its coordinates are not those of the bag (instance {row}: "
                f"{there[row].tolist()}, in the manifest's file {here[row].tolist()}); give scores of the same "
                "instances, or leave the coordinates out if they are, in the same order"
            )
        if len(np.unique(here, axis=0)) < len(bag):
            raise BagError(
                f"{self.path}: bag {self.bag_id!r}: is in another order than the bag, and several instances have the "
                "same coordinates; give the scores in the order of the bag"
            )
        rows = np.empty(len(bag), dtype=np.int64)
        rows[order] = theirs
        return rows
