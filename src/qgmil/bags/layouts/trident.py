"""TRIDENT: ``<mag>x_<px>px_<ov>px_overlap/features_<encoder>/<slide>.h5`` (or .pt); any table of labels."""

from __future__ import annotations

from qgmil.bags.layouts.base import Found, of_files, only_one
from qgmil.bags.layouts.tree import Tree

NAME = "trident"
SUMMARY = "TRIDENT: features_<encoder>"
FOLDERS = "features_*"
PLAIN = ("h5", "pt")  # files that do not say what wrote them


def recognises(tree: Tree) -> bool:
    """Whether the files are TRIDENT's, or, for .pt files that do not say, their folder is."""
    named = tree.folders(FOLDERS) and not tree.folders("labels")  # torchmil has both
    return tree.kind == "trident" or (tree.kind in PLAIN and bool(named))


def find(tree: Tree) -> list[Found]:
    """One bag a slide, of the only encoder.

    Raises:
        ManifestError: several encoders or magnifications.
    """
    folders = tree.folders(FOLDERS)
    if not folders:
        return of_files(tree, tree.files)
    return of_files(tree, tree.under(only_one(tree, folders, "encoders or magnifications")))
