"""`CheckReport`: what a table of bags holds, and what is wrong with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from qgmil.bags.problems import Problem


def bags_of(count: int) -> str:
    """A number of bags in words: "1 bag", "2 bags"."""
    return f"{count:,} bag{'s' * (count != 1)}"


@dataclass(frozen=True)
class Lock:
    """A ``.lock`` beside a feature file: it is still being written, or its writer died. `age` in seconds."""

    file: str
    age: float


@dataclass
class CheckReport:
    """What a table of bags holds, and what is wrong with it.

    Args:
        source: what was checked.
        bags: usable rows of the table, whether or not their files could be read.
        classes: bags of each label, sorted; unlabelled bags are not in it.
        patients: different patients (a bag without one is its own).
        readable: bags whose files could all be read.
        instances_min, instances_median, instances_max, instances_total: over the readable bags.
        sizes: instances of each readable bag, in the order of the table.
        widths: bags of each feature width.
        dtypes: bags of each type of features, as text ("float16").
        with_coords: bags whose every file has coordinates.
        coord_units: bags with coordinates by their unit: "px" (level-0 pixels), "um", "grid" or "unknown".
        tile_sizes, mpps, magnifications, tile_mpps: bags of each, where the files say: edge of a tile in the unit of
            the coordinates, microns per level-0 pixel, magnification, microns per pixel of the tiles.
        tile_edges: as `tile_sizes`, as text with the unit ("256 µm").
        same_place: instances that lie on the coordinates of another of their file.
        constant: features (columns, from 0) that are the same in every instance; `zero` are those that are always 0.
        near_constant: features that hardly vary.
        zero_rows: instances whose features are all zero.
        largest: the largest absolute value of a feature.
        bytes: size of the features in memory, as stored.
        locks: files with a lock beside them, in the table or in its folders.
        problems: errors: training on these bags would fail or lie.
        warnings: what may be as it should be, and deserves a look.
    """

    source: str
    bags: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    patients: int = 0
    readable: int = 0
    instances_min: int = 0
    instances_median: float = 0.0
    instances_max: int = 0
    instances_total: int = 0
    sizes: list[int] = field(default_factory=list)
    widths: dict[int, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    with_coords: int = 0
    coord_units: dict[str, int] = field(default_factory=dict)
    tile_sizes: dict[float, int] = field(default_factory=dict)
    mpps: dict[float, int] = field(default_factory=dict)
    magnifications: dict[float, int] = field(default_factory=dict)
    tile_mpps: dict[float, int] = field(default_factory=dict)
    tile_edges: dict[str, int] = field(default_factory=dict)
    same_place: int = 0
    constant: tuple[int, ...] = ()
    zero: tuple[int, ...] = ()
    near_constant: tuple[int, ...] = ()
    zero_rows: int = 0
    largest: float = 0.0
    bytes: int = 0
    locks: list[Lock] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are no problems (warnings may be)."""
        return not self.problems

    @property
    def width(self) -> int | None:
        """The feature width of most bags; None where none could be read."""
        return max(self.widths, key=lambda w: self.widths[w]) if self.widths else None

    def as_dict(self) -> dict[str, Any]:
        """The report for machines: "ok" and every field but `sizes`, ready for JSON (keys of tables as text)."""
        values = asdict(self)
        del values["sizes"]
        tables = {k: {str(key): n for key, n in v.items()} for k, v in values.items() if isinstance(v, dict)}
        return {"ok": self.ok, **values, **tables}
