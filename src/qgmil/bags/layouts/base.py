"""What every layout shares: the `Layout` itself, and the features of one bag as a folder holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qgmil.bags.layouts.tree import Tree
from qgmil.bags.readers.base import listing
from qgmil.errors import ManifestError

H5 = (".h5", ".hdf5")


@dataclass(frozen=True)
class Found:
    """Features of one bag in a folder.

    Args:
        name: of the bag: the stem of its file, the name of its folder, or the name inside its file.
        cell: what the manifest names: a file, a folder of cells, or "file.h5::part".
        inside: the same below the root without its ending, for tables that name files with their subfolder.
        label: its class, where the folder itself says so.
        patient: its patient, where the folder itself says so.
    """

    name: str
    cell: Path
    inside: str
    label: str | None = None
    patient: str | None = None


@dataclass(frozen=True)
class Columns:
    """Usual names of columns in the label tables of a layout, before those that every table is searched for."""

    id: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    patient: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One kind of folder: made from a module of this package that has ``NAME``.

    ``recognises(tree)`` looks at names and at the content of a few files. ``find(tree)`` lists the features, and
    ``orphans(tree)`` the names of labels in the folder that have none.

    Args:
        columns: usual names of columns.
        table: name of a table in the folder that is used where none is given.
        per_patient: bags are those of patients unless the user wants them otherwise.
        reader: the reader of its files where they do not say so themselves, so that the manifest has to.
        notes: what the user should know of features that are there, as sentences.
    """

    name: str
    summary: str
    recognises: Callable[[Tree], bool]
    find: Callable[[Tree], list[Found]]
    orphans: Callable[[Tree], list[str]] | None = None
    columns: Columns = Columns()
    table: str | None = None
    per_patient: bool = False
    reader: str | None = None
    notes: Callable[[Tree, Sequence[Found]], list[str]] | None = None


def of_files(tree: Tree, files: Sequence[Path]) -> list[Found]:
    """One bag a file, named by its stem; of an h5 file, the bag in it that the user named."""
    return [Found(file.stem, _cell(tree, file), tree.inside(file)) for file in files]


def _cell(tree: Tree, file: Path) -> Path:
    return Path(f"{file}::{tree.dataset}") if tree.dataset is not None and file.suffix.lower() in H5 else file


def only_one(tree: Tree, folders: Sequence[Path], what: str) -> Path:
    """The only folder of a kind.

    Raises:
        ManifestError: several, between which the user has to choose.
    """
    unique = sorted(set(folders))
    if len(unique) > 1:
        shown = listing(map(str, unique), 10)
        raise ManifestError(f"{tree.root}: has {len(unique)} {what}: {shown}; name one of them instead of {tree.root}")
    return unique[0]
