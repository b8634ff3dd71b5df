"""Plain folders of feature files with a table of labels, as the tests of manifests need them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qgmil.bags.layouts.build import BuiltManifest, build_manifest


def plain(root: Path, *names: str, table: str = "", rows: int = 3) -> Path:
    """A folder of .npy bags, and beside it a table of labels."""
    for name in names:
        (root / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / "f" / f"{name}.npy", np.ones((rows, 4), np.float32))
    (root / "labels.csv").write_bytes(table.encode())
    return root / "labels.csv"


def build(root: Path, *names: str, table: str, **options: object) -> BuiltManifest:
    return build_manifest(root / "f", plain(root, *names, table=table), **options)  # type: ignore[arg-type]


def kinds(built: BuiltManifest) -> list[tuple[str, str | None]]:
    return [(p.kind, p.bag_id) for p in built.left_out]
