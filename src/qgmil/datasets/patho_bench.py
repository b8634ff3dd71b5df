"""BRACS and TCGA subtyping in Patho-Bench's layout, with TRIDENT's features.

A task is a folder with ``k=all.tsv`` (case_id, slide_id, the label's column, fold_0, fold_1, ... each of train, val and
test) and, mostly, ``config.yaml`` (task_col, and label_dict with a name for each number). Features are TRIDENT's
``<mag>x_<px>px_<ov>px_overlap/features_<encoder>/<slide>.h5``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from qgmil.bags.layouts.names import bare
from qgmil.bags.manifest import BagRecord
from qgmil.bags.problems import bad_id, clean_label
from qgmil.bags.readers import feature_suffixes
from qgmil.bags.readers.base import check_path, guarded, listing
from qgmil.bags.tabular import TextTable, read_text_table
from qgmil.datasets.base import DatasetInfo, NamedDataset, find_folder
from qgmil.datasets.records import Skip, column, feature_file, file_dataset
from qgmil.errors import ManifestError, ReadError

TABLE = "k=all.tsv"
DEEPEST = 5  # folders below the data set's: splits/TASK, trident/20x_512px_0px_overlap/features_ENCODER
LEAVES = ("features_", "slide_features_", "patches", "contours", "thumbnails", "visualization", "wsis")
CONFIG_LIMIT = 1_000_000
GDC = "open access at the Genomic Data Commons (NIH Genomic Data Sharing policy): see provider; splits: see provider"
SPLIT = "the folds of k=all.tsv (fold_0, fold_1, ...); where they have no val, a fifth of train by patient"


def _layout(name: str) -> str:
    return f"{name}/**/{TABLE} with config.yaml, and {name}/**/features_ENCODER/SLIDE.h5 (TRIDENT)"


def _tcga(name: str, title: str, classes: tuple[str, ...], projects: str) -> DatasetInfo:
    return DatasetInfo(
        name,
        title,
        f"slide is {' or '.join(classes)} ({projects}), from its tiles",
        classes,
        None,
        GDC,
        "The Cancer Genome Atlas Research Network (https://www.cancer.gov/tcga); layout: Zhang et al.: Accelerating "
        "data processing and benchmarking of AI models for pathology, arXiv:2502.06750 (2025)",
        "https://portal.gdc.cancer.gov (slides), https://github.com/mahmoodlab/TRIDENT (features)",
        f"{SPLIT}; without folds: stratified 5-fold cross-validation by patient",
        _layout(name),
        (name.replace("_", "-"),),
    )


INFOS = (
    DatasetInfo(
        "bracs",
        "breast slides, 547 of 189 patients (Brancati 2022)",
        "slide is benign, atypical or malignant (task coarse) or one of seven types (task fine), from its tiles",
        ("ADH", "DCIS", "FEA", "IC", "N", "PB", "UDH"),
        547,
        "see provider (registration at bracs.icar.cnr.it); Patho-Bench's splits: CC BY-NC-ND 4.0",
        "Brancati et al.: BRACS: a dataset for breast carcinoma subtyping in H&E histology images, Database (2022)",
        "https://www.bracs.icar.cnr.it (slides), https://huggingface.co/datasets/MahmoodLab/Patho-Bench (splits)",
        f"{SPLIT}; the provider's own is 395 train, 65 val, 87 test",
        _layout("bracs"),
    ),
    _tcga("tcga_nsclc", "lung slides (TCGA)", ("LUAD", "LUSC"), "TCGA-LUAD, TCGA-LUSC"),
    _tcga("tcga_brca", "breast slides (TCGA)", ("IDC", "ILC"), "TCGA-BRCA"),
    _tcga("tcga_rcc", "kidney slides (TCGA)", ("CCRCC", "CHRCC", "PRCC"), "TCGA-KIRC, TCGA-KICH, TCGA-KIRP"),
)


def find(info: DatasetInfo, root: Path | None) -> Path | None:
    """The folder, if a table of a task is in it."""
    folder = find_folder(info, root)
    if folder is None:
        return None
    return folder if any((place / TABLE).is_file() for place in _folders(folder)) else None


def load(
    info: DatasetInfo, path: Path, *, task: str = "", encoder: str = "", task_col: str = "", skip: Skip = ()
) -> NamedDataset:
    """The slides of a task, one bag each, read lazily.

    Args:
        task: folder of the task, where there are several.
        encoder: name after ``features_``, or the folders above it too, where there are several.
        task_col: column of the label, where config.yaml does not say and there are several.
        skip: any of "empty", "missing", "unlabelled".

    Raises:
        ReadError: no or several tasks or folders of features, or slides without features (all are named).
        ManifestError: a column that is not there.
    """
    inside = list(_folders(path))
    tables = sorted(p / TABLE for p in inside if (p / TABLE).is_file())
    table_path = _choose(path, tables, task, "task", lambda p: p.parent)
    folders = sorted(p for p in inside if p.name.startswith("features_"))
    features = _choose(path, folders, encoder, "encoder", lambda p: p, "features_")
    config = _config(table_path.parent / "config.yaml")
    table = read_text_table(table_path)
    case, slide = (column(table_path, table.columns, n) for n in ("case_id", "slide_id"))
    folds = sorted((c for c in table.columns if re.fullmatch(r"fold_\d+", c)), key=lambda c: int(c[5:]))
    label = _label_column(table, task_col or str(config.get("task_col") or ""), {case, slide, *folds})
    given = config.get("label_dict")
    words = {str(k): str(v) for k, v in given.items()} if isinstance(given, dict) else {}
    records = []
    for line, cells in table.rows:
        name = bare(cells[slide])
        if reason := bad_id(name):
            raise ManifestError(f"{table_path}: line {line}: slide {name!r} cannot be used, {reason}")
        text = clean_label(re.sub(r"(?<=\d)\.0+$", "", cells[label]))
        extra = {fold: cells[fold] for fold in folds}
        file = feature_file(features, name)
        records.append(BagRecord(name, words.get(text or "", text), cells[case] or None, (file,), extra, line))
    known = {r.bag_id for r in records}
    stray = sorted(p.stem for p in features.iterdir() if p.suffix in feature_suffixes() and p.stem not in known)
    notes = [f"{len(stray)} slides with features are not in {TABLE}: {listing(stray)}"] if stray else []
    return file_dataset(info, path, records, skip=skip, split_columns=folds, notes=notes)


def _folders(path: Path) -> Iterator[Path]:
    """The folder and those in it, as deep as splits and features may lie; folders of a file a slide are not entered."""
    waiting = [(path, 0)]
    while waiting:
        folder, depth = waiting.pop()
        yield folder
        if depth == DEEPEST or folder.name.startswith(LEAVES):
            continue
        with os.scandir(folder) as entries:
            waiting += sorted((Path(e.path), depth + 1) for e in entries if e.is_dir())


def _choose(path: Path, found: list[Path], chosen: str, option: str, place: Any, prefix: str = "") -> Path:
    """The only one of some files or folders, or the one whose folder ends with what was chosen."""
    names = {p: str(place(p).relative_to(path)) for p in found}
    if chosen:
        ends = (chosen, f"{prefix}{chosen}")
        fitting = [p for p in found if any(names[p] == end or names[p].endswith(f"/{end}") for end in ends)]
        if not fitting:
            raise ReadError(f"{path}: no {option} {chosen!r}; there are {listing(names.values())}")
        found = fitting
    if not found:
        what = TABLE if option == "task" else "folder features_ENCODER"
        raise ReadError(f"{path}: has no {what}, here or a few folders deeper; put it there as published")
    if len(found) > 1:
        raise ReadError(
            f"{path}: has several: {listing(names[p] for p in found)}; choose with --options.{option} "
            f"'{names[found[0]]}' ({option}={names[found[0]]!r} in Python)"
        )
    return found[0]


def _config(path: Path) -> dict[str, Any]:
    """The task's configuration; empty where there is none."""
    if not path.is_file():
        return {}
    check_path(path)
    if path.stat().st_size > CONFIG_LIMIT:
        raise ReadError(f"{path}: has {path.stat().st_size:,} bytes; a task's configuration is a few lines")
    with guarded(path, "YAML"):
        text = path.read_text(encoding="utf-8")
        if re.search(r"(^|[\s\[{:,-])[&*]\w", text):  # an alias can stand for itself a billion times
            raise ReadError(f"{path}: has YAML anchors or aliases, which are not read; write the values out")
        content = yaml.safe_load(text)
    return content if isinstance(content, dict) else {}


def _label_column(table: TextTable, name: str, others: set[str]) -> str:
    if name:
        return column(table.path, table.columns, name)
    left = [c for c in table.columns if c not in others]
    if len(left) != 1:
        raise ManifestError(
            f"{table.path}: cannot tell which column is the label: {listing(left)}; name it with --options.task_col "
            "NAME (task_col='NAME' in Python)"
        )
    return left[0]
