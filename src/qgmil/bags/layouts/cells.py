"""Trees of single cells: ``<class>/<patient>/<cell>``; a bag a patient. SCEMILA adds ``data/`` and metadata.csv.

A patient's folder holds one file a cell (DinoBloom), or one file of all its cells (SCEMILA). The folder is the bag,
also of a single cell, which keeps its name that way; a file is it only where the user chose files by a pattern.
"""

from __future__ import annotations

from pathlib import Path

from qgmil.bags import hints
from qgmil.bags.layouts.base import Columns, Found
from qgmil.bags.layouts.tree import TRIED, Tree
from qgmil.bags.readers import bag_file_shape
from qgmil.bags.readers.base import listing
from qgmil.errors import ManifestError, QGMILError

NAME = "cells"
SUMMARY = "cells: <class>/<patient>/<cell>, bags of patients"
COLUMNS = Columns(id=("patient_id", "patient"), label=("bag_label",), patient=("patient_id", "patient"))
TABLE = "metadata.csv"
PER_PATIENT = True
DATA = "data"
TAKEN = ("features", "labels", "h5_files", "pt_files")  # folders of slides, by their names


def recognises(tree: Tree) -> bool:
    """Whether all files lie in folders of folders, and nothing but these folders says who and what they are.

    ``cohort/patient/<slide>.h5`` looks the same by its names: with a table of labels it is a tree of cells only if its
    files hold one instance each, or if SCEMILA's table lies beside it.
    """
    if not tree.files or _strays(tree):
        return False
    names = {p.name for f in tree.files for p in (f.parent, f.parent.parent)}
    if any(n in TAKEN or n.startswith("features_") for n in names):
        return False
    return not tree.has_table or (tree.root / TABLE).is_file() or _rows(tree) == 1


def find(tree: Tree) -> list[Found]:
    """One bag a patient, labelled by the folder above.

    Raises:
        ManifestError: files that do not lie in <class>/<patient>, or several matrices in a patient's folder.
    """
    if strays := _strays(tree):
        do, them = ("does", "it") if len(strays) == 1 else ("do", "them")
        shown = listing((str(f.relative_to(tree.root)) for f in strays), 5)
        raise ManifestError(
            f"{tree.root}: {len(strays)} of {len(tree.files)} feature files {do} not lie in <class>/<patient> below "
            f"{_base(tree)}: {shown}; move {them} away, or choose the others with {hints.option('pattern', '*.h5')}"
        )
    folders: dict[Path, list[Path]] = {}
    for file in tree.files:
        folders.setdefault(file.parent, []).append(file)
    _check_single(tree, folders)
    return [
        Found(
            f.name,
            files[0] if len(files) == 1 and tree.pattern is not None else f,
            f.relative_to(tree.root).as_posix(),
            label=f.parent.name,
            patient=f.name,
        )
        for f, files in folders.items()
    ]


def _base(tree: Tree) -> Path:
    """The folder of the classes: SCEMILA has ``data`` around them."""
    inside = [f.relative_to(tree.root).parts for f in tree.files]
    return tree.root / DATA if 2 * sum(len(p) == 4 and p[0] == DATA for p in inside) > len(inside) else tree.root


def _strays(tree: Tree) -> list[Path]:
    """The files that lie elsewhere than in <class>/<patient>."""
    base = _base(tree)
    return [f for f in tree.files if not f.is_relative_to(base) or len(f.relative_to(base).parts) != 3]


def nearly(tree: Tree) -> str:
    """What to say of a folder that is a tree of cells but for a few files; "" where it is nothing like one."""
    strays = _strays(tree)
    if not strays or len(strays) * 10 > len(tree.files):
        return ""
    shown = listing((str(f.relative_to(tree.root)) for f in strays), 5)
    return (
        f"all but {len(strays)} of its {len(tree.files)} files lie as <class>/<patient>/<cell>, not {shown}: move "
        + (f"{'it' if len(strays) == 1 else 'them'} away for a tree of cells ({hints.option('format', NAME)})")
    )


def _rows(tree: Tree) -> int | None:
    """Instances in the first file that can be read."""
    for file in tree.files[:TRIED]:
        try:
            return bag_file_shape(file)[0]
        except QGMILError:  # said when the bag is read
            continue
    return None


def _check_single(tree: Tree, folders: dict[Path, list[Path]]) -> None:
    """Several files of many instances each are several encoders, not several cells."""
    several = next((files for files in folders.values() if len(files) > 1), None)
    if several is not None and (_rows(tree) or 1) > 1:
        names = listing((f.name for f in several), 5)
        raise ManifestError(
            f"{several[0].parent}: has {len(several)} files of many cells each ({names}); "
            f"name one kind with {hints.option('pattern', several[0].name)}"
        )
