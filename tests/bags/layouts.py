"""Small correct trees of every on-disk layout, as its own tools write them, with what reading them must give.

Every ``write_<layout>(root)`` makes a tree under `root` (an empty or absent folder) and returns one `Sample` a bag:
the file cell of a manifest and what is expected. The bags are always those of `BAGS`: three slides of two patients
and two classes. Tables of labels lie where the layout has them (``labels.csv`` and the like).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

WIDTH = 6


class BagRow(NamedTuple):
    """One slide: its id, its patient (text with a leading zero), its label and its number of instances."""

    bag_id: str
    patient: str
    label: str
    instances: int


BAGS = (
    BagRow("slide_a", "0012", "tumour", 4),
    BagRow("slide_b", "0012", "tumour", 5),
    BagRow("slide_c", "0013", "normal", 3),
)
CLASSES = ("normal", "tumour")


@dataclass(frozen=True)
class Expected:
    """What reading a bag must give; `format` and `dataset` are what the user has to say, None where nothing."""

    bag: BagRow
    features: np.ndarray
    reader: str
    coords: np.ndarray | None = None
    coord_unit: str | None = None
    tile_size: float | None = None
    tile_mpp: float | None = None
    magnification: float | None = None
    instance_labels: tuple[int, ...] | None = None
    instance_ids: tuple[str, ...] | None = None
    label: str | None = None  # the label that the layout itself holds for the bag
    format: str | None = None
    dataset: str | None = None


class Sample(NamedTuple):
    """A file cell (absolute; "file::part" and folders are cells too) and what reading it must give."""

    cell: Path
    expected: Expected


def bag_features(bag: BagRow, dtype: str = "float32", width: int = WIDTH) -> np.ndarray:
    """Features ``(N, width)`` that are different for every bag, exact in half precision and never 0 or 1."""
    start = 2 + 10 * [b.bag_id for b in BAGS].index(bag.bag_id)
    values = start + np.arange(bag.instances * width).reshape(bag.instances, width) / 8 + 1 / 16
    return values.astype(dtype)


def grid(bag: BagRow, step: float = 512, start: float = 1024) -> np.ndarray:
    """Top-left corners ``(N, 2)`` on a grid of two columns."""
    rows = np.arange(bag.instances)
    return np.stack([start + step * (rows % 2), start + step * (rows // 2)], axis=1)


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]], delimiter: str = ",") -> Path:
    """A table of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, delimiter=delimiter, lineterminator="\n").writerows([list(header), *map(list, rows)])
    return path


def write_trident(root: Path, encoder: str = "uni_v1") -> list[Sample]:
    """``20x_256px_0px_overlap/features_<encoder>/<slide>.h5``, and Patho-Bench's ``k=all.tsv``."""
    folder = root / "20x_256px_0px_overlap" / f"features_{encoder}"
    folder.mkdir(parents=True)
    samples = []
    for bag in BAGS:
        features, coords = bag_features(bag, "float16"), grid(bag, 512).astype(np.int64)
        path = folder / f"{bag.bag_id}.h5"
        with h5py.File(path, "w") as file:
            dset = file.create_dataset("features", data=features, chunks=True, maxshape=(None, WIDTH))
            dset.attrs.update({"name": bag.bag_id, "encoder": encoder, "savetodir": str(folder.name)})
            dset = file.create_dataset("coords", data=coords, chunks=True, maxshape=(None, 2))
            dset.attrs.update(
                {
                    "patch_size": 256,
                    "patch_size_level0": 512,
                    "level0_magnification": 40,
                    "target_magnification": 20,
                    "overlap": 0,
                    "level0_width": 40_000,
                    "level0_height": 30_000,
                    "name": bag.bag_id,
                    "savetodir": "None",
                }
            )
        expected = Expected(bag, features, "trident", coords, "px", 512.0, magnification=20.0)
        samples.append(Sample(path, expected))
    folds = [("train", "test"), ("train", "test"), ("test", "train")]
    rows = [[b.patient, b.bag_id, CLASSES.index(b.label), *fold] for b, fold in zip(BAGS, folds, strict=True)]
    write_table(root / "k=all.tsv", ["case_id", "slide_id", "label", "fold_0", "fold_1"], rows, "\t")
    return samples


def write_trident_pt(root: Path) -> list[Sample]:
    """The .pt that TRIDENT writes on request: a bare tensor."""
    folder = root / "20x_256px_0px_overlap" / "features_uni_v1"
    folder.mkdir(parents=True)
    samples = []
    for bag in BAGS:
        path = folder / f"{bag.bag_id}.pt"
        torch.save(torch.from_numpy(bag_features(bag)), path)
        samples.append(Sample(path, Expected(bag, bag_features(bag), "pt")))
    return samples


