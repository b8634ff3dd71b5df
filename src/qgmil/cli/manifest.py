"""``qgmil manifest``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.table import Table

    from qgmil.bags.layouts.build import BuiltManifest

SHOWN = 10
KINDS = {
    "no-features": "labels without features",
    "no-label": "features without a label",
    "locked": "still being written",
    "outside": "links that are not followed",
    "label": "labels that differ from the folder's (the table's are used)",
}
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
        Manifest to write.
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
        The features inside each h5 file, where files hold several (PathForge).
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
    _check_output(output, force, [labels, slides])
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
    console.print(_table(built, folder))
    left = output.with_name(f"{output.stem}.unmatched.csv")
    output.parent.mkdir(parents=True, exist_ok=True)
    if built.left_out:
        _say_left_out(built)
        rows = [{"kind": p.kind, "name": p.bag_id, "what": p.message} for p in built.left_out]
        write_csv(left, rows)
        say(f"all {len(rows)} of them: {left}")
        if strict:
            say("nothing else written, as --strict asks")
            return 1
    built.manifest.to_csv(output)
    if not built.left_out:
        left.unlink(missing_ok=True)  # of an earlier manifest of this name
    how = f" --format {built.layout.reader}" if built.layout.reader else ""
    how += f" --dataset {dataset}" if how and dataset else ""
    say(f"written: {output}   next: qgmil check {output}{how}, qgmil train {output}{how}")
    return 0


def _check_output(output: Path, force: bool, tables: list[Path | None]) -> None:
    from qgmil.errors import ManifestError

    if output.is_dir():
        raise ManifestError(f"{output} is a folder: give the name of a CSV file")
    if output.exists():
        if any(table is not None and table.exists() and table.samefile(output) for table in tables):
            raise ManifestError(f"{output} is the table of labels: choose another name with --output")
        if not force:
            raise ManifestError(f"{output} exists already: choose another name with --output, or --force")


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
    for kind, title in KINDS.items():
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

    for kind, title in KINDS.items():
        names = [p.bag_id for p in built.left_out if p.kind == kind]
        if names:
            say(f"{len(names)} {title}: {listing(map(str, names), SHOWN)}")
