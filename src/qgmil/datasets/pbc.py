"""PBC: single blood cells of known type, from which bags with a known share of immature granulocytes are made.

The cells are split first, stratified by subtype, and bags are drawn inside each part, so that no cell is on two sides.
A negative bag is a normal differential; in a positive one the share w of the cells is immature granulocytes, and every
such cell is marked, so that attention can be scored as a detector. Sizes are drawn in pairs, one bag of each class:
the number of cells says nothing about the label.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset
from qgmil.bags.readers import read_bag_file
from qgmil.bags.readers.base import listing
from qgmil.bags.splits import Split
from qgmil.bags.stratify import generator
from qgmil.bags.tabular import read_text_table
from qgmil.datasets.base import DatasetInfo, NamedDataset, find_marked
from qgmil.datasets.records import column
from qgmil.errors import ConfigError, ManifestError, ReadError

#: Share of each cell type in normal blood.
DIFFERENTIAL = {"neutrophil": 0.60, "lymphocyte": 0.25, "monocyte": 0.08, "eosinophil": 0.05, "basophil": 0.02}
TARGET = "ig"
CLASSES = ("negative", "positive")
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}

INFOS = (
    DatasetInfo(
        "pbc",
        "bags made of 6,000 single blood cells (Acevedo 2020)",
        "bag holds immature granulocytes or not, from 50 to 200 cells; the truth of each cell is known",
        CLASSES,
        None,
        "CC BY 4.0",
        "Acevedo et al.: A dataset of microscopic peripheral blood cell images for development of automatic "
        "recognition systems, Data in Brief 30 (2020); doi:10.17632/snkd93bnjr.1",
        "https://data.mendeley.com/datasets/snkd93bnjr/1",
        "made with the bags: cells split 60/20/20 by subtype, bags drawn inside each part (no patient ids are "
        "published, so the parts may share donors)",
        "pbc/cells.csv (row, cell_id, class, subtype) and pbc/features_ENCODER.npy with one row a cell",
        ("pbc_dataset_normal_dib",),
    ),
)


def find(info: DatasetInfo, root: Path | None) -> Path | None:
    """The folder, if the table of cells is in it."""
    return find_marked(info, root, "cells.csv", deep=False)


def load(
    info: DatasetInfo,
    path: Path,
    *,
    prevalence: float = 0.05,
    bags: int = 240,
    seed: int = 0,
    sizes: tuple[int, int] = (50, 200),
    features: str = "",
) -> NamedDataset:
    """Make the bags.

    Args:
        prevalence: share w of immature granulocytes in a positive bag; at least one cell.
        bags: how many in all, half of them positive; 60/20/20 in the parts.
        seed: of the split of the cells and of every draw; the same seed gives the same bags.
        sizes: fewest and most cells a bag.
        features: name of the file of features, where the folder has several.

    Raises:
        ConfigError: a value out of range, or larger bags than a part has cells for.
        ReadError, ManifestError: files that are not there or do not agree.
    """
    if not 0 < prevalence < 1:
        raise ConfigError(f"prevalence={prevalence} must be above 0 and below 1")
    if bags < 10 or bags % 2:
        raise ConfigError(f"bags={bags} must be even and at least 10: one of each class in each part")
    if len(sizes) != 2 or not 1 < sizes[0] <= sizes[1]:
        raise ConfigError(f"sizes={sizes} must be the fewest (2 or more) and the most cells of a bag")
    ids, types, subtypes = _cells(path / "cells.csv")
    file = _feature_file(path, features)
    matrix = read_bag_file(file).features
    if len(matrix) != len(ids):
        raise ReadError(f"{file}: has {len(matrix)} rows for the {len(ids)} cells of {path / 'cells.csv'}")
    parts = split_cells(subtypes, seed)
    pairs = _pairs(bags // 2)
    made: dict[str, list[Bag]] = {}
    for number, (side, rows) in enumerate(parts.items()):
        draw = _Draw(side, rows, types, generator(seed, 11, number))
        chosen = [pair for _ in range(pairs[side]) for pair in draw.pair(prevalence, sizes)]
        made[side] = [
            _bag(f"{side}_{i:04d}", matrix, ids, types, cells, CLASSES[i % 2]) for i, cells in enumerate(chosen)
        ]
    train, val, test = (tuple(b.bag_id for b in made[side]) for side in SHARES)
    split = Split(train, val, test, "split")
    dataset = BagDataset.from_bags([bag for side in SHARES for bag in made[side]])
    note = "no patient ids are published: independence of patients cannot be claimed"
    return NamedDataset(info, dataset, lambda: (split,), path, ("split",), notes=(note,))


def split_cells(subtypes: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The rows of the cells of each part, 60/20/20 within every subtype."""
    rng = generator(seed, 10)
    parts: dict[str, list[np.ndarray]] = {side: [] for side in SHARES}
    for subtype in sorted(set(subtypes.tolist())):
        rows = rng.permutation(np.flatnonzero(subtypes == subtype))
        ends = np.rint(np.cumsum(list(SHARES.values())) * len(rows)).astype(int)
        for side, part in zip(SHARES, np.split(rows, ends[:-1]), strict=True):
            parts[side].append(part)
    return {side: np.sort(np.concatenate(rows)) for side, rows in parts.items()}


