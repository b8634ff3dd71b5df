"""CLAM: ``h5_files/<slide>.h5`` and ``pt_files/<slide>.pt`` side by side; a table case_id, slide_id, label."""

from __future__ import annotations

from collections.abc import Sequence

from qgmil.bags.layouts.base import Columns, Found, of_files, only_one
from qgmil.bags.layouts.tree import TRIED, Tree
from qgmil.bags.readers import clam

NAME = "clam"
SUMMARY = "CLAM: h5_files and pt_files"
COLUMNS = Columns(id=("slide_id",), label=("label",), patient=("case_id",))
KINDS = ("h5_files", "pt_files")


def recognises(tree: Tree) -> bool:
    """Whether a folder has one of CLAM's names."""
    return any(tree.folders(kind) for kind in KINDS)


def find(tree: Tree) -> list[Found]:
    """One bag a slide: its h5 file, which has coordinates, else its pt file.

    Raises:
        ManifestError: features of several runs.
    """
    folders = [folder for kind in KINDS for folder in tree.folders(kind)]
    if not folders:
        return of_files(tree, tree.files)
    base = only_one(tree, [f.parent for f in folders], "folders with h5_files or pt_files")
    slides = {f.stem: f for kind in reversed(KINDS) for f in tree.under(base / kind)}
    return of_files(tree, sorted(slides.values(), key=lambda f: f.stem))


def notes(tree: Tree, found: Sequence[Found]) -> list[str]:
    """That the size of the tiles is not known, where CLAM's patches are not where the reader looks."""
    some = found[:TRIED]
    if not some or any(clam.has_patches(f.cell) for f in some):
        return []
    return [
        f"no patches/ beside {some[0].cell.parent} ({some[0].name}.h5): the size of the tiles is unknown; put CLAM's "
        "patches/ into the folder of the features, beside it, or into a folder beside it"
    ]
