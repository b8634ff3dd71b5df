"""DSMIL: a .pt tensor ``(N, D + C)`` whose last C columns hold the one-hot label of the bag, in every row.

Nothing in such a file tells it from one of plain features, so it is read only where the format is named: read as plain
features, the label would be among them. The number of label columns is given as the data set (``--format dsmil
--dataset 2``). Without it, all last columns are taken that are 0 or 1 and the same in every row, if exactly one of
them is 1: never too few, so that no label can be left among the features. Where a last feature happens to look the
same it goes too, and the width of the bag gives that away.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import torch
from torch import Tensor

from qgmil.bags import hints
from qgmil.bags.readers import pt
from qgmil.bags.readers.base import BagFile
from qgmil.bags.readers.pt import SUFFIXES as SUFFIXES
from qgmil.errors import ReadError

NAME = "dsmil"


def recognises(path: Path, file: h5py.File | None) -> bool:
    """Never: only the user knows."""
    return False


def read(path: Path, dataset: str | None = None) -> BagFile:
    """Read the features without the columns of the label; `dataset` is the number of those.

    Raises:
        ReadError: the last columns are no label, or it cannot be told how many of them are.
    """
    table = pt.read(path).features
    return BagFile(table[:, : table.shape[1] - _columns(path, table, dataset)].contiguous())


def label(path: Path, dataset: str | None = None) -> str | None:
    """The label as text: the index of its column ("0" or "1" where there is one column); None where all are 0."""
    table = pt.read(path).features
    one_hot = table[0, table.shape[1] - _columns(path, table, dataset) :]
    if len(one_hot) == 1:
        return str(int(one_hot[0]))
    return str(int(one_hot.argmax())) if bool(one_hot.any()) else None


def _columns(path: Path, table: Tensor, dataset: str | None) -> int:
    width = table.shape[1]
    like_label = ((table == 0) | (table == 1)).all(dim=0) & (table == table[:1]).all(dim=0)
    others = (~like_label).nonzero()
    run = width - 1 - int(others[-1]) if len(others) else width
    if dataset is None:
        if run == width or int((table[0, width - run :] == 1).sum()) != 1:
            raise ReadError(
                f"{path}: cannot tell how many of its {width} columns are the label (the last {run} could be); say "
                f"how many classes there are with {hints.option('dataset', '2')}"
            )
        return run
    if not (dataset.isascii() and dataset.isdigit() and 0 < len(dataset) < 10 and 0 < int(dataset) < width):
        raise ReadError(
            f"{path}: for DSMIL, {hints.option('dataset', dataset)} must be the number of label columns, from 1 to "
            f"{width - 1}"
        )
    columns = int(dataset)
    if columns > run or int(table[0, width - columns :].sum()) > 1:
        last = [round(v, 4) for v in torch.as_tensor(table[0, width - columns :], dtype=torch.float64).tolist()[:20]]
        raise ReadError(
            f"{path}: the last {columns} columns are no one-hot label that is the same in every row (the first row has "
            f"{last}); check {hints.option('dataset', dataset)}, or read it as plain features with "
            f"{hints.option('format', 'pt')}"
        )
    return columns
