"""A small manifest of every kind of bag, for the tests of the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from qgmil.bags.store.layout import HEADER

ROWS = (2, 3, 4, 5)
WIDTH = 6


def values(i: int, dtype: type = np.float16) -> np.ndarray:
    """Features of bag i: every number is another."""
    start = sum(ROWS[:i]) * WIDTH
    return np.arange(start, start + ROWS[i] * WIDTH, dtype=dtype).reshape(ROWS[i], WIDTH)


def make_manifest(folder: Path) -> Path:
    """Bags a (h5 with all there is), b (npy), c (npz with fractional coordinates), d (npy); two of patient p."""
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / "s0.h5", "w") as file:
        file["features"] = values(0)
        file["coords"] = np.array([[0, 256], [512, 0]])
        file["instance_labels"] = np.array([1, 0])
        file["instance_ids"] = ["tile one", 'ü"\n']
    np.save(folder / "s1.npy", values(1))
    np.savez(folder / "s2.npz", features=values(2), coords=np.arange(8.0).reshape(4, 2) / 4)
    np.save(folder / "s3.npy", values(3))
    (folder / "bags.csv").write_text(
        "bag_id,patient_id,label,features,fold,grade,note\n"
        "a,p,1,s0.h5,0,high,\nb,q,0,s1.npy,1,low,x\nc,p,1,s2.npz,0,high,y\nd,,0,s3.npy,1,,z\n"
    )
    return folder / "bags.csv"


def rewrite(store: Path, name: str, content: bytes) -> None:
    """Put other content into a file of a store, with a header that agrees."""
    (store / name).write_bytes(content)
    change_json(store / HEADER, lambda said: said["files"][name].update(bytes=len(content)))


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    """Change what a JSON file says in place."""
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))
