"""Feature files of any kind, in one folder or in folders below it: a file is a bag, and its stem is the bag's id."""

from __future__ import annotations

from qgmil.bags.layouts.base import Found, of_files
from qgmil.bags.layouts.tree import Tree

NAME = "plain"
SUMMARY = "a folder of feature files"


def recognises(tree: Tree) -> bool:
    """Never: it is what is left where nothing else is recognised."""
    return False


def find(tree: Tree) -> list[Found]:
    """Every feature file."""
    return of_files(tree, tree.files)
