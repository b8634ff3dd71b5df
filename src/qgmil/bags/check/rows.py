"""The same instances in bags of different patients: found by hashes of rows, in memory that does not grow for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qgmil.bags.check.facts import ALL_ROWS

MOST_HASHES = 4_000_000  # kept at a time: 32 MB
COMMON = 5  # a row of more patients is no copy: it is background, which looks the same everywhere


@dataclass(frozen=True)
class Shared:
    """Two bags of different patients with `rows` instances in common, out of `of` of the smaller bag."""

    first: int
    second: int
    rows: int
    of: int


class RowIndex:
    """Hashes of the different rows of every bag.

    When there are too many, only those below half of the present bound stay, in every bag alike: a row that two bags
    share is kept or dropped in both, so the share of rows in common is still estimated without bias.

    Args:
        most: hashes to keep at a time.
    """

    def __init__(self, most: int = MOST_HASHES) -> None:
        self.bound = ALL_ROWS
        self._most = most
        self._hashes: list[np.ndarray] = []
        self._bags: list[int] = []
        self._distinct: dict[int, int] = {}
        self._kept = 0

    def add(self, bag: int, hashes: np.ndarray, distinct: int) -> None:
        """Take in the sorted hashes of one file of a bag, of which `distinct` rows are different."""
        kept = hashes[hashes <= np.uint64(self.bound)]
        self._hashes.append(kept)
        self._bags.append(bag)
        self._distinct[bag] = self._distinct.get(bag, 0) + distinct
        self._kept += len(kept)
        while self._kept > self._most:
            self.bound //= 2
            self._hashes = [h[h <= np.uint64(self.bound)].copy() for h in self._hashes]
            self._kept = sum(len(h) for h in self._hashes)

    @property
    def sampled(self) -> bool:
        """Whether some rows were dropped, so that counts are estimates."""
        return self.bound < ALL_ROWS

    def shared(self, group: Callable[[int], str]) -> tuple[list[Shared], list[int]]:
        """Pairs of bags of different groups (patients) with rows in common, most first, and the bags with rows that
        more than `COMMON` groups have."""
        if not self._kept:
            return [], []
        hashes = np.concatenate(self._hashes)
        bags = np.repeat(np.array(self._bags), [len(h) for h in self._hashes])
        order = np.lexsort((bags, hashes))
        hashes, bags = hashes[order], bags[order]
        pairs: Counter[tuple[int, int]] = Counter()
        common: set[int] = set()
        for run in _runs(hashes):
            of_group: dict[str, int] = {}
            for bag in bags[run].tolist():
                of_group.setdefault(group(bag), bag)
            holders = sorted(of_group.values())
            if len(holders) > COMMON:
                common.update(holders)
                continue
            pairs.update((a, b) for i, a in enumerate(holders) for b in holders[i + 1 :])
        scale = (ALL_ROWS + 1) / (self.bound + 1)
        found = []
        for (a, b), count in pairs.items():
            of = min(self._distinct[a], self._distinct[b])
            found.append(Shared(a, b, min(of, round(count * scale)), of))
        return sorted(found, key=lambda s: (-s.rows, s.first, s.second)), sorted(common)


def _runs(hashes: np.ndarray) -> Sequence[slice]:
    """Where a sorted array has the same value several times."""
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]])
    ends = np.r_[starts[1:], len(hashes)]
    several = ends - starts > 1
    return [slice(int(a), int(b)) for a, b in zip(starts[several], ends[several], strict=True)]
