"""A small made cohort on disk: two classes, several bags a patient, a few witness instances in positive bags."""

from __future__ import annotations

from pathlib import Path

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


#: A model and recipe that learn the cohort in a second.
SMALL = {
    "options": {"width": 32, "num_heads": 4, "ffn_dim": 32, "dropout": 0.1},
    "epochs": 12,
    "lr": 3e-3,
    "batch_size": 8,
    "device": "cpu",
    "precision": "32",
}
