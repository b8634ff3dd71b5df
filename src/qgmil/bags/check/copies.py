"""Bags, or some of their instances, that are there twice: in the worst case in two patients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from qgmil.bags.check.report import CheckReport
from qgmil.bags.check.rows import RowIndex, Shared
from qgmil.bags.check.seen import Seen
from qgmil.bags.problems import Problem
from qgmil.bags.readers.base import listing

SHOWN = 20
LEAK = "so a split may put one in training and one in the test"


def check_copies(report: CheckReport, seen: Sequence[Seen], index: RowIndex) -> None:
    """Warn of bags with identical features, and of bags of different patients that share instances."""
    identical: set[tuple[int, int]] = set()
    for same in _identical(seen):
        report.warnings.append(_about_identical(same))
        identical |= {(a.at, b.at) for a in same for b in same}
    by_place = {s.at: s for s in seen}
    pairs, common = index.shared(lambda at: by_place[at].group)
    pairs = [p for p in pairs if (p.first, p.second) not in identical]
    for pair in pairs[:SHOWN]:
        report.warnings.append(_about_shared(pair, by_place, index.sampled))
    if len(pairs) > SHOWN:
        message = f"{len(pairs) - SHOWN} more pairs of bags of different patients share instances, fewer than these"
        report.warnings.append(Problem("shared", None, message))
    if common:
        names = listing((by_place[at].bag_id for at in common), 10)
        message = f"some instances are the same in many patients, as empty background is: {names}"
        report.warnings.append(Problem("common", None, message))


def _identical(seen: Sequence[Seen]) -> list[list[Seen]]:
    by_digest: dict[tuple[str, ...], list[Seen]] = defaultdict(list)
    for s in seen:
        by_digest[s.digest].append(s)
    return [same for same in by_digest.values() if len(same) > 1]


def _about_identical(same: Sequence[Seen]) -> Problem:
    leak = f"; they belong to different patients, {LEAK}" * (len({s.group for s in same}) > 1)
    clash = "; their labels differ" * (len({s.label for s in same}) > 1)
    message = f"bags {listing(s.bag_id for s in same)} have identical features{clash}{leak}"
    return Problem("identical", same[0].bag_id, message)


def _about_shared(pair: Shared, by_place: dict[int, Seen], sampled: bool) -> Problem:
    first, second = by_place[pair.first], by_place[pair.second]
    about = "about " * sampled
    clash = "; their labels differ" * (first.label != second.label)
    message = (
        f"bags {first.bag_id!r} and {second.bag_id!r} of different patients have {about}{pair.rows:,} instances in "
        f"common ({pair.rows / pair.of:.0%} of the smaller){clash}; {LEAK}"
    )
    return Problem("shared", first.bag_id, message)
