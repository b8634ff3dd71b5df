"""DSMIL: ``<slide>.pt`` with the label behind the features. Nothing in the file says so: the user has to."""

from __future__ import annotations

from dataclasses import replace

from qgmil.bags.layouts.base import Found, of_files
from qgmil.bags.layouts.plain import recognises as recognises
from qgmil.bags.layouts.tree import Tree
from qgmil.bags.readers import bag_label

NAME = "dsmil"
SUMMARY = "DSMIL: .pt files with the label in the last columns"
READER = "dsmil"


def find(tree: Tree) -> list[Found]:
    """One bag a file, with the label in it where no table has it."""
    found = of_files(tree, tree.files)
    if tree.has_table:
        return found
    return [replace(f, label=bag_label(f.cell, format=READER, dataset=tree.dataset)) for f in found]
