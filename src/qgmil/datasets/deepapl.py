"""DeepAPL: acute promyelocytic against other acute myeloid leukaemia, from single cells of blood smears.

Published as ``Data/master.csv`` (Patient_ID, Diagnosis, Cohort, age, gender) and ``Data/All/<patient>/`` with, in some
patients below a folder a date, ``Signed slides/<cell type>/*.jpg`` and ``Unsigned slides/*.jpg``. Some images are there
twice, some are whole fields of view rather than cells, some do not open: they are dropped and named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qgmil.bags.bag import Bag
from qgmil.bags.manifest import BagRecord, Manifest
from qgmil.bags.problems import bad_id, clean_label
from qgmil.bags.readers.base import listing
from qgmil.bags.tabular import read_bytes, read_text_table
from qgmil.datasets.base import DatasetInfo, NamedDataset, find_marked, nested
from qgmil.datasets.images import colour, images_under, read_rgb, tensor, with_features
from qgmil.datasets.records import Skip, column, file_dataset
from qgmil.errors import ConfigError, ManifestError, ReadError

MAX_WIDTH = 1000  # wider images are fields of view
COHORTS = ("Discovery", "Validation", "all")
SIDES = {"Discovery": "train", "Validation": "test"}

INFOS = (
    DatasetInfo(
        "deepapl",
        "blood smears, 82 patients (Sidhom 2021, Discovery cohort)",
        "patient has APL or another AML, from 59 to 821 single white cells of a blood smear",
        ("AML", "APL"),
        82,
        "no open licence ('Copyright (c) 2020 The Johns Hopkins University'): benchmark use, never redistribute",
        "Sidhom et al.: Deep learning for diagnosis of acute promyelocytic leukemia via recognition of genomically "
        "imprinted morphologic features, npj Precision Oncology 5 (2021)",
        "https://github.com/sidhomj/DeepAPL",
        "recommended: stratified 5-fold cross-validation by patient on Discovery; cohort=all gives the published "
        "Discovery (train) against Validation (test)",
        "deepapl/Data/master.csv and deepapl/Data/All/PATIENT/**/*.jpg as published, or deepapl/bags.csv with features",
    ),
)


@dataclass(frozen=True)
class Cell:
    """One image of a cell: its file, a name made of its content, and its type where an expert signed it."""

    path: Path
    instance_id: str
    cell_type: str | None


@dataclass(frozen=True)
class Cells:
    """The cells of each patient, and what was dropped: ``(file, reason)``."""

    kept: dict[str, tuple[Cell, ...]]
    dropped: tuple[tuple[Path, str], ...]


def find(info: DatasetInfo, root: Path | None) -> Path | None:
    """The folder, if one of the two layouts is in it."""
    return find_marked(info, root, "bags.csv", "master.csv")


def load(
    info: DatasetInfo, path: Path, *, cohort: str = "Discovery", features: str = "", skip: Skip = ()
) -> NamedDataset:
    """The patients of a cohort.

    Args:
        cohort: "Discovery", "Validation" or "all".
        features: for the published images, a folder of features or "colour".
        skip: any of "empty", "missing", "unlabelled".

    Raises:
        ConfigError: another cohort, or one that the bags with features do not have.
        ReadError: images alone, or a patient without a folder.
    """
    if cohort not in COHORTS:
        raise ConfigError(f"cohort={cohort!r} must be one of {listing(COHORTS)}")
    if (path / "bags.csv").is_file():
        if cohort != "Discovery":
            raise ConfigError(f"{path / 'bags.csv'} holds the Discovery cohort only, not {cohort!r}")
        return file_dataset(info, path, Manifest.read(path / "bags.csv").records, skip=skip)
    master = nested(path, "master.csv") / "master.csv"
    patients = _patients(master, cohort)
    cells = read_cells(master.parent / "All", [p.bag_id for p in patients]) if features else Cells({}, ())
    records = [
        BagRecord(p.bag_id, p.label, p.bag_id, tuple(c.path for c in cells.kept.get(p.bag_id, ())), p.extra, p.line)
        for p in patients
    ]

    def make(record: BagRecord) -> Bag:
        kept = cells.kept[record.bag_id]
        rows = tensor([colour(read_rgb(c.path)) for c in kept])
        return Bag(
            rows, record.label, record.bag_id, record.patient_id, instance_ids=tuple(c.instance_id for c in kept)
        )

    columns = ("split",) if cohort == "all" else ()
    notes = [f"dropped {file.relative_to(path)}: {reason}" for file, reason in cells.dropped]
    return with_features(info, path, records, features, make, skip=skip, notes=notes, split_columns=columns)


def read_cells(folder: Path, patients: Sequence[str]) -> Cells:
    """Every cell of these patients once, sorted by file; duplicates by content, fields and broken files are dropped.

    An image that several patients have stays with the first of them: left with all, it would leak across a split.

    Raises:
        ReadError: patients without a folder (all are named).
    """
    lacking = [p for p in patients if not (folder / p).is_dir()]
    if lacking:
        raise ReadError(f"{folder}: {len(lacking)} patients have no folder: {listing(lacking)}; unpack all of them")
    seen: dict[str, Path] = {}
    kept: dict[str, tuple[Cell, ...]] = {}
    dropped: list[tuple[Path, str]] = []
    for patient in patients:
        cells = []
        for path in images_under(folder / patient):
            digest = hashlib.md5(read_bytes(path), usedforsecurity=False).hexdigest()
            reason = f"the same content as {seen[digest].relative_to(folder)}" if digest in seen else _unusable(path)
            if reason is not None:
                dropped.append((path, reason))
                continue
            seen[digest] = path
            cells.append(Cell(path, digest[:16], _cell_type(path)))
        kept[patient] = tuple(cells)
    return Cells(kept, tuple(dropped))


def _patients(master: Path, cohort: str) -> list[BagRecord]:
    table = read_text_table(master)
    names = ("Patient_ID", "Diagnosis", "Cohort", "Age at Diagnosis", "Gender")
    patient, diagnosis, part, age, gender = (column(master, table.columns, name) for name in names)
    rows = []
    for line, cells in table.rows:
        if reason := bad_id(cells[patient]):
            raise ManifestError(f"{master}: line {line}: patient {cells[patient]!r} cannot be used, {reason}")
        if cells[part] not in SIDES:
            raise ManifestError(f"{master}: line {line}: cohort {cells[part]!r}; expected {listing(SIDES)}")
        if cohort in ("all", cells[part]):
            extra = {"cohort": cells[part], "age": cells[age], "gender": cells[gender]}
            extra |= {"split": SIDES[cells[part]]} if cohort == "all" else {}
            rows.append(BagRecord(cells[patient], clean_label(cells[diagnosis]), cells[patient], (), extra, line))
    return rows


def _unusable(path: Path) -> str | None:
    """Why an image is no cell, or None if it is one."""
    try:
        read_rgb(path, MAX_WIDTH)
    except ReadError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _cell_type(path: Path) -> str | None:
    return path.parent.name if path.parent.parent.name.lower() == "signed slides" else None
