"""PathForge: ``<slide>.h5`` with ``bags/<px>px_<mpp>mpp/features/<extractor>``: several bags of one slide in a file."""

from __future__ import annotations

from qgmil.bags import hints
from qgmil.bags.layouts.base import Found, of_files
from qgmil.bags.layouts.tree import Tree
from qgmil.bags.readers import parts
from qgmil.bags.readers.base import listing
from qgmil.errors import ManifestError, ReadError

NAME = "pathforge"
SUMMARY = "PathForge: one h5 a slide, with a bag for each tiling and extractor"


def recognises(tree: Tree) -> bool:
    """Whether the files are PathForge's."""
    return tree.kind == "pathforge"


def find(tree: Tree) -> list[Found]:
    """One bag a file: the only one in it, or that which the user named.

    Raises:
        ManifestError: several bags in a file, and none was named.
    """
    have = [] if tree.dataset is not None else list(_parts_of_first(tree))
    if len(have) > 1:
        raise ManifestError(
            f"{tree.root}: its files hold {len(have)} bags of one slide: {listing(have)}; name one with "
            f"{hints.option('dataset', have[0])}"
        )
    return of_files(tree, tree.files)


def _parts_of_first(tree: Tree) -> dict[str, str | None]:
    """The bags of the first file that can be opened; what others hold is checked when they are read."""
    for file in tree.files:
        try:
            return parts(file)
        except ReadError:
            continue
    return {}
