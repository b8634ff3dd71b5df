"""STAMP: ``<slide>.h5``; a clini table (PATIENT, targets) and a slide table (PATIENT, FILENAME). Bags are patients'."""

from __future__ import annotations

from qgmil.bags.layouts.base import Columns
from qgmil.bags.layouts.plain import find as find
from qgmil.bags.layouts.tree import Tree

NAME = "stamp"
SUMMARY = "STAMP: one h5 a slide, bags of patients"
COLUMNS = Columns(id=("FILENAME",), patient=("PATIENT",))
PER_PATIENT = True


def recognises(tree: Tree) -> bool:
    """Whether the files are STAMP's."""
    return tree.kind == "stamp"
