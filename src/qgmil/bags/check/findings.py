"""Warnings about features and coordinates that can be read and yet deserve a look."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from operator import attrgetter

import numpy as np

from qgmil.bags.check.facts import NARROW, FileFacts, Moments
from qgmil.bags.check.report import CheckReport, bags_of
from qgmil.bags.check.seen import Seen, by_value, units
from qgmil.bags.problems import Problem
from qgmil.bags.readers.base import listing

LARGE = 1e4  # features of encoders are a few units; beyond 65,504 float16 has no numbers
HARDLY = 1e-3  # a spread below this share of the largest value is hardly any
NOISE = 1e-6  # and so is one below this share of the usual spread
OTHER_SCALE = 20.0  # times the scale of the median bag, or a twentieth of it
FEW_BAGS = 3
CLOSE = 1.05  # sizes in microns within 5 % are the same
SHOWN = 5
MOST_COLUMNS = 20


def check_features(report: CheckReport, seen: Sequence[Seen], moments: Moments | None) -> None:
    """Features without variance, instances without content, numbers of a strange size."""
    if moments is not None and moments.rows > 1:
        _constant(report, moments)
    report.warnings += _rows(seen)
    report.warnings += _scale(report, seen, moments)


def _constant(report: CheckReport, moments: Moments) -> None:
    largest = np.maximum(np.abs(moments.low), np.abs(moments.high))
    same = moments.low == moments.high
    usual = float(np.median(moments.sd[~same])) if not same.all() else 0.0
    hardly = ~same & (moments.sd < np.maximum(HARDLY * largest, NOISE * usual))
    report.constant = _indices(same)
    report.zero = _indices(same & (largest == 0))
    report.near_constant = _indices(hardly)
    if report.constant:
        zeros = f", {len(report.zero)} of them always 0" if report.zero else ""
        message = (
            f"{_share(len(report.constant), len(same))} are the same in every instance{zeros}: "
            f"{_columns(report.constant)}; they tell the model nothing"
        )
        report.warnings.append(Problem("constant", None, message))
    if report.near_constant:
        message = f"{_share(len(report.near_constant), len(same))} hardly vary: {_columns(report.near_constant)}"
        report.warnings.append(Problem("constant", None, f"{message}; standardising them blows up rounding errors"))


def _rows(seen: Sequence[Seen]) -> Iterator[Problem]:
    zero = [(s, sum(f.zero_rows for f in s.files)) for s in seen if s.width >= NARROW]
    if zero := [(s, n) for s, n in zero if n]:
        total = sum(n for _, n in zero)
        message = f"{total:,} instances of {bags_of(len(zero))} are all zeros: {_counts(zero)}"
        yield Problem("zero", _only(zero), f"{message}; padding, or an encoder that failed: take them out")
    if one := [(s, s.instances) for s in seen if s.one_row]:
        message = f"{bags_of(len(one))} repeat{'s' * (len(one) == 1)} one instance: {_counts(one)}"
        yield Problem("one-row", _only(one), f"{message}; extract their features again")


def _scale(report: CheckReport, seen: Sequence[Seen], moments: Moments | None) -> Iterator[Problem]:
    if report.largest >= LARGE:
        worst = max(seen, key=lambda s: max(f.largest for f in s.files))
        columns = ""
        if moments is not None:
            large = np.flatnonzero(np.maximum(np.abs(moments.low), np.abs(moments.high)) >= LARGE)
            columns = f" (features beyond {LARGE:,.0f}: {_columns(large.tolist())})" if large.size else ""
        message = f"values reach {report.largest:,.6g} in bag {worst.bag_id!r}{columns}"
        yield Problem("scale", worst.bag_id, f"{message}; are these features, and all of them?")
    wide = [s for s in seen if s.width >= NARROW and s.rms > 0]
    if len(wide) < FEW_BAGS:
        return
    usual = statistics.median(s.rms for s in wide)
    if odd := [s for s in wide if not usual / OTHER_SCALE <= s.rms <= usual * OTHER_SCALE]:
        each = listing((f"{s.bag_id} ({s.rms:.3g})" for s in odd), 10)
        message = (
            f"{bags_of(len(odd))} with features of another scale (root mean square; the usual is {usual:.3g}): {each}"
        )
        yield Problem(
            "scale", odd[0].bag_id if len(odd) == 1 else None, f"{message}; another encoder or normalisation?"
        )


def check_coords(report: CheckReport, seen: Sequence[Seen]) -> None:
    """Coordinates without a unit, of different units and tile sizes, on each other, or of some bags only."""
    report.warnings += _units(seen)
    report.warnings += _sizes(seen)
    without = [s.bag_id for s in seen if not s.placed]
    if without and len(without) < len(seen):
        message = f"{len(without)} of {len(seen)} bags have no coordinates, the others have: {listing(without, 10)}"
        report.warnings.append(Problem("coords", None, message))
    same = [(s, n) for s in seen if (n := sum(f.same_place for f in s.files))]
    if same:
        where = f"{report.same_place:,} instances of {bags_of(len(same))}"
        message = f"{where} lie on the coordinates of another: {_counts(same)}"
        report.warnings.append(Problem("tiles", _only(same), f"{message}; tiles that are there twice count twice"))


def _units(seen: Sequence[Seen]) -> Iterator[Problem]:
    found = units(seen)
    if len(found) > 1:
        yield Problem("unit", None, f"the coordinates have different units: {_differing(found)}")
    if "unknown" in found:
        message = f"the coordinates of {bags_of(len(found['unknown']))} have no known unit (pixels of which level?)"
        yield Problem("unit", None, f"{message}; overlays refuse them")


def _sizes(seen: Sequence[Seen]) -> Iterator[Problem]:
    """Tiles that show more or less of the tissue than those of other bags."""
    edges = by_value(seen, _microns)
    if edges and sum(map(len, edges.values())) >= len(seen):  # known of all: pixels may differ as the scanners do
        yield from _different(edges, "tile-size", "the edges of their tiles", ".0f", " µm")
    else:
        yield from _different(by_value(seen, attrgetter("tile_size")), "tile-size", "the size of their tiles", "g")
        yield from _different(by_value(seen, attrgetter("mpp")), "mpp", "microns per level-0 pixel", ".3g")
    yield from _different(by_value(seen, attrgetter("tile_mpp")), "mpp", "microns per pixel of their tiles", ".3g")
    yield from _different(by_value(seen, attrgetter("magnification")), "magnification", "magnification", "g", "x")


def _different(found: dict[float, list[str]], kind: str, what: str, form: str, unit: str = "") -> Iterator[Problem]:
    if not found or max(found) <= CLOSE * min(found):
        return
    named: dict[str, list[str]] = {}
    for value, bags in found.items():
        named.setdefault(f"{value:{form}}{unit}", []).extend(bags)
    yield Problem(kind, None, f"bags differ in {what}: {_differing(named)}; do their instances show the same area?")


def _microns(f: FileFacts) -> float | None:
    """Edge of a tile on the glass, where it can be known."""
    if f.tile_size is None:
        return None
    if f.unit == "um":
        return f.tile_size
    in_pixels = f.unit == "px" or not f.has_coords
    return f.tile_size * f.mpp if in_pixels and f.mpp is not None else None


def _differing(values: dict[str, list[str]]) -> str:
    """Values with their bags, the rarer ones by name."""
    first, *others = sorted(values, key=lambda v: -len(values[v]))
    rest = (f"{v} ({bags_of(len(values[v]))}: {listing(values[v], SHOWN)})" for v in others)
    return ", ".join([f"{first} ({bags_of(len(values[first]))})", *rest])


def _counts(found: Sequence[tuple[Seen, int]]) -> str:
    """ "'a' (3 of 20), 'b' (1 of 8)": the worst first."""
    worst = sorted(found, key=lambda item: -item[1])
    more = f" and {len(worst) - SHOWN} more" if len(worst) > SHOWN else ""
    return ", ".join(f"{s.bag_id!r} ({n:,} of {s.instances:,})" for s, n in worst[:SHOWN]) + more


def _only(found: Sequence[tuple[Seen, int]]) -> str | None:
    return found[0][0].bag_id if len(found) == 1 else None


def _columns(columns: Sequence[int]) -> str:
    more = f" and {len(columns) - MOST_COLUMNS} more" if len(columns) > MOST_COLUMNS else ""
    return ", ".join(map(str, columns[:MOST_COLUMNS])) + more


def _share(count: int, of: int) -> str:
    return f"{count:,} of {of:,} features"


def _indices(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())