class _Draw:
    """Draws bags from the cells of one part. Inside a bag every cell is another; bags may share cells."""

    def __init__(self, side: str, rows: np.ndarray, types: np.ndarray, rng: np.random.Generator) -> None:
        self.side, self.rng = side, rng
        self.pools = {kind: rows[types[rows] == kind] for kind in (*DIFFERENTIAL, TARGET)}

    def pair(self, prevalence: float, sizes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """A negative and a positive bag of the same size."""
        size = int(self.rng.integers(sizes[0], sizes[1], endpoint=True))
        return self._cells(size, 0), self._cells(size, max(1, round(prevalence * size)))

    def _cells(self, size: int, targets: int) -> np.ndarray:
        normal = self.rng.multinomial(size - targets, list(DIFFERENTIAL.values()))
        wanted = {**dict(zip(DIFFERENTIAL, normal.tolist(), strict=True)), TARGET: targets}
        rows = [self._take(kind, count) for kind, count in wanted.items() if count]
        return self.rng.permutation(np.concatenate(rows))  # the order of the cells must not tell

    def _take(self, kind: str, count: int) -> np.ndarray:
        pool = self.pools[kind]
        if count > len(pool):
            raise ConfigError(
                f"a bag needs {count} cells of type {kind} but the {self.side} part has {len(pool)}; ask for smaller "
                "bags with --options.sizes 20,50 (sizes=(20, 50) in Python)"
            )
        return self.rng.choice(pool, count, replace=False)


def _bag(name: str, matrix: torch.Tensor, ids: list[str], types: np.ndarray, rows: np.ndarray, label: str) -> Bag:
    return Bag(
        matrix[torch.from_numpy(rows)],
        label,
        name,
        instance_labels=torch.from_numpy((types[rows] == TARGET).astype(np.int64)),
        instance_ids=tuple(ids[row] for row in rows.tolist()),
    )


def _pairs(pairs: int) -> dict[str, int]:
    """Pairs of bags of each part, which add up."""
    val, test = (max(1, round(SHARES[side] * pairs)) for side in ("val", "test"))
    return {"train": pairs - val - test, "val": val, "test": test}


def _cells(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The ids, types and subtypes of the cells, in the order of the rows of the features."""
    table = read_text_table(path)
    names = [column(path, table.columns, n) for n in ("row", "cell_id", "class", "subtype")]
    rows = [[cells[name] for name in names] for _, cells in table.rows]
    wrong = next((i for i, row in enumerate(rows) if row[0] != str(i)), None)
    if wrong is not None:
        raise ManifestError(f"{path}: row {rows[wrong][0]!r} where {wrong} should be; restore the published order")
    types = np.array([row[2] for row in rows])
    lacking = [kind for kind in (*DIFFERENTIAL, TARGET) if kind not in types]
    if lacking:
        raise ManifestError(f"{path}: there are no cells of type {listing(lacking)}")
    return [row[1] for row in rows], types, np.array([f"{row[2]}/{row[3]}" for row in rows])


def _feature_file(path: Path, name: str) -> Path:
    if name:
        return path / name
    found = sorted(path.glob("features*.npy"))
    if len(found) != 1:
        raise ReadError(
            f"{path}: has {listing(p.name for p in found)} for features; put one features_ENCODER.npy there, or name "
            "it with --options.features NAME (features='NAME' in Python)"
        )
    return found[0]
