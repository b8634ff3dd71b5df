"""GlaS (Warwick-QU): colon tissue, benign or malignant, 165 images of 16 patients.

Published as ``Grade.csv`` (name, patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)) beside
``train_*.bmp``, ``testA_*.bmp`` and ``testB_*.bmp`` with their ``*_anno.bmp``. The published parts share patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from qgmil.bags.bag import Bag
from qgmil.bags.manifest import BagRecord, Manifest
from qgmil.bags.problems import clean_label
from qgmil.bags.splits import Split
from qgmil.bags.tabular import read_text_table
from qgmil.datasets.base import DatasetInfo, NamedDataset, find_marked, nested
from qgmil.datasets.images import colour, read_rgb, tensor, tiles, with_features
from qgmil.datasets.records import Skip, column, file_dataset
from qgmil.errors import ManifestError

MPP = 0.62
TILE, STRIDE = 64, 48
PARTS = ("train", "testA", "testB")

INFOS = (
    DatasetInfo(
        "glas",
        "colon histology, 165 images of 16 patients (Sirinukunwattana 2017)",
        "image is benign or malignant, from its tiles; 0.62 um per pixel",
        ("benign", "malignant"),
        165,
        "research only, no commercial use (glas.grand-challenge.org/Dataset); never redistribute",
        "Sirinukunwattana et al.: Gland segmentation in colon histology images: the GlaS challenge contest, Medical "
        "Image Analysis 35 (2017); and Sirinukunwattana, Snead, Rajpoot, IEEE TMI 34 (2015)",
        "https://warwick.ac.uk/fac/cross_fac/tia/data/glascontest/",
        "recommended: stratified 5-fold cross-validation by patient, scored on pooled predictions (most patients have "
        "one class only); the published parts share patients and look better than they are",
        "glas/Grade.csv with glas/*.bmp as published (or one folder deeper), or glas/bags.csv with features",
        ("warwick_qu", "warwick qu dataset (released 2016_07_08)"),
    ),
)


def find(info: DatasetInfo, root: Path | None) -> Path | None:
    """The folder, if one of the two layouts is in it."""
    return find_marked(info, root, "bags.csv", "Grade.csv")


def load(info: DatasetInfo, path: Path, *, features: str = "", skip: Skip = ()) -> NamedDataset:
    """The images as bags of tiles.

    Args:
        features: for the published images, a folder of features or "colour" (of 64 px tiles, 48 px apart).
        skip: any of "empty", "missing", "unlabelled".

    Raises:
        ReadError: images alone.
        ManifestError: an image that is in no published part.
    """
    if (path / "bags.csv").is_file():
        records: Sequence[BagRecord] = Manifest.read(path / "bags.csv").records
        loaded = file_dataset(info, path, records, skip=skip)
    else:
        records = _graded(nested(path, "Grade.csv"))
        loaded = with_features(info, path, records, features, _colour_bag, skip=skip)
    published, note = _published(records)
    return replace(loaded, published=published, notes=(*loaded.notes, *note))


def _graded(folder: Path) -> list[BagRecord]:
    path = folder / "Grade.csv"
    table = read_text_table(path)
    name, patient, grade = (column(path, table.columns, n) for n in ("name", "patient ID", "grade (GlaS)"))
    records = []
    for line, cells in table.rows:
        part = next((p for p in PARTS if cells[name].startswith(f"{p}_")), None)
        if part is None:
            raise ManifestError(f"{path}: line {line}: {cells[name]!r} is in none of the parts {', '.join(PARTS)}")
        image = folder / f"{cells[name]}.bmp"
        extra = {"official_part": part}
        records.append(BagRecord(cells[name], clean_label(cells[grade]), cells[patient] or None, (image,), extra, line))
    return records


def _colour_bag(record: BagRecord) -> Bag:
    found = list(tiles(read_rgb(record.files[0]), TILE, STRIDE))
    if not found:
        raise ManifestError(f"{record.files[0]}: is smaller than a tile of {TILE} px")
    return Bag(
        tensor([colour(pixels) for _, _, pixels in found]),
        record.label,
        record.bag_id,
        record.patient_id,
        coords=torch.tensor([(x, y) for x, y, _ in found]),
        coord_unit="px",
        tile_size=float(TILE),
        mpp=MPP,
    )


def _published(records: Sequence[BagRecord]) -> tuple[tuple[Split, ...], tuple[str, ...]]:
    """The published parts as a split, and how many patients they share."""
    parts = {r.bag_id: r.extra.get("official_part", "") for r in records}
    train = tuple(i for i, part in parts.items() if part == "train")
    test = tuple(i for i, part in parts.items() if part.startswith("test"))
    if not train or not test:
        return (), ()
    sides = [{r.group for r in records if r.bag_id in ids} for ids in (set(train), set(test))]
    shared, everyone = len(sides[0] & sides[1]), len(sides[0] | sides[1])
    note = f"the published parts share {shared} of {everyone} patients: do not use them to report results"
    return (Split(train, (), test, "official_part"),), (note,) if shared else ()
