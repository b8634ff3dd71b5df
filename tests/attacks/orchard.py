"""Trees of files for every reader, to be damaged: good ones, and hostile ones that are refused for now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import polars as pl
import torch
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from bags.layouts import BAGS, WRITERS, bag_features, write_table
from bags.stores import make_manifest
from qgmil.bags.readers import readers
from qgmil.bags.store.pack import pack_store

SECRET = np.full((3, 6), 42.0, np.float32)


class Fruit(NamedTuple):
    """A file or folder that can be read: what `ACTS` are tried on it, and what may be damaged for that."""

    path: str
    acts: tuple[str, ...]
    options: dict[str, Any]
    files: tuple[str, ...]


def make_outside(folder: Path) -> Path:
    """A folder of good files that nothing inside may lead to."""
    folder.mkdir(parents=True)
    with h5py.File(folder / "secret.h5", "w") as file:
        file["features"] = SECRET
    (folder / "secret.bin").write_bytes(SECRET.tobytes())
    np.save(folder / "secret.npy", SECRET)
    return folder


def plant(root: Path, outside: Path) -> dict[str, list[Fruit]]:
    """Make all trees under `root`; for each reader (and each table, store, ...) what can be tried.

    Paths are relative to `root`.
    """
    found: dict[str, list[Fruit]] = {}
    for name, write in WRITERS.items():
        for sample in write(root / name):
            known = sample.expected
            options = {"format": known.format, "dataset": known.dataset}
            near = _near(root / name, sample.cell)
            found.setdefault(known.reader, []).append(_bag(root, known.reader, sample.cell, options, near))
    for name, make in H5_KINDS.items():
        path = root / "kinds" / f"{name}.h5"
        path.parent.mkdir(exist_ok=True)
        make(path, outside)
        for reader in ("h5", "trident"):
            found[reader].append(_bag(root, reader, path, {"format": reader}, [path]))
    for name, tensors in _pt_kinds().items():
        path = root / "kinds" / f"{name}.pt"
        torch.save(tensors, path, _use_new_zipfile_serialization=name != "legacy")
        found["pt"].append(_bag(root, "pt", path, {}, [path]))
    path = root / "kinds" / "texts.npz"
    np.savez_compressed(path, features=SECRET, instance_ids=np.array(["a", "bb", "c"]), instance_labels=np.arange(3))
    found["npz"].append(_bag(root, "npz", path, {}, [path]))
    assert set(found) == set(readers()), "every reader has trees"
    found["store"] = [_store(root)]
    found["table"], found["parquet"], found["split"] = _tables(root)
    found["mat"], found["svm"] = _corel(root)
    found["image"] = _images(root)
    return found


def _bag(root: Path, reader: str, cell: Path, options: dict[str, Any], files: list[Path]) -> Fruit:
    known = readers()[reader]
    acts = [
        "read",
        "shape",
        *(["label"] if known.label else []),
        *(["parts"] if known.parts and "::" not in str(cell) else []),
    ]
    inside = tuple(str(f.relative_to(root)) for f in files)
    return Fruit(str(cell.relative_to(root)), tuple(acts), options, inside)


def _near(tree: Path, cell: Path) -> list[Path]:
    """The files that reading a bag looks at: its own, those of its stem in the tree, and configurations."""
    own = Path(str(cell).partition("::")[0])
    if own.is_dir():
        return sorted(own.iterdir())[:3]
    around = [own, *tree.rglob(f"{own.stem}.*"), *own.parent.glob("*.json")]
    return sorted({f for f in around if f.is_file()})


def _good_h5(path: Path, outside: Path, **how: Any) -> None:
    with h5py.File(path, "w", **how) as file:
        features = np.linspace(1, 2, 240, dtype=np.float32).reshape(40, 6)
        file.create_dataset(
            "features", data=features, chunks=(16, 6), compression="gzip", shuffle=True, fletcher32=True
        )
        file.create_dataset("coords", data=np.zeros((40, 2), int), chunks=(8, 2), maxshape=(None, 2))
        file["coords"].attrs.update({"patch_size_level0": 256, "target_magnification": "None", "patch_size": [1, 2]})
        file["instance_ids"] = [f"x{i}" for i in range(40)]
        file["instance_labels"] = np.arange(40) % 2
        file["group/alias"] = h5py.SoftLink("/features")


def _latest(path: Path, outside: Path) -> None:
    _good_h5(path, outside, libver="latest")


def _lzf(path: Path, outside: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=np.ones((40, 6), np.float16), chunks=(16, 6), compression="lzf")
        file["coords"] = np.zeros((40, 2))
        file["coords"].attrs["patch_size_level0"] = 256.5
        file["instance_ids"] = np.array([b"abc"] * 40)


def _external_links(path: Path, outside: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in ("features", "coords", "instance_ids"):
            file[name] = h5py.ExternalLink(str(outside / "secret.h5"), "/features")
        file["group/soft"] = h5py.SoftLink("/features")


def _external_storage(path: Path, outside: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (3, 6), "f4", external=[(str(outside / "secret.bin"), 0, 72)])
        file.create_dataset("coords", (3, 2), "i8", external=[(str(outside / "secret.bin"), 0, 48)])


def _virtual(path: Path, outside: Path) -> None:
    layout = h5py.VirtualLayout((3, 6), "f4", maxshape=(None, 6))
    layout[:] = h5py.VirtualSource(str(outside / "secret.h5"), "features", (3, 6))
    with h5py.File(path, "w", libver="latest") as file:
        file.create_virtual_dataset("features", layout)
        file.create_virtual_dataset("coords", layout)


H5_KINDS: dict[str, Callable[[Path, Path], None]] = {
    "good": _good_h5,
    "latest": _latest,
    "lzf": _lzf,
    "external_links": _external_links,
    "external_storage": _external_storage,
    "virtual": _virtual,
}


def _pt_kinds() -> dict[str, Any]:
    features = torch.arange(12.0).view(3, 4)
    more = {"features": features, "coords": torch.zeros(3, 2, dtype=torch.long), "instance_labels": torch.arange(3)}
    return {"legacy": more, "views": {"features": features[1:].half(), "other": {"a": [1, 2.5, None, ("x", True)]}}}


def _store(root: Path) -> Fruit:
    made = pack_store(make_manifest(root / "packed"), root / "packed" / "store").path
    files = tuple(str(f.relative_to(root)) for f in sorted(made.iterdir()))
    return Fruit(str(made.relative_to(root)), ("open", "verify", "check"), {}, files)


def _tables(root: Path) -> tuple[list[Fruit], list[Fruit], list[Fruit]]:
    folder = root / "tables"
    cells = write_table(folder / "bags.csv", ["bag_id", "patient_id", "label", "features", "fold"], _rows(folder))
    semicolons = folder / "semicolons.csv"
    semicolons.write_bytes(b"\xef\xbb\xbf" + cells.read_bytes().replace(b",", b";"))
    long = write_table(
        folder / "long.csv", ["bag", "label", "f0", "f1"], [(i // 2, i // 4, i, i / 3) for i in range(8)]
    )
    bare = folder / "bare.csv"
    bare.write_text("".join(long.read_text().splitlines(keepends=True)[1:]))
    labels = write_table(
        root / "plain_tree" / "labels.csv", ["slide", "case_id", "label"], [("a", "p", 1), ("b.svs", "q", 0)]
    )
    for name in ("a", "b"):
        np.save(labels.parent / f"{name}.npy", SECRET)
    write_table(
        folder / "splits_0.csv", ["", "train", "val", "test"], [(0, "slide_a", "slide_c", ""), (1, "slide_b", "", "")]
    )
    write_table(
        folder / "splits_0_bool.csv",
        ["", "train", "val", "test"],
        [("a", True, False, False), ("b", False, True, True)],
    )
    folds = [("a", "p", 1, "train", "test"), ("b", "q", 0, "test", "train")]
    write_table(folder / "k=all.tsv", ["slide_id", "case_id", "label", "fold_0", "fold_1"], folds, delimiter="\t")
    for table in (cells, long):
        pl.read_csv(table).write_parquet(table.with_suffix(".parquet"))
    names = ["tables/bags.csv", "tables/semicolons.csv", "tables/long.csv", "tables/bare.csv"]
    tables = [Fruit(name, ("open", "check"), {}, (name,)) for name in names]
    name = "plain_tree/labels.csv"
    tables.append(Fruit("plain_tree", ("build",), {"labels": name}, (name,)))
    names = ["tables/bags.parquet", "tables/long.parquet"]
    parquet = [Fruit(name, ("open",), {}, (name,)) for name in names]
    names = ["tables/splits_0.csv", "tables/splits_0_bool.csv", "tables/k=all.tsv"]
    return tables, parquet, [Fruit(name, ("splits",), {}, (name,)) for name in names]


def _rows(folder: Path) -> list[tuple[object, ...]]:
    """The rows of a manifest, whose files are made beside it."""
    folder.mkdir()
    for bag in BAGS:
        np.save(folder / f"{bag.bag_id}.npy", bag_features(bag))
    return [(bag.bag_id, bag.patient, bag.label, f"{bag.bag_id}.npy", 0) for bag in BAGS]


def _corel(root: Path) -> tuple[list[Fruit], list[Fruit]]:
    folder = root / "corel"
    folder.mkdir()
    x, ids, labels = SECRET * np.arange(6), [[1, 1, 2]], [[-1, 1, -1]]
    pairs = np.empty((2, 2), dtype=object)
    pairs[:] = [[x[:2], 1.0], [x[2:], 0.0]]
    struct = np.empty((1, 2), dtype=[("instance", object), ("label", object), ("name", object)])
    struct[0, 0], struct[0, 1] = (x[:2], 1.0, "one"), (x[2:], 0.0, "two")
    for compressed in (False, True):
        kind = "packed" if compressed else "plain"
        flat = {"features": csc_matrix(x), "bag_ids": ids, "labels": labels}
        for name, content in (("flat", flat), ("cells", {"bags": pairs}), ("structs", {"data": struct})):
            savemat(folder / f"{name}_{kind}.mat", content, do_compression=compressed)
    (folder / "fox.svm").write_text("# instance:bag:label\n1:1:-1 1:1 3:2\n2:1:1 2:3.5\n3:2:-1 1:5 2:6e-3\n")
    mats = [Fruit(f"corel/{f.name}", ("corel",), {}, (f"corel/{f.name}",)) for f in sorted(folder.glob("*.mat"))]
    return mats, [Fruit("corel/fox.svm", ("corel",), {}, ("corel/fox.svm",))]


def _images(root: Path) -> list[Fruit]:
    folder = root / "images"
    folder.mkdir()
    pixels = np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3)
    for name, how in (
        ("a.png", {}),
        ("a.jpg", {}),
        ("a.bmp", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("b.tif", {}),
    ):
        Image.fromarray(pixels).save(folder / name, **how)
    return [Fruit(f"images/{f.name}", ("image",), {}, (f"images/{f.name}",)) for f in sorted(folder.iterdir())]


def save(found: dict[str, list[Fruit]], path: Path) -> None:
    """Write down what was planted, for another process."""
    path.write_text(json.dumps(found))


def load(path: Path) -> dict[str, list[Fruit]]:
    """Read what `save` wrote."""
    return {name: [Fruit(*fruit) for fruit in fruits] for name, fruits in json.loads(path.read_text()).items()}


def regrow(pristine: Path, work: Path) -> None:
    """A fresh copy of all trees."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(pristine, work)
