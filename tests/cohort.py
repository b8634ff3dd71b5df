"""A small made cohort on disk: two classes, several bags a patient, a few witness instances in positive bags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

WIDTH = 12


def features(rng: np.random.Generator, n: int, positive: bool, width: int = WIDTH) -> np.ndarray:
    """Noise, and in a positive bag a quarter of instances shifted."""
    x = rng.normal(size=(n, width)).astype(np.float32)
    if positive:
        x[: max(1, n // 4), :3] += 3.0
    return x


def make_cohort(folder: Path, *, patients: int = 20, bags_per_patient: int = 2, seed: int = 0) -> Path:
    """Write npy files and ``bags.csv`` (bag_id, patient_id, label, features, fold); returns the manifest."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features").mkdir(exist_ok=True)
    rows = ["bag_id,patient_id,label,features,fold"]
    for p in range(patients):
        label = "tumour" if p % 2 else "benign"
        for b in range(bags_per_patient):
            name = f"p{p:02d}_{b}"
            np.save(folder / "features" / f"{name}.npy", features(rng, int(rng.integers(4, 20)), label == "tumour"))
            rows.append(f"{name},P{p:02d},{label},features/{name}.npy,{(p // 2) % 3}")
    manifest = folder / "bags.csv"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


def write_tiles(path: Path, x: np.ndarray, names: Sequence[str], *, columns: int, edge: int = 20) -> None:
    """A slide's features with the places of its tiles, row by row, and their names; the file says no unit."""
    with h5py.File(path, "w") as file:
        file["features"] = x
        file["coords"] = np.array([(edge * (i % columns), edge * (i // columns)) for i in range(len(x))])
        file["instance_ids"] = list(names)


#: A model and recipe that learn the cohort in a second.
SMALL = {
    "options": {"width": 32, "num_heads": 4, "ffn_dim": 32, "dropout": 0.1},
    "epochs": 12,
    "lr": 3e-3,
    "batch_size": 8,
    "device": "cpu",
    "precision": "32",
}
