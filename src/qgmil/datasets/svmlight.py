"""The text form of Andrews' MILL data: one instance a line, ``instance:bag:label index:value ...``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qgmil.bags.readers.base import check_expansion, check_path, guarded
from qgmil.errors import ReadError


def read_svm(path: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Features ``(N, D)`` float32, the bag of each instance, and the label of each instance ``(N,)``.

    Lines that start with ``#`` are comments; indices count from 1 and those left out are zero.

    Raises:
        ReadError: a line of another form (its number and text are named), or indices far beyond what is stored.
    """
    check_path(path)
    bags: list[str] = []
    labels: list[float] = []
    at: list[tuple[int, int]] = []
    values: list[float] = []
    with guarded(path, "an svm file"), path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            text = line.partition("#")[0].split()
            if not text:
                continue
            try:
                _, bag, label = text[0].split(":")
                pairs = [(int(i), float(v)) for i, _, v in (part.partition(":") for part in text[1:])]
                labels.append(float(label))
            except ValueError as error:
                raise ReadError(
                    f"{path}: line {number} is {line[:60].strip()!r}; expected 'instance:bag:label 1:value 2:value ...'"
                ) from error
            if any(not 1 <= i < 2**62 for i, _ in pairs) or not np.isfinite([labels[-1], *(v for _, v in pairs)]).all():
                raise ReadError(f"{path}: line {number} has an index below 1 or a value that is not finite")
            at += [(len(bags), i - 1) for i, _ in pairs]
            values += [v for _, v in pairs]
            bags.append(bag)
    if not at:
        raise ReadError(f"{path}: has no instances")
    rows, columns = np.array(at, dtype=np.int64).T
    shape = (len(bags), int(columns.max()) + 1)
    check_expansion(path, shape[0] * shape[1] * 4, path.stat().st_size, f"the largest index, {shape[1]:,},")
    features = np.zeros(shape, dtype=np.float32)
    features[rows, columns] = values
    return features, bags, np.array(labels)
