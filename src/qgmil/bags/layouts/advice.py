"""What to do next where a folder and a table do not fit together: the usual mistakes, recognised by what is there."""

from __future__ import annotations

from collections.abc import Sequence

from qgmil.bags import hints
from qgmil.bags.layouts import cells, plain
from qgmil.bags.layouts.base import H5, Found, Layout
from qgmil.bags.layouts.labels import Labels
from qgmil.bags.layouts.names import bare, composed
from qgmil.bags.layouts.tree import Tree
from qgmil.bags.manifest import is_patient_like
from qgmil.bags.readers.h5 import names, open_h5
from qgmil.errors import ManifestError, ReadError

LOOKED_AT = 3


def check_features(tree: Tree, found: Sequence[Found]) -> None:
    """Refuse files that hold coordinates alone, by the first few.

    Raises:
        ManifestError: the features are not there yet.
    """
    some = [f.cell for f in found[:LOOKED_AT] if f.cell.suffix.lower() in H5]
    inside = []
    for cell in some:
        try:
            with open_h5(cell) as file:
                inside.append(names(file, 2))
        except ReadError:  # said when the bag is read
            continue
    if inside and all(names == ["coords"] for names in inside):
        raise ManifestError(
            f"{tree.root}: its files hold coordinates but no features yet, as {some[0].name} (TRIDENT and CLAM write "
            "such files before the features); extract the features, then name their folder"
        )


def without_labels(tree: Tree, found: Sequence[Found], layout: Layout) -> list[str]:
    """Where labels could come from other than a table."""
    said = [] if not (text := cells.nearly(tree)) else [text]
    root = tree.root
    features = next((folder for folder in (root, root.parent) if folder.name == "features"), None)
    if features is not None and (features.parent / "labels").is_dir():
        said.append(f"its labels lie in {features.parent / 'labels'}: name the folder above, {features.parent}")
    if tree.outside:
        said.append(tree.about_links())
    return said + ([] if layout.name != plain.NAME else plain.notes(tree, found))


def without_match(tree: Tree, found: Sequence[Found], table: Labels, slides: bool) -> str:
    """What to do where no row of a table names a file."""
    cases = by_case(found)
    said = [f"{row.name!r}{text}" for row in table.rows if (text := other_case(cases, row.name))]
    if said:
        return f"{said[0]}: write the names as the files are called"
    ids = table.columns["id"]
    if ids is not None and not slides and (ids == table.columns["patient"] or is_patient_like(ids)):
        return (
            f"the rows of the table are patients (column {ids!r}): give a table of each patient's slides with "
            f"{hints.option('slides', 'slides.csv')}"
        )
    links = f"; {tree.about_links()}" if tree.outside else ""
    return f"name the column of ids with {hints.option('bag_id')}{links}"


def by_case(found: Sequence[Found]) -> dict[str, str]:
    """The names of features by what they are without upper and lower case."""
    return {_folded(f.name): f.name for f in found}


def other_case(cases: dict[str, str], name: str) -> str:
    """What to say of a name that is not there as it is written."""
    other = cases.get(_folded(name.replace("\\", "/").rpartition("/")[2]))
    return "" if other is None else f" ({other!r} differs in upper and lower case)"


def _folded(name: str) -> str:
    return bare(composed(name)).casefold()
