"""torchmil: folders ``features``, ``labels`` and others with one .npy (or .h5) a bag; the labels need no table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qgmil.bags.layouts.base import Found, of_files, only_one
from qgmil.bags.layouts.tree import Tree
from qgmil.bags.readers import bag_label

NAME = "torchmil"
SUMMARY = "torchmil: folders features and labels"


def recognises(tree: Tree) -> bool:
    """Whether a folder ``labels`` lies beside one of features."""
    return bool(_pairs(tree))


def find(tree: Tree) -> list[Found]:
    """One bag a file of features, labelled by the file of the same name in ``labels``.

    Raises:
        ManifestError: several data sets or encoders.
        ReadError: a file of labels that holds no label.
    """
    if not _pairs(tree):
        return of_files(tree, tree.files)
    features, labels = _folders(tree)
    labelled = {f.stem for f in tree.under(labels)}
    found = of_files(tree, tree.under(features))
    return [replace(f, label=bag_label(f.cell, format=NAME)) if f.name in labelled else f for f in found]


def orphans(tree: Tree) -> list[str]:
    """Files of labels without features."""
    if not _pairs(tree):
        return []
    features, labels = _folders(tree)
    have = {f.stem for f in tree.under(features)}
    return [f.stem for f in tree.under(labels) if f.stem not in have]


def _folders(tree: Tree) -> tuple[Path, Path]:
    """The folder of features and that of labels."""
    pairs = _pairs(tree)
    features = only_one(tree, [features for features, _ in pairs], "folders of features beside labels")
    return features, dict(pairs)[features]


def _pairs(tree: Tree) -> list[tuple[Path, Path]]:
    """Folders of features, ``features`` or those in it, with the folder of their labels."""
    folders = list(dict.fromkeys(f.parent for f in tree.files))
    pairs = []
    for labels in tree.folders("labels"):
        features = labels.parent / "features"
        pairs += [(f, labels) for f in folders if features in (f, f.parent)]
    return pairs
