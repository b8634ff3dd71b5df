"""CAMELYON16, PANDA and RSNA-ICH as features in torchmil's layout, with their official train and test parts.

``patches_SIZE/features/features_ENCODER/*.npy`` (RSNA: ``features/features_ENCODER``) beside ``labels``, the truth of
the instances (``inst_labels``, ``patch_labels`` or ``slice_labels``), ``coords``, and ``splits.csv`` (bag_name, split).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qgmil.bags.manifest import BagRecord
from qgmil.bags.problems import bad_id
from qgmil.bags.readers import bag_label, feature_suffixes
from qgmil.bags.readers.base import listing
from qgmil.bags.tabular import read_text_table
from qgmil.datasets.base import DatasetInfo, NamedDataset, find_marked, nested
from qgmil.datasets.records import Skip, column, feature_file, file_dataset
from qgmil.errors import ManifestError, ReadError

ADAPTED = "features as adapted by torchmil: Apache-2.0"
SPLIT = "official train and test (splits.csv); validation: a fifth of train"
HUB = "https://huggingface.co/datasets/torchmil/"
TORCHMIL = "features: Castro-Macias et al.: torchmil, arXiv:2509.08129 (2025)"


def _layout(name: str, patches: str) -> str:
    return f"{name}/splits.csv, {name}/{patches}features/features_ENCODER/*.npy, {name}/{patches}labels/*.npy"


INFOS = (
    DatasetInfo(
        "camelyon16",
        "lymph-node slides, 399 (Ehteshami Bejnordi 2017)",
        "slide shows a metastasis (1) or not (0), from its tiles; the truth of each tile is known",
        ("0", "1"),
        399,
        f"CC0 (camelyon17.grand-challenge.org/Data); {ADAPTED}",
        "Ehteshami Bejnordi et al.: Diagnostic assessment of deep learning algorithms for detection of lymph node "
        f"metastases in women with breast cancer, JAMA 318 (2017); {TORCHMIL}",
        f"{HUB}Camelyon16_MIL",
        f"{SPLIT}. Patients are not named in the files",
        _layout("camelyon16", "patches_512/"),
        ("camelyon16_mil",),
    ),
    DatasetInfo(
        "panda",
        "prostate biopsies, 10,616 (Bulten 2022)",
        "biopsy shows cancer (1) or not (0), from its tiles; the truth of each tile is known",
        ("0", "1"),
        10616,
        f"CC BY-NC-SA, the version at the provider (kaggle.com/c/prostate-cancer-grade-assessment); {ADAPTED}",
        "Bulten et al.: Artificial intelligence for diagnosis and Gleason grading of prostate cancer: the PANDA "
        f"challenge, Nature Medicine 28 (2022); {TORCHMIL}",
        f"{HUB}PANDA_MIL",
        f"{SPLIT}. Patients are not published: whether one is on both sides cannot be checked",
        _layout("panda", "patches_512/"),
        ("panda_mil",),
    ),
    DatasetInfo(
        "rsna",
        "head CT scans (RSNA 2019 haemorrhage challenge, part of it)",
        "scan shows an intracranial haemorrhage (1) or not (0), from its slices; the truth of each slice is known",
        ("0", "1"),
        None,
        f"non-commercial research and education only, citation required (RSNA); {ADAPTED}",
        "Flanders et al.: Construction of a machine learning dataset through collaboration: the RSNA 2019 brain CT "
        f"hemorrhage challenge, Radiology: Artificial Intelligence 2 (2020); {TORCHMIL}",
        f"{HUB}RSNA_ICH_MIL",
        f"{SPLIT}. Patients are not named in the files: whether one is on both sides cannot be checked",
        _layout("rsna", ""),
        ("rsna_ich_mil", "rsna_ich"),
    ),
)


def find(info: DatasetInfo, root: Path | None) -> Path | None:
    """The folder, if the official split is in it."""
    return find_marked(info, root, "splits.csv")


def load(info: DatasetInfo, path: Path, *, encoder: str = "", patch_size: int = 0, skip: Skip = ()) -> NamedDataset:
    """The bags of the official parts, read lazily.

    Args:
        encoder: name after ``features_``, where there are several.
        patch_size: number after ``patches_``, where there are several; 0: the only one.
        skip: any of "empty", "missing", "unlabelled". torchmil itself leaves out bags without features.

    Raises:
        ReadError: several encoders or patch sizes to choose from, bags without files, labels that are no class.
    """
    folder = nested(path, "splits.csv")
    base = _only(folder, "patches_", str(patch_size or ""), "patch_size") or folder
    features = _only(base / "features", "features_", encoder, "encoder") or base / "features"
    table = read_text_table(folder / "splits.csv")
    name, split = (column(table.path, table.columns, n) for n in ("bag_name", "split"))
    records = []
    for line, cells in table.rows:
        if reason := bad_id(cells[name]):
            raise ManifestError(f"{table.path}: line {line}: bag {cells[name]!r} cannot be used, {reason}")
        file = feature_file(features, cells[name])
        label = _label(file, info.classes)
        records.append(BagRecord(cells[name], label, None, (file,), {"split": cells[split]}, line))
    known = {r.bag_id for r in records}
    stray = sorted(p.stem for p in features.glob("*") if p.suffix in feature_suffixes() and p.stem not in known)
    notes = [f"{len(stray)} bags with features are in no official part: {listing(stray)}"] if stray else []
    return file_dataset(info, path, records, skip=skip, split_columns=("split",), notes=notes)


def _only(folder: Path, prefix: str, chosen: str, option: str) -> Path | None:
    """The folder inside whose name starts with the prefix; None where there is none and none was asked for."""
    found = sorted(p for p in folder.glob(f"{prefix}*") if p.is_dir())
    if chosen:
        found = [p for p in found if p.name == f"{prefix}{chosen}"]
        if not found:
            raise ReadError(f"{folder}: has no folder {prefix}{chosen}")
    if len(found) > 1:
        names = [p.name.removeprefix(prefix) for p in found]
        raise ReadError(
            f"{folder}: has {listing(names)}; choose with --options.{option} {names[0]} "
            f"({option}={names[0]!r} in Python)"
        )
    return found[0] if found else None


def _label(file: Path, classes: Sequence[str]) -> str | None:
    """The class that lies beside the features of a bag; None where they or it are not there."""
    text = bag_label(file, format="torchmil") if file.is_file() else None
    if text is not None and text not in classes:
        raise ReadError(f"{file}: its label is {text}; expected {' or '.join(classes)}")
    return text
