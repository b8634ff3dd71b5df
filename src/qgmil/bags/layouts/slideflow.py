"""slideflow: ``<slide>.pt`` beside ``<slide>.index.npz``; annotations.csv with slide, patient and outcomes."""

from __future__ import annotations

from qgmil.bags.layouts.base import Columns
from qgmil.bags.layouts.plain import find as find
from qgmil.bags.layouts.tree import Tree

NAME = "slideflow"
SUMMARY = "slideflow: .pt with .index.npz"
COLUMNS = Columns(id=("slide",), label=("outcome",), patient=("patient",))
TABLE = "annotations.csv"


def recognises(tree: Tree) -> bool:
    """Whether the files are slideflow's."""
    return tree.kind == "slideflow"
