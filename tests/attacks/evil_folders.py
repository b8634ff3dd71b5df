"""Hostile folders, and files beside files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from attacks.evil import attack
from attacks.evil_arrays import Evil, bomb, floats, of_holes, written
from attacks.orchard import SECRET

OUT = "is a link out of"


def saved(path: Path, array: np.ndarray = SECRET) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def tensor(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(SECRET), path)
    return path


# Files that a layout keeps beside those of the features.


@attack("clam", OUT, names="slide.h5")
def patches_that_are_a_link_out(root: Path, outside: Path) -> Path:
    (root / "patches").mkdir()
    (root / "patches" / "slide.h5").symlink_to(outside / "secret.h5")
    return tensor(root / "pt_files" / "slide.pt")


@attack("clam", "is not a regular file", names="slide.h5")
def patches_that_are_a_pipe(root: Path, outside: Path) -> Path:
    (root / "patches").mkdir()
    os.mkfifo(root / "patches" / "slide.h5")
    return tensor(root / "pt_files" / "slide.pt")


@attack("torchmil", OUT, names="slide.npy")
def a_folder_of_coordinates_that_is_a_link_out(root: Path, outside: Path) -> Path:
    saved(outside / "slide.npy")
    (root / "coords").symlink_to(outside)
    return saved(root / "features" / "slide.npy")


@attack("torchmil", "holds Python objects", names="slide.npy")
def coordinates_that_are_a_pickle(root: Path, outside: Path) -> Path:
    (root / "coords").mkdir()
    np.save(root / "coords" / "slide.npy", np.array([Evil(outside / "owned")], dtype=object), allow_pickle=True)
    return saved(root / "features" / "slide.npy")


@attack("torchmil", "the rest are holes", act="label", names="slide.npy", format="torchmil")
def a_label_of_terabytes(root: Path, outside: Path) -> Path:
    of_holes(root / "labels" / "slide.npy", 2**42, floats(f"({2**40},)"))
    return saved(root / "features" / "slide.npy")


@attack("slideflow", "declares 268,435,[0-9]+ bytes but only", names="slide.index.npz")
def an_index_that_is_a_bomb(root: Path, outside: Path) -> Path:
    written(root / "slide.index.npz", bomb())
    return tensor(root / "slide.pt")


@attack("slideflow", r"RecursionError|recursion", names="bags_config.json")
def a_configuration_of_brackets(root: Path, outside: Path) -> Path:
    written(root / "bags_config.json", b"[" * 10**6)
    return tensor(root / "slide.pt")


@attack("slideflow", "is no configuration|the rest are holes", names="bags_config.json")
def a_configuration_of_terabytes(root: Path, outside: Path) -> Path:
    of_holes(root / "bags_config.json", 2**42, b'{"tile_px": 299}')
    return tensor(root / "slide.pt")


@attack("dsmil", "must be the number of label columns", format="dsmil", dataset="9" * 30)
def very_many_classes(root: Path, outside: Path) -> Path:
    return tensor(root / "slide.pt")


# Folders of cells.


@attack("cells", "is not a regular file", names="b.npy")
def a_pipe_among_the_cells(root: Path, outside: Path) -> Path:
    saved(root / "patient" / "a.npy")
    os.mkfifo(root / "patient" / "b.npy")
    return root / "patient"


@attack("cells", OUT, names="b.npy")
def a_cell_that_is_the_list_of_users(root: Path, outside: Path) -> Path:
    saved(root / "patient" / "a.npy")
    (root / "patient" / "b.npy").symlink_to("/etc/passwd")
    return root / "patient"


@attack("cells", OUT, names="b.npy")
def a_cell_that_is_a_device(root: Path, outside: Path) -> Path:
    saved(root / "patient" / "a.npy")
    (root / "patient" / "b.npy").symlink_to("/dev/zero")
    return root / "patient"


@attack("cells", OUT, act="files", names="a.npy")
def a_circle_of_links(root: Path, outside: Path) -> Path:
    (root / "patient").mkdir()
    (root / "patient" / "a.npy").symlink_to("b.npy")
    (root / "patient" / "b.npy").symlink_to("a.npy")
    return root / "patient"


@attack("cells", "has 6 features where a.npy has 5", names="b.npy")
def cells_of_other_widths(root: Path, outside: Path) -> Path:
    saved(root / "patient" / "a.npy", np.ones((1, 5), np.float32))
    saved(root / "patient" / "b.npy")
    return root / "patient"


@attack("cells", "bytes.* follow", names=r"\udcff.npy")
def a_broken_cell_whose_name_is_no_text(root: Path, outside: Path) -> Path:
    saved(root / "patient" / "a.npy")
    written(root / "patient" / os.fsdecode(b"\xff.npy"), floats("(9, 9)"))
    return root / "patient"


# Folders from which a manifest is built.


def labels(root: Path, *rows: str, header: str = "slide,label") -> Path:
    return written(root / "labels.csv", "\n".join([header, *rows, ""]).encode())


@attack(
    "manifest",
    r"'\.\./secret'.*leads out of the folder",
    act="build",
    error="ManifestError",
    names="labels.csv",
    labels="labels.csv",
)
def a_row_that_climbs(root: Path, outside: Path) -> Path:
    saved(root / "tree" / "a.npy")
    labels(root, "a,x", "../secret,y")
    return root / "tree"


@attack(
    "manifest", "leads out of the folder", act="build", error="ManifestError", names="labels.csv", labels="labels.csv"
)
def a_row_with_an_absolute_path(root: Path, outside: Path) -> Path:
    saved(root / "tree" / "a.npy")
    labels(root, "a,x", f"{outside / 'secret'},y")
    return root / "tree"


@attack("manifest", "is a link out of the folder", act="build", error="QGMILError", names="b.npy", labels="labels.csv")
def a_linked_feature_file(root: Path, outside: Path) -> Path:
    saved(root / "tree" / "a.npy")
    (root / "tree" / "b.npy").symlink_to(outside / "secret.npy")
    labels(root, "a,x")
    return root / "tree"


@attack(
    "manifest",
    "there are no feature files|2 links lead out of the folder",
    act="build",
    error="ManifestError",
    labels="labels.csv",
)
def a_folder_of_pipes_and_circles(root: Path, outside: Path) -> Path:
    (root / "tree").mkdir()
    os.mkfifo(root / "tree" / "a.npy")
    (root / "tree" / "loop").symlink_to(root / "tree")
    (root / "tree" / "b.npy").symlink_to(root / "tree" / "b.npy")
    labels(root, "a,x")
    return root / "tree"
