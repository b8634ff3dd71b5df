"""What folders hold. A new layout is one new file here with ``NAME``, ``SUMMARY``, ``recognises`` and ``find``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from qgmil.bags import hints
from qgmil.bags.layouts.base import Columns, Layout
from qgmil.bags.layouts.tree import Tree
from qgmil.bags.readers.base import listing
from qgmil.errors import ManifestError

__all__ = ["Layout", "Tree", "find_layout", "layouts"]

FALLBACK = "plain"


@cache
def layouts() -> dict[str, Layout]:
    """Every layout by name. Modules of this package without ``NAME`` are helpers."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if hasattr(module, "NAME"):
            found[module.NAME] = Layout(
                name=module.NAME,
                summary=module.SUMMARY,
                recognises=module.recognises,
                find=module.find,
                orphans=getattr(module, "orphans", None),
                columns=getattr(module, "COLUMNS", Columns()),
                table=getattr(module, "TABLE", None),
                per_patient=getattr(module, "PER_PATIENT", False),
                reader=getattr(module, "READER", None),
                notes=getattr(module, "notes", None),
            )
    return found


def find_layout(tree: Tree, name: str | None = None) -> Layout:
    """The layout of a folder: by name, else by content; "plain" where none is recognised.

    Raises:
        ManifestError: an unknown name, or several layouts that the folder could be.
    """
    known = layouts()
    if name is not None:
        if name not in known:
            raise ManifestError(f"there is no format {name!r} of folders; known formats: {listing(sorted(known))}")
        return known[name]
    certain = [layout for layout in known.values() if layout.recognises(tree)]
    if len(certain) > 1:
        raise ManifestError(
            f"{tree.root}: could be any of {listing(layout.name for layout in certain)}; choose with "
            f"{hints.option('format')}"
        )
    return certain[0] if certain else known[FALLBACK]
