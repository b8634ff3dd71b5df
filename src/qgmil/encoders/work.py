"""What there is to extract: the bags that slides, trees of cells, tars and tables make.

Cells lie in ``<class>/<patient>/<cell>``, ``<patient>/<cell>`` or in one folder; a tar stands for a folder (`trees`). A
patient is one bag, its cells in the natural order of their names, of a table in the order of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from qgmil.bags.problems import bad_id
from qgmil.bags.readers import feature_suffixes
from qgmil.bags.readers.base import listing
from qgmil.bags.tabular import TABLE_SUFFIXES, TextTable, read_text_table
from qgmil.encoders.trees import Work, cells_in_tar, cells_under, told_apart
from qgmil.errors import ManifestError, ReadError
from qgmil.images.instances import SUFFIXES as PICTURES
from qgmil.images.instances import TARS
from qgmil.images.slides import slide_name, slides_under

SLIDE_COLUMNS = ("slide", "slide_path", "image", "path", "file", "filename")
CELL_COLUMNS = ("image", "cell", "path", "file", "filename")


def find_slides(sources: Sequence[Path]) -> list[Work]:
    """The slides that files, folders and tables name, a bag each.

    A table has a column of slides (slide, path, file ...; relative to it) and may have bag_id, label, patient_id, mpp.

    Raises:
        ReadError: nothing there, a folder without slides.
        ManifestError: a table without such a column, a bad number, or two bags of one name.
    """
    found: list[Work] = []
    for source in sources:
        if source.is_dir():
            slides = slides_under(source)
            if not slides:
                raise ReadError(f"{source}: has no slides or images; name the folder in which they lie")
            found += [Work(name, (path,)) for name, path in slides.items()]
        elif source.suffix.lower() in TABLE_SUFFIXES:
            found += list(_slides_of(read_text_table(source)))
        elif source.is_file():
            if source.suffix.lower() in feature_suffixes():
                raise ReadError(f"{source}: is a file of features, not a slide")
            found.append(Work(slide_name(source), (source,)))
        else:
            raise ReadError(f"{source}: no such file or folder; name slides, a folder of them, or a table")
    return _unique(list({work.files: work for work in found}.values()))  # the same file twice is one slide


def find_cells(sources: Sequence[Path]) -> list[Work]:
    """The bags of cells that folders, tars and tables name.

    A table has a column of images (image, cell, path ...; relative to it) and bag_id or patient_id, and may have label
    and instance_id.

    Raises:
        ReadError: nothing there, or images at different depths.
        ManifestError: a table without such columns, or a bag with two labels.
    """
    found: list[Work] = []
    for source in sources:
        if source.is_dir():
            found += cells_under(source)
        elif source.name.lower().endswith(TARS):
            found += cells_in_tar(source)
        elif source.suffix.lower() in TABLE_SUFFIXES:
            found += _cells_of(read_text_table(source))
        elif source.is_file() and source.suffix.lower() in PICTURES:
            found.append(Work(source.stem, (source,), (source.stem,)))
        else:
            raise ReadError(f"{source}: is no folder, tar, image or table of cells")
    return _unique(found)


def _unique(found: list[Work]) -> list[Work]:
    seen: dict[str, Work] = {}
    for work in found:
        if reason := bad_id(work.bag_id):
            raise ManifestError(f"{work.files[0]}: bag id {work.bag_id!r} cannot be used, {reason}; rename it")
        other = seen.setdefault(work.bag_id, work)
        if other is not work:
            raise ManifestError(
                f"both {other.files[0]} and {work.files[0]} would be bag {work.bag_id!r}; name them in a table with a "
                "column bag_id"
            )
    return found


def _slides_of(table: TextTable) -> Iterator[Work]:
    column = _column(table, SLIDE_COLUMNS, "slides")
    for line, cells in _rows(table):
        path = _path(table, line, column, cells)
        text = cells.get("mpp", "")
        try:
            mpp = float(text) if text else None
        except ValueError:
            mpp = -1.0
        if mpp is not None and not 0 < mpp < 1000:
            raise ManifestError(f"{table.path}: {table.word} {line}: mpp is {text!r}; expected microns per pixel")
        name = cells.get("bag_id") or slide_name(path)
        yield Work(name, (path,), label=cells.get("label") or None, patient_id=cells.get("patient_id") or None, mpp=mpp)


def _cells_of(table: TextTable) -> list[Work]:
    column = _column(table, CELL_COLUMNS, "images of cells")
    key = next((c for c in ("bag_id", "patient_id") if c in table.columns), None)
    if key is None:
        raise ManifestError(
            f"{table.path}: has no column bag_id or patient_id; it has {listing(table.columns)}: whose cells are they?"
        )
    made: dict[str, Work] = {}
    grouped: dict[str, list[tuple[Path, str]]] = {}
    for line, cells in _rows(table):
        path = _path(table, line, column, cells)
        bag_id = cells[key]
        one = Work(bag_id, (), (), label=cells.get("label") or None, patient_id=cells.get("patient_id") or None)
        if made.setdefault(bag_id, one) != one:
            raise ManifestError(
                f"{table.path}: {table.word} {line}: bag {bag_id!r} has label {one.label!r} and patient "
                f"{one.patient_id!r} here, {made[bag_id].label!r} and {made[bag_id].patient_id!r} before"
            )
        grouped.setdefault(bag_id, []).append((path, cells.get("instance_id") or path.stem))
    return [
        replace(
            made[bag_id], files=tuple(p for p, _ in rows), names=told_apart([n for _, n in rows], [p for p, _ in rows])
        )
        for bag_id, rows in grouped.items()
    ]


def _column(table: TextTable, names: Sequence[str], what: str) -> str:
    found = next((c for c in names if c in table.columns), None)
    if found is None:
        raise ManifestError(
            f"{table.path}: has no column of {what} ({', '.join(names)}); it has {listing(table.columns)}"
        )
    return found


def _rows(table: TextTable) -> Iterator[tuple[int, dict[str, str]]]:
    if table.problems:
        raise ManifestError(f"{table.path}: {table.problems[0].message}")
    if not table.rows:
        raise ManifestError(f"{table.path}: has a header but no rows")
    yield from table.rows


def _path(table: TextTable, line: int, column: str, cells: dict[str, str]) -> Path:
    if not cells[column]:
        raise ManifestError(f"{table.path}: {table.word} {line}: the column {column} is blank")
    return table.path.parent / cells[column]
