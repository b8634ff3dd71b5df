"""``qgmil manifest``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.table import Table

    from qgmil.bags.layouts.build import BuiltManifest

SHOWN = 10
KINDS = {  # of one, of several
    "no-features": ("label without features", "labels without features"),
    "no-label": ("file without a label", "files without a label"),
    "locked": ("file still being written", "files still being written"),
    "outside": ("link that is not followed", "links that are not followed"),
    "unreadable": ("folder that cannot be opened", "folders that cannot be opened"),
    "label": (
        "label that differs from the folder's (the table's is used)",
        "labels that differ from the folder's (the table's are used)",
    ),
}
UNMATCHED = ["kind", "name", "what"]  # columns of the file of what does not fit
Flag = Annotated[bool, Parameter(negative=())]


def manifest(
    folder: Path,
    /,
    *,
    labels: Path | None = None,
    output: Annotated[Path, Parameter(alias="-o")] = Path("bags.csv"),
    format: str | None = None,
    id: str | None = None,
    label: str | None = None,
    target: str | None = None,
    patient: str | None = None,
    slides: Path | None = None,
    bag_per: Literal["patient", "slide"] | None = None,
    pattern: str | None = None,
    dataset: str | None = None,
    strict: Flag = False,
    force: Flag = False,
) -> int:
    """Match the features of a folder with a table of labels; write what fits, and name what does not.

    Knows the folders of CLAM, TRIDENT, STAMP, torchmil, slideflow, PathForge and ACMIL, trees of cells
    (class/patient/cell, SCEMILA), tables of Patho-Bench, and plain folders of feature files.

    Parameters
    ----------
    folder
        Folder of feature files, or the one file that holds them all.
    labels
        Table of labels (CSV or parquet): a row a bag, named as its file, with or without an ending. Not needed where
        the folder holds the labels (torchmil, ACMIL, trees of cells).
    output
        Manifest to write, a CSV; what does not fit goes into a second file beside it, *.unmatched.csv.
    format
        Layout of the folder: acmil, cells, clam, dsmil, pathforge, pathobench, plain, slideflow, stamp, torchmil,
        trident. Recognised by content if absent.
    id
        Column with the bag's name. Found if absent.
    label
        Column with the class. Found if absent.
    target
        The same, as STAMP calls it.
    patient
        Column with the patient; none: every bag is a patient of its own. Found if absent.
    slides
        STAMP's slide table (PATIENT, FILENAME); the table of labels then has a row a patient.
    bag_per
        One bag a slide, or merge each patient's slides into one. Default: patient for STAMP and
        trees of cells, else slide.
    pattern
        Only feature files whose name matches, as '*.h5'.
    dataset
        The features inside each file, where files hold several (PathForge); the number of classes (DSMIL).
    strict
        Write nothing and exit with 1 if a label has no features, or features have no label.
    force
        Replace the output if it exists.
    """
    from qgmil.bags.layouts.build import build_manifest
    from qgmil.cli.output import console, say
    from qgmil.errors import ConfigError
    from qgmil.files import write_csv

    if label is not None and target is not None:
        raise ConfigError("--label and --target are the same: give one")
    left = output.with_name(f"{output.stem}.unmatched.csv")
    _check_output(output, force)
    _check_unmatched(left)
    _check_tables(output, left, [labels, slides])
    built = build_manifest(
        folder,
        labels,
        slides=slides,
        format=format,
        bag_id=id,
        label=label or target,
        patient_id=patient,
        bag_per=bag_per,
        pattern=pattern,
        dataset=dataset,
    )
    # What was read, and what the folder would have been asked for, is found once the folder was looked at.
    own = folder / built.layout.table if built.layout.table else None
    _check_tables(output, left, [built.labels, own])
    _check_features(output, built)
    console.print(_table(built, folder))
    output.parent.mkdir(parents=True, exist_ok=True)
    if built.left_out:
        _say_left_out(built)
        rows = [dict(zip(UNMATCHED, (p.kind, p.bag_id, p.message), strict=True)) for p in built.left_out]
        write_csv(left, rows)
        say(f"what does not fit, name by name: {left}")
        if strict:
            say("nothing else written, as --strict asks")
            return 1
    built.manifest.to_csv(output)
    if not built.left_out:
        left.unlink(missing_ok=True)  # of an earlier manifest of this name
    for note in built.notes:
        say(f"note: {note}")
    say(f"written: {output}   next: qgmil check {output}, qgmil train {output}")
    return 0


def _check_output(output: Path, force: bool) -> None:
    from qgmil.errors import ManifestError

    if output.is_dir():
        raise ManifestError(f"{output} is a folder: give the name of a CSV file")
    if output.suffix.lower() != ".csv":
        raise ManifestError(f"{output}: the manifest is a CSV; end its name with .csv")
    if output.exists() and not force:
        raise ManifestError(f"{output} exists already: choose another name with --output, or --force")


def _check_unmatched(left: Path) -> None:
    """Refuse a file that is in the way and that an earlier manifest of this name did not leave."""
    from qgmil.bags.tabular import read_bytes
    from qgmil.errors import ManifestError

    first = ",".join(UNMATCHED).encode()
    if left.exists() and (left.is_dir() or read_bytes(left).partition(b"\n")[0].strip() != first):
        raise ManifestError(
            f"{left} is in the way: it was not made by qgmil manifest, and what does not fit would be written there; "
            "rename it, or choose another name with --output"
        )


def _check_tables(output: Path, left: Path, tables: list[Path | None]) -> None:
    """Refuse to replace what was or would be read, also with --force."""
    from qgmil.errors import ManifestError

    for target in (output, left):
        for table in tables:
            if table is not None and target.exists() and table.exists() and table.samefile(target):
                raise ManifestError(f"{target} is the table of labels {table}: choose another name with --output")


def _check_features(output: Path, built: BuiltManifest) -> None:
    from qgmil.bags.readers import split_part
    from qgmil.errors import ManifestError

    if output.exists():
        files = (split_part(file)[0] for record in built.manifest.records for file in record.files)
        if any(file.samefile(output) for file in files if file.exists()):
            raise ManifestError(f"{output} is a file of features: choose another name with --output")


def _table(built: BuiltManifest, folder: Path) -> Table:
    from collections import Counter

    from rich.markup import escape
    from rich.table import Table

    bags = built.manifest
    counts = Counter(bags.labels)
    columns = ", ".join(f"{what}: {column}" for what, column in built.columns.items() if column is not None)
    files = sum(len(r.files) for r in bags.records)
    rows = {
        "taken for": f"{built.layout.name} ({built.layout.summary})",
        "labels": f"{built.labels} ({columns})" if built.labels else "of the folder itself",
        "bags": f"{len(bags):,}, one a {built.bag_per}" + (f", of {files:,} files" if files > len(bags) else ""),
        "classes": ", ".join(f"{name}: {counts[name]}" for name in bags.classes),
        "patients": f"{len(set(bags.groups)):,}" if any(r.patient_id for r in bags.records) else "not known",
    }
    for kind, (_, title) in KINDS.items():
        if number := sum(p.kind == kind for p in built.left_out):
            rows[title] = f"{number:,}"
    table = Table(title=escape(str(folder)), title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _say_left_out(built: BuiltManifest) -> None:
    """The first names of each kind; the file has them all."""
    from qgmil.bags.readers.base import listing
    from qgmil.cli.output import say

    for kind, titles in KINDS.items():
        names = [p.bag_id for p in built.left_out if p.kind == kind]
        if names:
            say(f"{len(names)} {titles[len(names) > 1]}: {listing(map(str, names), SHOWN)}")
