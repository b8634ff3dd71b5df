"""ACMIL: one h5 for the whole data set, a group a slide with its label as an attribute."""

from __future__ import annotations

from pathlib import Path

from qgmil.bags.layouts.base import Found
from qgmil.bags.layouts.tree import Tree
from qgmil.bags.readers import parts

NAME = "acmil"
SUMMARY = "ACMIL: one h5 with a group a slide"


def recognises(tree: Tree) -> bool:
    """Whether the files are ACMIL's."""
    return tree.kind == "acmil"


def find(tree: Tree) -> list[Found]:
    """One bag a group, with the label that it carries."""
    return [
        Found(name, Path(f"{file}::{name}"), name, label=label)
        for file in tree.files
        for name, label in parts(file).items()
    ]
