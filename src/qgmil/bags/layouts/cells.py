"""Trees of single cells: ``<class>/<patient>/<cell>``; a bag a patient. SCEMILA adds ``data/`` and metadata.csv.

A patient's folder holds one file a cell (DinoBloom), or one file of all its cells (SCEMILA).
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
    base = _base(tree)
    if not tree.files or any(len(f.relative_to(base).parts) != 3 for f in tree.files if f.is_relative_to(base)):
        return False
    if any(not f.is_relative_to(base) for f in tree.files):
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
    base = _base(tree)
    folders: dict[Path, list[Path]] = {}
    for file in tree.files:
        where = file.relative_to(base).parts if file.is_relative_to(base) else ()
        if len(where) != 3:
            raise ManifestError(f"{file}: does not lie in <class>/<patient> below {base}; move it, or name its folder")
        folders.setdefault(file.parent, []).append(file)
    _check_single(tree, folders)
    return [
        Found(
            f.name,
            files[0] if len(files) == 1 else f,
            f.relative_to(tree.root).as_posix(),
            label=f.parent.name,
            patient=f.name,
        )
        for f, files in folders.items()
    ]


def _base(tree: Tree) -> Path:
    """The folder of the classes: SCEMILA has ``data`` around them."""
    inside = [f.relative_to(tree.root).parts for f in tree.files]
    return tree.root / DATA if inside and all(len(p) == 4 and p[0] == DATA for p in inside) else tree.root


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
