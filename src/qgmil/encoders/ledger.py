"""What an extraction notes of its bags: the table, what failed, and what could not be read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qgmil.bags.manifest import BagRecord, Manifest, scan_manifest
from qgmil.bags.problems import raise_problems
from qgmil.encoders.trees import Work
from qgmil.errors import ReadError
from qgmil.files import read_csv, write_csv

MANIFEST, FAILED, UNREADABLE = "bags.csv", "failed.csv", "unreadable.csv"


@dataclass
class Report:
    """What an extraction did.

    Args:
        manifest: the table of bags.
        made, kept: bags that were made, and those that were there already.
        instances, seconds: of those that were made.
        failed: bag and reason.
        before: the same of earlier extractions into the folder, of bags that were not asked for this time.
        unreadable: bag, image and reason: left out of the bag.
        reading, encoding: seconds spent waiting for pictures and computing.
    """

    manifest: Path
    made: int = 0
    kept: int = 0
    instances: int = 0
    seconds: float = 0.0
    reading: float = 0.0
    encoding: float = 0.0
    failed: list[tuple[str, str]] = field(default_factory=list)
    before: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str, str]] = field(default_factory=list)


def noted(path: Path, *columns: str) -> list[Any]:
    """What an earlier extraction noted, as tuples of the bag and these columns.

    Raises:
        ReadError: a file of that name that is none of ours.
    """
    if not path.is_file():
        return []
    rows = read_csv(path)
    if rows and set(rows[0]) != {"bag_id", *columns}:
        raise ReadError(
            f"{path}: is not from qgmil extract, which writes a file of that name; move it, or name another folder"
        )
    return [tuple(row[c] for c in ("bag_id", *columns)) for row in rows]


def read_table(path: Path) -> dict[str, BagRecord]:
    """The table as it is, with what the user has written into it.

    Raises:
        ManifestError: it has problems, which writing it again would lose.
    """
    if not path.is_file():
        return {}
    before, problems = scan_manifest(path, require_labels=False)
    raise_problems(path, problems)
    return {record.bag_id: record for record in before.records}


def write_failures(report: Report, output: Path) -> None:
    """Write what failed, as soon as it did."""
    if rows := [{"bag_id": b, "reason": r} for b, r in (*report.before, *report.failed)]:
        write_csv(output / FAILED, rows)
    else:
        (output / FAILED).unlink(missing_ok=True)
    if not report.unreadable:
        (output / UNREADABLE).unlink(missing_ok=True)
    else:
        rows = [{"bag_id": b, "image": i, "reason": r} for b, i, r in report.unreadable]
        write_csv(output / UNREADABLE, rows)


def write_table(report: Report, works: Sequence[Work], folder: Path, output: Path, table: dict[str, BagRecord]) -> None:
    """The table of bags of what is there; rows, labels, patients and columns that were in it before stay."""
    write_failures(report, output)
    places = {work.bag_id: _place(work) for work in works}
    shared = {place for place, count in Counter(places.values()).items() if count > 1}
    failed = {name for name, _ in report.failed}
    for work in works:
        path = folder / f"{work.bag_id}.h5"
        if work.bag_id in failed or not path.is_file():  # a file that is there may be of other images
            continue
        old = table.get(work.bag_id)
        label, patient = work.label, work.patient_id
        if old is not None:
            label, patient = old.label or label, old.patient_id or patient
        place = places[work.bag_id]
        named = {"slide" if work.names is None else "images": "" if place in shared else str(place)}
        table[work.bag_id] = BagRecord(
            work.bag_id, label, patient, (path,), {**(old.extra if old is not None else {}), **named}
        )
    if table:
        Manifest(tuple(table.values())).to_csv(report.manifest)


def _place(work: Work) -> Path:
    """The slide, tar or folder with the images of a bag."""
    if work.names is None or work.members is not None:
        return work.files[0].absolute()
    return Path(os.path.commonpath([file.absolute().parent for file in work.files]))
