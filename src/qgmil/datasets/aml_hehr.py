"""AML-Hehr: four genetic subtypes of acute myeloid leukaemia and controls, from single cells (SCEMILA layout).

``metadata.csv`` has a row a patient (patient_id, bag_label, age, sex_1f_2m, ...); ``data/<bag_label>/<patient_id>/``
has the features of all its cells in one .npy file (or several, one for each extractor).
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from qgmil.bags.manifest import BagRecord
from qgmil.bags.problems import bad_id, clean_label
from qgmil.bags.readers.base import listing
from qgmil.bags.readers.siblings import check_inside
from qgmil.bags.tabular import read_text_table
from qgmil.datasets.base import DatasetInfo, NamedDataset, find_marked, nested
from qgmil.datasets.records import Skip, column, file_dataset
from qgmil.errors import ManifestError, ReadError

KEPT = ("age", "sex_1f_2m", "instance_count")

INFOS = (
    DatasetInfo(
        "aml_hehr",
        "blood smears, 189 patients (Hehr 2023)",
        "patient is a control or has one of four genetic AML subtypes, from 81,214 single white cells",
        ("CBFB_MYH11", "NPM1", "PML_RARA", "RUNX1_RUNX1T1", "control"),
        189,
        "see provider (The Cancer Imaging Archive, data usage policy of the collection)",
        "Hehr et al.: Explainable AI identifies diagnostic cells of genetic AML subtypes, PLOS Digital Health 2 "
        "(2023), doi:10.1371/journal.pdig.0000187; data: doi:10.7937/6PPE-4020",
        "https://www.cancerimagingarchive.net/collection/aml-cytomorphology_mll_helmholtz/",
        "none published; recommended (as in the paper): stratified 5-fold cross-validation by patient",
        "aml_hehr/metadata.csv and aml_hehr/data/LABEL/PATIENT/*.npy",
        ("pkg - aml-cytomorphology_mll_helmholtz_v1", "aml-cytomorphology_mll_helmholtz"),
    ),
)


def find(info: DatasetInfo, root: Path | None) -> Path | None:
    """The folder, if the table of patients is in it."""
    return find_marked(info, root, "metadata.csv")


def load(info: DatasetInfo, path: Path, *, features: str = "*.npy", skip: Skip = ()) -> NamedDataset:
    """The patients.

    Args:
        features: name of the file of features in each patient's folder, with wildcards.
        skip: any of "empty", "missing", "unlabelled".

    Raises:
        ManifestError: a row without a usable id, or a folder under another label than its row's or under several.
        ReadError: patients without features, or with several files that fit.
    """
    folder = nested(path, "metadata.csv")
    table = read_text_table(folder / "metadata.csv")
    patient, label = (column(table.path, table.columns, n) for n in ("patient_id", "bag_label"))
    places: dict[str, list[Path]] = {}
    for found in sorted(p for p in (folder / "data").glob("*/*") if p.is_dir()):
        places.setdefault(found.name, []).append(found)
    records = []
    for line, cells in table.rows:
        name = cells[patient]
        if reason := bad_id(name):
            raise ManifestError(f"{table.path}: line {line}: patient {name!r} cannot be used, {reason}")
        if len(places.get(name, ())) > 1:
            several = listing(map(str, places[name]))
            raise ManifestError(
                f"{table.path}: line {line}: patient {name!r} has several folders, {several}; one patient has one "
                "label: keep the right folder, or give the patients different ids"
            )
        place = places[name][0] if name in places else None
        if place is not None and place.parent.name != cells[label]:
            raise ManifestError(
                f"{table.path}: line {line}: patient {name!r} has the label {cells[label]!r} but its folder is {place}"
            )
        files = () if place is None else _features(place, features)
        extra = {c: cells[c] for c in KEPT if c in cells}
        records.append(BagRecord(name, clean_label(cells[label]), name, files, extra, line))
    stray = sorted(set(places) - {r.bag_id for r in records})
    notes = [f"{len(stray)} folders have no row in metadata.csv: {listing(stray)}"] if stray else []
    return file_dataset(info, path, records, skip=skip, notes=notes)


def _features(place: Path, pattern: str) -> tuple[Path, ...]:
    check_inside(place, place.parent.parent)
    found = sorted(p for p in place.rglob("*") if p.is_file() and fnmatch(p.name, pattern))
    if len(found) > 1:
        raise ReadError(
            f"{place}: {listing(p.name for p in found)} all fit {pattern!r}; name the one to read with "
            "--options.features NAME (features='NAME' in Python)"
        )
    for file in found:
        check_inside(file, place)
    return tuple(found)