def write_clam(root: Path, kind: str = "pt", patches: bool = True, h5: bool = True) -> list[Sample]:
    """``features/{h5_files,pt_files}/<slide>`` and ``patches/<slide>.h5``; cells of `kind` "pt" or "h5".

    Also ``labels.csv`` (case_id, slide_id, label) and ``splits/splits_0.csv`` (ragged) with its boolean twin.
    """
    samples = []
    for name in ("features/pt_files", *(["features/h5_files"] if h5 else []), *(["patches"] if patches else [])):
        (root / name).mkdir(parents=True)
    for bag in BAGS:
        features, coords = bag_features(bag), grid(bag, 1024).astype(np.int64)
        pt, feature_h5 = (root / "features" / f"{k}_files" / f"{bag.bag_id}.{k}" for k in ("pt", "h5"))
        torch.save(torch.from_numpy(features), pt)
        if h5:
            with h5py.File(feature_h5, "w") as file:
                file.create_dataset("features", data=features, chunks=True, maxshape=(None, WIDTH))
                file.create_dataset("coords", data=coords, chunks=True, maxshape=(None, 2))
        if patches:
            with h5py.File(root / "patches" / f"{bag.bag_id}.h5", "w") as file:
                dset = file.create_dataset("coords", data=coords, chunks=True, maxshape=(None, 2))
                dset.attrs.update({"patch_size": 256, "patch_level": 1, "name": bag.bag_id, "save_path": "patches"})
                dset.attrs["downsample"] = (4.0, 4.0)
                dset.attrs["downsampled_level_dim"] = (10_000, 7_500)
                dset.attrs["level_dim"] = (10_000, 7_500)
        known = h5 or patches
        expected = Expected(
            bag, features, "clam", coords if known else None, "px" if known else None, 1024.0 if patches else None
        )
        samples.append(Sample(pt if kind == "pt" else feature_h5, expected))
    write_table(root / "labels.csv", ["case_id", "slide_id", "label"], [(b.patient, b.bag_id, b.label) for b in BAGS])
    split = [(0, "slide_a", "slide_c", ""), (1, "slide_b", "", "")]
    write_table(root / "splits" / "splits_0.csv", ["", "train", "val", "test"], split)
    flags = [(b.bag_id, str(b.bag_id != "slide_c"), str(b.bag_id == "slide_c"), "False") for b in BAGS]
    write_table(root / "splits" / "splits_0_bool.csv", ["", "train", "val", "test"], flags)
    return samples


def write_clam_h5(root: Path) -> list[Sample]:
    """As `write_clam`, with the cells that name the h5 files."""
    return write_clam(root, kind="h5")


def write_stamp(root: Path, old: bool = False, feat_type: str = "tile") -> list[Sample]:
    """``features/<slide>.h5`` in microns, ``clini.csv`` (PATIENT, label) and ``slides.csv`` (PATIENT, FILENAME)."""
    folder = root / "features"
    folder.mkdir(parents=True)
    samples = []
    for bag in BAGS:
        features, coords = bag_features(bag, "float16"), grid(bag, 256.0, 128.5).astype(np.float32)
        path = folder / f"{bag.bag_id}.h5"
        with h5py.File(path, "w") as file:
            file["coords"] = coords
            file["patch_embeddings" if old else "feats"] = features
            attrs = {"stamp_version": "2.3.0", "extractor": "mahmood-uni", "unit": "um", "code_hash": "0123abcd"}
            file.attrs.update({**attrs, "tile_size_um": 256.0, "tile_size_px": 224, "feat_type": feat_type})
        expected = Expected(bag, features, "stamp", coords.astype(float), "um", 256.0, tile_mpp=256 / 224)
        samples.append(Sample(path, expected))
    patients = {b.patient: b.label for b in BAGS}
    write_table(root / "clini.csv", ["PATIENT", "label", "AGE"], [(p, label, 60) for p, label in patients.items()])
    write_table(root / "slides.csv", ["PATIENT", "FILENAME"], [(b.patient, f"{b.bag_id}.h5") for b in BAGS])
    return samples


