"""`verify_store`: read a whole store once and list what is no longer as it was packed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import torch

from qgmil.bags.bag import all_finite
from qgmil.bags.problems import Problem
from qgmil.bags.readers.base import guarded
from qgmil.bags.store.layout import AGAIN, CHECKSUMS, DIGEST_BYTES, FEATURES, open_member, read_member
from qgmil.bags.store.reading import Store, open_store
from qgmil.errors import ReadError

CHUNK = 2**22  # bytes read at a time
CHANGED = f"has changed since the store was packed (its checksum is another); {AGAIN}"


def verify_store(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """Every file against its checksum, every bag's features against theirs; memory stays at a few megabytes.

    Kinds of problems: "broken" (with the bag where one is to blame) and "nan".

    Args:
        path: a store.
        progress: called with (bags done, bags in all).
    """
    problems: list[Problem] = []
    try:
        with guarded(Path(path), "a store"):
            store = open_store(path)
            for name, member in store.header.members.items():
                if name != FEATURES and _digest(_chunks(store.path, name)) != member.digest:
                    problems.append(Problem("broken", None, f"{store.path / name}: {CHANGED}"))
            problems += _verify_bags(store, progress)
    except ReadError as error:
        problems.append(Problem("broken", None, str(error)))
    return problems


def _verify_bags(store: Store, progress: Callable[[int, int], None] | None) -> Iterator[Problem]:
    expected = read_member(store.path, CHECKSUMS)
    with open_member(store.path, FEATURES) as file:
        for i, bag_id in enumerate(store.index.bag_ids):
            state = hashlib.blake2b(digest_size=DIGEST_BYTES)
            odd = None
            for first, chunk in _rows(file, store, int(store.offsets[i + 1] - store.offsets[i])):
                state.update(chunk)
                odd = odd or _not_finite(store, chunk, first)
            where = f"bag {bag_id!r}: {{}} [{store.path / FEATURES}]"
            if state.digest() != expected[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]:
                yield Problem("broken", bag_id, where.format(CHANGED))
            elif odd is not None:
                yield Problem("nan", bag_id, where.format(f"{odd}; pack it again"))
            if progress is not None:
                progress(i + 1, len(store))


def _rows(file: IO[bytes], store: Store, rows: int) -> Iterator[tuple[int, bytearray]]:
    """The next rows of the features in chunks, each with the number of its first row."""
    size = store.header.width * store.header.dtype.itemsize
    step = max(1, CHUNK // size)
    for first in range(0, rows, step):
        yield first, bytearray(file.read(min(step, rows - first) * size))


def _not_finite(store: Store, chunk: bytearray, first: int) -> str | None:
    features = torch.frombuffer(chunk, dtype=store.header.dtype).view(-1, store.header.width)
    if all_finite(features):
        return None
    row, column = (int(i) for i in (~torch.isfinite(features)).nonzero()[0])
    return f"feature {column} of instance {first + row} is {float(features[row, column])}"


def _chunks(folder: Path, name: str) -> Iterator[bytes]:
    with open_member(folder, name) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _digest(chunks: Iterator[bytes]) -> str:
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()
