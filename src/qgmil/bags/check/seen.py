"""What is remembered of each bag once its features are dropped, and what all bags together say."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TypeVar

import numpy as np

from qgmil.bags.check.facts import NARROW, FileFacts, Moments
from qgmil.bags.check.report import CheckReport

T = TypeVar("T", str, float)
EDGES = {"px": "px", "um": "µm", "grid": "steps of the grid", "unknown": "(unit unknown)"}


@dataclass(frozen=True)
class Seen:
    """A bag that could be read.

    Args:
        at: its place among all bags.
        bag_id, group, label: its name, patient and class.
        where: its first file.
        files: the facts of its files, without the arrays.
        rms: root mean square of its features.
        one_row: whether it has several instances, all with the same features.
    """

    at: int
    bag_id: str
    group: str
    label: str | None
    where: str
    files: tuple[FileFacts, ...]
    rms: float
    one_row: bool

    @property
    def instances(self) -> int:
        """Instances of all its files."""
        return sum(f.rows for f in self.files)

    @property
    def width(self) -> int:
        """Features of an instance."""
        return self.files[0].width

    @property
    def placed(self) -> tuple[FileFacts, ...]:
        """Its files with coordinates."""
        return tuple(f for f in self.files if f.has_coords)

    @property
    def digest(self) -> tuple[str, ...]:
        """Equal for bags of equal features."""
        return tuple(f.digest for f in self.files)


def remember(
    at: int, bag_id: str, group: str, label: str | None, where: str, files: Sequence[FileFacts]
) -> tuple[Seen, Moments]:
    """A bag without what is large, and the moments of its features."""
    total = Moments(files[0].width)
    for f in files:
        total.add(f.rows, f.mean, f.m2, f.low, f.high)
    rms = math.sqrt(float(np.mean(total.mean**2 + total.m2 / total.rows)))
    one_row = total.rows > 1 and total.mean.size >= NARROW and bool(np.array_equal(total.low, total.high))
    nothing = np.zeros(0)
    bare = tuple(replace(f, mean=nothing, m2=nothing, low=nothing, high=nothing, hashes=nothing) for f in files)
    return Seen(at, bag_id, group, label, where, bare, rms, one_row), total


def summarise(report: CheckReport, seen: Sequence[Seen]) -> None:
    """Fill in the numbers of the report."""
    report.readable = len(seen)
    if not seen:
        return
    sizes = report.sizes = [s.instances for s in seen]
    report.instances_min, report.instances_max, report.instances_total = min(sizes), max(sizes), sum(sizes)
    report.instances_median = float(statistics.median(sizes))
    report.widths = dict(sorted(Counter(s.width for s in seen).items()))
    report.dtypes = dict(sorted(Counter("/".join(sorted({f.dtype for f in s.files})) for s in seen).items()))
    files = [f for s in seen for f in s.files]
    report.bytes = sum(f.bytes for f in files)
    report.zero_rows = sum(f.zero_rows for f in files)
    report.largest = max(f.largest for f in files)
    report.with_coords = sum(len(s.placed) == len(s.files) for s in seen)
    report.same_place = sum(f.same_place for f in files)
    report.coord_units = {unit: len(bags) for unit, bags in units(seen).items()}
    report.tile_sizes = _known(seen, "tile_size")
    report.tile_edges = {edge: len(bags) for edge, bags in by_value(seen, _edge).items()}
    report.mpps = _known(seen, "mpp")
    report.magnifications = _known(seen, "magnification")
    report.tile_mpps = _known(seen, "tile_mpp")


def units(seen: Sequence[Seen]) -> dict[str, list[str]]:
    """The bags of each unit of coordinates ("unknown" where the file does not say), the most frequent first."""
    return by_value(seen, lambda f: f.unit or "unknown" if f.has_coords else None)


def by_value(seen: Sequence[Seen], value: Callable[[FileFacts], T | None]) -> dict[T, list[str]]:
    """The bags of each value that some file knows, the most frequent first."""
    found: dict[T, list[str]] = {}
    for s in seen:
        for v in dict.fromkeys(value(f) for f in s.files):
            if v is not None:
                found.setdefault(v, []).append(s.bag_id)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _edge(f: FileFacts) -> str | None:
    """The edge of a tile with its unit; without coordinates it counts level-0 pixels."""
    if f.tile_size is None:
        return None
    unit = (f.unit or "unknown") if f.has_coords else "px"
    return f"{f.tile_size:g} {EDGES[unit]}"


def _known(seen: Sequence[Seen], name: str) -> dict[float, int]:
    return {v: len(bags) for v, bags in by_value(seen, attrgetter(name)).items()}