def write_torchmil(root: Path, kind: str = "npy", nested: bool = False) -> list[Sample]:
    """Folders ``features labels inst_labels coords``, one .npy (or .h5) a bag; `nested`: ``features/features_UNI``."""
    folders = {name: root / name for name in ("features", "labels", "inst_labels", "coords")}
    if nested:
        folders["features"] /= "features_UNI"
        folders["inst_labels"] = root / "patch_labels"
    for folder in folders.values():
        folder.mkdir(parents=True)
    samples = []
    for bag in BAGS:
        truth = (np.arange(bag.instances) % 2) * (bag.label == "tumour")
        arrays = {
            "features": bag_features(bag),
            "labels": np.array([CLASSES.index(bag.label)]),
            "inst_labels": truth[:, None],
            "coords": grid(bag, 1, 0).astype(np.int64),
        }
        for name, array in arrays.items():
            path = folders[name] / f"{bag.bag_id}.{kind}"
            if kind == "npy":
                np.save(path, array)
            else:
                with h5py.File(path, "w") as file:
                    file["data"] = array
        expected = Expected(
            bag,
            arrays["features"],
            "torchmil",
            arrays["coords"],
            "grid",
            instance_labels=tuple(int(t) for t in truth),
            label=str(CLASSES.index(bag.label)),
        )
        samples.append(Sample(folders["features"] / f"{bag.bag_id}.{kind}", expected))
    return samples


def write_torchmil_h5(root: Path) -> list[Sample]:
    """As `write_torchmil`, with .h5 files."""
    return write_torchmil(root, kind="h5")


def write_slideflow(root: Path, tile_um: object = 302) -> list[Sample]:
    """``bags/<slide>.pt``, ``.index.npz`` (tile centres), ``bags_config.json``, and ``annotations.csv``."""
    folder = root / "bags"
    folder.mkdir(parents=True)
    samples = []
    for bag in BAGS:
        centres = (grid(bag, 600) + 300).astype(np.int64)
        torch.save(torch.from_numpy(bag_features(bag)), folder / f"{bag.bag_id}.pt")
        np.savez(folder / f"{bag.bag_id}.index.npz", centres)
        microns = isinstance(tile_um, int | float)
        expected = Expected(
            bag,
            bag_features(bag),
            "slideflow",
            centres,
            None,
            tile_mpp=tile_um / 299 if microns else None,
            magnification=None if microns else float(str(tile_um).removesuffix("x")),
        )
        samples.append(Sample(folder / f"{bag.bag_id}.pt", expected))
    config = {"extractor": {"class": "retccl", "kwargs": {}}, "normalizer": None, "num_features": WIDTH}
    (folder / "bags_config.json").write_text(json.dumps({**config, "tile_px": 299, "tile_um": tile_um}))
    rows = [(b.bag_id, b.patient, b.label) for b in BAGS]
    write_table(root / "annotations.csv", ["slide", "patient", "outcome"], rows)
    return samples


def write_pathforge(root: Path, bags: Iterable[str] = ("256px_0.5mpp/uni",), level: int = 0) -> list[Sample]:
    """``<slide>.h5`` with ``bags/<px>px_<mpp>mpp/{coords, features/<extractor>}``; cells name the first of `bags`."""
    root.mkdir(parents=True, exist_ok=True)
    names = list(bags)
    samples = []
    for bag in BAGS:
        path = root / f"{bag.bag_id}.h5"
        corners = grid(bag, 512).astype(np.int32)
        with h5py.File(path, "w") as file:
            file["annotations/tissue"] = "{}"
            for number, name in enumerate(names):
                tiling, extractor = name.split("/")
                group = file.require_group(f"bags/{tiling}")
                if "coords" not in group:
                    size = np.full((bag.instances, 2), 512, np.int32)
                    levels = np.full((bag.instances, 1), level, np.int32)
                    group["coords"] = np.concatenate([corners, size, levels], axis=1)
                    group["tiling_spec"] = "{}"
                group[f"features/{extractor}"] = bag_features(bag) + number * 64
        expected = Expected(
            bag,
            bag_features(bag),
            "pathforge",
            corners,
            "px" if level == 0 else None,
            512.0 if level == 0 else None,
            tile_mpp=float(names[0].split("px_")[1].split("mpp")[0]),
        )
        cell = path if len(names) == 1 else Path(f"{path}::{names[0]}")
        samples.append(Sample(cell, expected))
    write_table(root / "labels.csv", ["slide", "label"], [(b.bag_id, b.label) for b in BAGS])
    return samples


def write_dsmil(root: Path, classes: int = len(CLASSES)) -> list[Sample]:
    """``<slide>.pt`` of ``(N, D + classes)`` with the one-hot label behind the features of every row."""
    root.mkdir(parents=True, exist_ok=True)
    samples = []
    for bag in BAGS:
        label = CLASSES.index(bag.label)
        one_hot = np.zeros((bag.instances, classes), np.float32)
        one_hot[:, label if classes > 1 else 0] = 1.0 if classes > 1 else float(label)
        path = root / f"{bag.bag_id}.pt"
        torch.save(torch.from_numpy(np.concatenate([bag_features(bag), one_hot], axis=1)), path)
        named = None if classes > 1 else str(classes)
        expected = Expected(bag, bag_features(bag), "dsmil", label=str(label), format="dsmil", dataset=named)
        samples.append(Sample(path, expected))
    return samples


