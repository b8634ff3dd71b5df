"""`build_manifest`: a folder of features and a table of labels become a manifest, with what does not fit named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Literal

from qgmil.bags import hints
from qgmil.bags.layouts import Layout, Tree, advice, find_layout
from qgmil.bags.layouts.base import Found
from qgmil.bags.layouts.labels import LabelRow, Labels, Wanted, read_labels, read_patient_labels
from qgmil.bags.layouts.names import NameIndex, climbs, composed
from qgmil.bags.manifest import BagRecord, Manifest, records_per_patient
from qgmil.bags.problems import Problem, bad_id, bad_label, raise_problems
from qgmil.bags.readers import reader_for, readers, split_part
from qgmil.bags.readers.base import listing
from qgmil.errors import ConfigError, ManifestError, QGMILError

BagPer = Literal["patient", "slide"]
EXAMPLES = 3


@dataclass(frozen=True)
class BuiltManifest:
    """A manifest of what fits together, and everything that does not.

    Args:
        manifest: the bags with features and a label.
        layout: what the folder was taken for.
        labels: the table that was read, or None where the folder has its own labels.
        columns: the table's columns of ids, labels and patients.
        bag_per: "patient" or "slide".
        left_out: what is not in the manifest, by kind: "no-features" (a label without features), "no-label" (features
            without a label), "locked" (still being written), "outside" (a link that leads out of the folder),
            "unreadable" (a folder that cannot be listed); and "label", bags that are in it although the folder's own
            label is another one than the table's.
        notes: what the user should know of the features, as sentences.
    """

    manifest: Manifest
    layout: Layout
    labels: Path | None
    columns: dict[str, str | None]
    bag_per: BagPer
    left_out: tuple[Problem, ...]
    notes: tuple[str, ...] = ()


def build_manifest(
    folder: str | PathLike[str],
    labels: str | PathLike[str] | None = None,
    *,
    slides: str | PathLike[str] | None = None,
    format: str | None = None,
    bag_id: str | None = None,
    label: str | None = None,
    patient_id: str | None = None,
    bag_per: BagPer | None = None,
    pattern: str | None = None,
    dataset: str | None = None,
) -> BuiltManifest:
    """Match the features of a folder with labels. No feature is read.

    A row of the table means the file whose stem it names, as written or without the ending of a slide or a feature
    file ("slide.svs" is "slide.h5"), never by a prefix. The stem is the bag's id.

    Args:
        folder: of feature files, in any layout that `qgmil.bags.layouts.layouts` knows; or the one file that holds all.
        labels: CSV or parquet, a row a bag (with `slides`, a row a patient). None where the folder has its own labels.
        slides: a row a slide of each patient (STAMP's slide table).
        format: name of the layout; None recognises it by content.
        bag_id, label, patient_id: columns of the table; None finds them. A patient of "none" is no column.
        bag_per: "patient" merges a patient's slides into one bag; None takes what is usual for the layout.
        pattern: only feature files whose name matches ("*.h5").
        dataset: the bag inside each h5 file, where files hold several; (DSMIL) the number of classes.

    Raises:
        ManifestError: nothing to match, or (all of them listed) ids that are ambiguous, bad or there twice, and
            patients whose slides have different labels.
        ConfigError: an unknown `bag_per`.
    """
    if bag_per not in (None, "patient", "slide"):
        raise ConfigError(f"--bag-per (bag_per in Python) is {bag_per!r}; it must be 'patient' or 'slide'")
    tree = Tree.scan(Path(folder), pattern=pattern, dataset=dataset, has_table=labels is not None)
    tree.check_some()
    layout = find_layout(tree, format)
    found = layout.find(tree)
    advice.check_features(tree, found)
    wanted = Wanted(bag_id, label, patient_id)
    table = _read_table(tree, layout, found, labels, slides, wanted)
    records, left_out, problems = _join(tree, found, table)
    if table is None and layout.orphans is not None:
        left_out += [Problem("no-features", n, f"its label {n!r} has no features here") for n in layout.orphans(tree)]
    left_out += [_problem("locked", f, tree, "is still being written (a .lock lies beside it)") for f in tree.locked]
    left_out += [_problem("outside", f, tree, "is a link out of the folder, not followed") for f in tree.outside]
    left_out += [_problem("unreadable", f, tree, "cannot be opened; check its permissions") for f in tree.unreadable]
    records = _with_reading(records, layout, format, tree.dataset)
    per: BagPer = bag_per or ("patient" if layout.per_patient else "slide")
    if per == "patient":
        merged, more = records_per_patient(records)
        records, problems = list(merged), [*problems, *map(_or_by_slide, more)]
    source = tree.root if table is None else table.path
    raise_problems(source, problems)
    if not records:
        raise ManifestError(_nothing_matches(found, table, tree, slides is not None))
    notes = [] if layout.notes is None else layout.notes(tree, found)
    columns = {} if table is None else table.columns
    manifest = Manifest(tuple(records), source)
    return BuiltManifest(
        manifest, layout, None if table is None else table.path, columns, per, tuple(left_out), tuple(notes)
    )


def _read_table(
    tree: Tree,
    layout: Layout,
    found: Sequence[Found],
    labels: str | PathLike[str] | None,
    slides: str | PathLike[str] | None,
    wanted: Wanted,
) -> Labels | None:
    own = any(f.label is not None for f in found)
    if labels is None and layout.table is not None and (tree.root / layout.table).is_file():
        labels = tree.root / layout.table
    if labels is None:
        if own and slides is None:
            return None
        also = "".join(f"; or {text}" for text in advice.without_labels(tree, found, layout))
        raise ManifestError(
            f"{tree.root}: {layout.summary}, which says nothing of labels; give the table of labels with "
            f"{hints.option('labels', 'labels.csv')}{also}"
        )
    index = _index(found)

    def matches(name: str) -> bool:
        return not climbs(name) and bool(index.find(name))

    if slides is not None:
        return read_patient_labels(Path(labels), Path(slides), layout.columns, wanted, matches)
    return read_labels(Path(labels), layout.columns, wanted, matches, need_label=not own)


def _index(found: Sequence[Found]) -> NameIndex[Found]:
    return NameIndex((name, f) for f in found for name in dict.fromkeys((f.name, f.inside)))


def _join(
    tree: Tree, found: Sequence[Found], table: Labels | None
) -> tuple[list[BagRecord], list[Problem], list[Problem]]:
    """Records of what fits, what is left out, and what makes the whole a mistake."""
    rows = () if table is None else table.rows
    claims, left_out, problems = _claims(tree, found, rows)
    if table is not None:
        problems = [*table.problems, *problems]
    spoken = {row.label for row in rows} & {f.label for f in found}  # or the two speak of classes in other words
    records: list[BagRecord] = []
    for one in found:
        said = claims.get(one, [])
        if len(said) > 1:
            names = ", ".join(f"{row.name!r} ({row.where})" for row in said)
            problems.append(Problem("duplicate-id", one.name, f"several rows mean {one.cell}: {names}; keep one"))
            continue
        row = said[0] if said else None
        record = _record(one, row, table)
        if isinstance(record, Problem):
            (left_out if record.kind == "no-label" else problems).append(record)
            continue
        records.append(record)
        if row is not None and one.label is not None and spoken - {None} and record.label != one.label:
            message = f"{row.where}: {one.name!r} is {record.label!r} in the table but {one.label!r} by its folder"
            left_out.append(Problem("label", one.name, message))
    cells: dict[str, list[str]] = {}
    for record in records:
        cells.setdefault(composed(record.bag_id), []).append(str(record.files[0]))
    for name, same in cells.items():
        if len(same) > 1:
            problems.append(Problem("duplicate-id", name, f"{listing(same, 5)} would all be bag {name!r}; rename them"))
    return records, left_out, problems


def _claims(
    tree: Tree, found: Sequence[Found], rows: Sequence[LabelRow]
) -> tuple[dict[Found, list[LabelRow]], list[Problem], list[Problem]]:
    """The rows that mean each of the features; rows without any; and rows that cannot be understood."""
    claims: dict[Found, list[LabelRow]] = {}
    left_out, problems = [], []
    index = _index(found)
    locked, outside = (NameIndex((f.stem, f) for f in files) for files in (tree.locked, tree.outside))
    cases, advised = advice.by_case(found), False
    for row in rows:
        if not row.name or climbs(row.name):
            reason = "it leads out of the folder" if row.name else "it is blank"
            message = f"{row.where}: the id {row.name!r} cannot be used, {reason}; name files below the folder"
            problems.append(Problem("bad-id", row.name, message))
            continue
        hits = index.find(row.name)
        if len(hits) > 1:
            message = f"{row.where}: {row.name!r} could be any of {listing((str(f.cell) for f in hits), 5)}"
            if not advised:  # it is the same for all
                advised = True
                only = hints.option("pattern", "*" + hits[0].cell.suffix)
                message += f"; name the folder of one of them, or only those that are meant with {only}"
            problems.append(Problem("ambiguous", row.name, message))
        elif hits:
            claims.setdefault(hits[0], []).append(row)
        elif not outside.find(row.name):  # which are named as such
            why = " that can be used" if locked.find(row.name) else advice.other_case(cases, row.name)
            left_out.append(Problem("no-features", row.name, f"{row.where}: {row.name!r} has no features here{why}"))
    return claims, left_out, problems


def _record(one: Found, row: LabelRow | None, table: Labels | None) -> BagRecord | Problem:
    """The bag, or why there is none."""
    label = one.label if row is None or row.label is None else row.label
    if label is None:
        why = f"{row.where}: its label is blank" if row is not None else "no row of the table names it"
        return Problem("no-label", one.name, f"{one.cell}: {why if table is not None else 'it has no label'}")
    for what, text, reason in (("id", one.name, bad_id(one.name)), ("label", label, bad_label(label))):
        if reason:
            message = f"{one.cell}: the {what} {text!r} cannot be used, {reason}; change it"
            return Problem(f"bad-{what}", one.name, message)
    patient = one.patient if row is None or row.patient is None else row.patient
    if row is not None and table is not None and table.columns["patient"] == table.columns["id"]:
        patient = one.name  # without the ending or folder that the table may have there
    return BagRecord(one.name, label, patient, (one.cell,), {} if row is None else row.extra)


def _problem(kind: str, file: Path, tree: Tree, what: str) -> Problem:
    return Problem(kind, file.name if kind == "unreadable" else file.stem, f"{file.relative_to(tree.root)} {what}")


def _or_by_slide(problem: Problem) -> Problem:
    if problem.kind != "label":
        return problem
    how = hints.option("bag_per", "slide")
    return replace(problem, message=f"{problem.message}; correct the table, or make every slide a bag with {how}")


def _with_reading(
    records: Sequence[BagRecord], layout: Layout, format: str | None, dataset: str | None
) -> list[BagRecord]:
    """The records with what reading them needs to know and neither their files nor their cells say."""
    of_suffix: dict[str, str | None] = {}
    found = []
    for record in records:
        (cell,) = record.files
        suffix = cell.suffix.lower()
        if suffix not in of_suffix:
            of_suffix[suffix] = layout.reader or _reader_to_name(cell, format)
        said = dataset is None or split_part(cell)[1] is not None
        reader = of_suffix[suffix]
        knows = reader is not None and suffix in readers()[reader].suffixes
        found.append(replace(record, format=reader if knows else None, dataset=None if said else dataset))
    return found


def _reader_to_name(cell: Path, format: str | None) -> str | None:
    """The format that the user named, if reading knows it and would take the file for one that says nothing."""
    file, _ = split_part(cell)
    if format not in readers() or file.is_dir():
        return None
    try:
        reader = reader_for(file)
    except QGMILError:
        return format
    return format if reader.recognises is None and reader.name != format else None


def _nothing_matches(found: Sequence[Found], table: Labels | None, tree: Tree, slides: bool) -> str:
    here = listing((f.name for f in found[:EXAMPLES]), EXAMPLES)
    if table is None:
        return f"{tree.root}: no bag has a label"
    there = listing((row.name for row in table.rows[:EXAMPLES]), EXAMPLES)
    return (
        f"{table.path}: column {table.columns['id']!r} ({there}, ...) and the features in {tree.root} ({here}, ...) "
        f"have no name in common, or none of them has a label; {advice.without_match(tree, found, table, slides)}"
    )
