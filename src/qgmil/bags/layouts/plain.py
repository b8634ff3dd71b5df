"""Feature files of any kind, in one folder or in folders below it: a file is a bag, and its stem is the bag's id."""

from __future__ import annotations

from collections.abc import Sequence

from qgmil.bags import hints
from qgmil.bags.layouts.base import Found, of_files
from qgmil.bags.layouts.tree import Tree
from qgmil.bags.readers import bag_label, dsmil
from qgmil.errors import QGMILError

NAME = "plain"
SUMMARY = "a folder of feature files"
LOOKED_AT, LARGE = 2, 2**28  # files to look at, and bytes from which none is read only for that


def recognises(tree: Tree) -> bool:
    """Never: it is what is left where nothing else is recognised."""
    return False


def find(tree: Tree) -> list[Found]:
    """Every feature file."""
    return of_files(tree, tree.files)


def notes(tree: Tree, found: Sequence[Found]) -> list[str]:
    """That the files look like DSMIL's, whose label would be taken for features."""
    files = [f.cell for f in found[:LOOKED_AT]]
    if not files or not all(f.suffix.lower() in dsmil.SUFFIXES and f.stat().st_size < LARGE for f in files):
        return []
    try:
        if any(bag_label(file, format=dsmil.NAME) is None for file in files):
            return []
    except (QGMILError, OSError):  # not of DSMIL, or said when the bag is read
        return []
    return [
        f"the last columns of {files[0].name} look like the label of the bag, as DSMIL writes it; if so, say "
        f"{hints.option('format', dsmil.NAME)} and the number of classes with {hints.option('dataset', '2')}, or the "
        "label is read as features"
    ]