def write_acmil(root: Path) -> list[Sample]:
    """One ``patch_feats.h5``, one group a slide with ``feat``, ``coords`` and the attribute ``label``."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "patch_feats.h5"
    samples = []
    with h5py.File(path, "w") as file:
        for bag in BAGS:
            features, coords = bag_features(bag, "float16"), grid(bag, 256).astype(np.int64)
            group = file.create_group(bag.bag_id)
            group.create_dataset("feat", data=features)
            group.create_dataset("coords", data=coords)
            group.attrs["label"] = CLASSES.index(bag.label)
            expected = Expected(bag, features, "acmil", coords, "px", label=str(CLASSES.index(bag.label)))
            samples.append(Sample(Path(f"{path}::{bag.bag_id}"), expected))
    return samples


def write_cells(root: Path, kind: str = "npy", classes: bool = True) -> list[Sample]:
    """``<class>/<patient>/<cell>.<kind>`` of single vectors (npy, or DinoBloom's h5); one bag a folder.

    The folders are named by the bags; the cells are numbered past ten, so that order by text is wrong.
    """
    samples = []
    for bag in BAGS:
        bag = replace_instances(bag, bag.instances + 8)
        folder = root / (bag.label if classes else "") / bag.bag_id
        folder.mkdir(parents=True)
        features = bag_features(bag)
        names = tuple(f"cell_{i}" for i in range(bag.instances))
        for name, vector in zip(names, features, strict=True):
            if kind == "npy":
                np.save(folder / f"{name}.npy", vector)
            else:
                with h5py.File(folder / f"{name}.h5", "w") as file:
                    file["features"] = vector
        samples.append(Sample(folder, Expected(bag, features, "cells", instance_ids=names)))
    return samples


def write_cells_h5(root: Path) -> list[Sample]:
    """As `write_cells`, with one h5 a cell."""
    return write_cells(root, kind="h5")


def write_scemila(root: Path) -> list[Sample]:
    """``data/<label>/<patient>/features.npy`` of ``(N, D)``, and ``metadata.csv``."""
    samples = []
    for bag in BAGS:
        folder = root / "data" / bag.label / bag.bag_id
        folder.mkdir(parents=True)
        np.save(folder / "features.npy", bag_features(bag))
        names = tuple(f"features#{i}" for i in range(bag.instances))
        samples.append(Sample(folder, Expected(bag, bag_features(bag), "cells", instance_ids=names)))
    write_table(root / "metadata.csv", ["patient_id", "bag_label"], [(b.bag_id, b.label) for b in BAGS])
    return samples


def write_plain(root: Path) -> list[Sample]:
    """One bag in each plain kind of file: .npy, .npz, .safetensors, .pt (tensor and dict), .h5."""
    root.mkdir(parents=True, exist_ok=True)
    bag = BAGS[0]
    features, coords = bag_features(bag), grid(bag).astype(np.int64)
    tensors = {"features": torch.from_numpy(features), "coords": torch.from_numpy(coords)}
    np.save(root / "array.npy", features)
    np.savez(root / "archive.npz", features=features, coords=coords)
    save_file(tensors, root / "tensors.safetensors")
    torch.save(tensors["features"], root / "tensor.pt")
    torch.save(tensors, root / "dict.pt")
    with h5py.File(root / "datasets.h5", "w") as file:
        file["features"], file["coords"] = features, coords
    bare = Expected(bag, features, "plain")
    located = replace(bare, coords=coords)
    return [
        Sample(root / "array.npy", replace(bare, reader="npy")),
        Sample(root / "archive.npz", replace(located, reader="npz")),
        Sample(root / "tensors.safetensors", replace(located, reader="safetensors")),
        Sample(root / "tensor.pt", replace(bare, reader="pt")),
        Sample(root / "dict.pt", replace(located, reader="pt")),
        Sample(root / "datasets.h5", replace(located, reader="h5")),
    ]


def replace_instances(bag: BagRow, instances: int) -> BagRow:
    """The same bag with another number of instances."""
    return bag._replace(instances=instances)


WRITERS: dict[str, Callable[[Path], list[Sample]]] = {
    "trident": write_trident,
    "trident_pt": write_trident_pt,
    "clam": write_clam,
    "clam_h5": write_clam_h5,
    "stamp": write_stamp,
    "torchmil": write_torchmil,
    "torchmil_h5": write_torchmil_h5,
    "slideflow": write_slideflow,
    "pathforge": write_pathforge,
    "dsmil": write_dsmil,
    "acmil": write_acmil,
    "cells": write_cells,
    "cells_h5": write_cells_h5,
    "scemila": write_scemila,
    "plain": write_plain,
}
"""Every layout by name; each writer needs only an empty folder."""
