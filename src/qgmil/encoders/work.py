"""What there is to extract: the bags that slides, trees of cells, tars and tables make.

Cells lie in ``<class>/<patient>/<cell>``, ``<patient>/<cell>`` or in one folder; a tar stands for a folder. A patient
is one bag, its cells in the natural order of their names.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from qgmil.bags.problems import bad_id
from qgmil.bags.readers.base import guarded, listing, natural
from qgmil.bags.tabular import TABLE_SUFFIXES, TextTable, read_text_table
from qgmil.errors import ManifestError, ReadError
from qgmil.images.instances import SUFFIXES as PICTURES
from qgmil.images.instances import TARS, image_members
from qgmil.images.slides import slide_name, slides_under

SLIDE_COLUMNS = ("slide", "slide_path", "image", "path", "file", "filename")
CELL_COLUMNS = ("image", "cell", "path", "file", "filename")


@dataclass(frozen=True)
class Work:
    """A bag to be made.

    Args:
        bag_id: its name.
        files: the slide, or the images of its cells; of cells in a tar the tar alone.
        names: of the cells, one an image; None for a slide.
        members: the images in the tar.
        label, patient_id: where they are known.
        mpp: of a slide, where the table says it.
    """

    bag_id: str
    files: tuple[Path, ...]
    names: tuple[str, ...] | None = None
    members: tuple[tarfile.TarInfo, ...] | None = None
    label: str | None = None
    patient_id: str | None = None
    mpp: float | None = None


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
            found.append(Work(slide_name(source), (source,)))
        else:
            raise ReadError(f"{source}: no such file or folder; name slides, a folder of them, or a table")
    return _unique(found)


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
            found += _cells_under(source)
        elif source.name.lower().endswith(TARS):
            found += _tar(source)
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
        replace(made[bag_id], files=tuple(p for p, _ in rows), names=_names([n for _, n in rows], [p for p, _ in rows]))
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


def _cells_under(root: Path) -> list[Work]:
    images: dict[tuple[str, ...], list[Path]] = {}
    tars: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders.sort()
        place = Path(folder).relative_to(root).parts
        for name in files:
            if name.startswith("."):
                continue
            if name.lower().endswith(TARS):
                tars.append(Path(folder, name))
            elif os.path.splitext(name)[1].lower() in PICTURES:  # noqa: PTH122 - there may be 100,000 of them
                images.setdefault(place, []).append(Path(folder, name))
    found = [
        replace(_whole_tar(tar), label=tar.parent.name if tar.parent != root else None)
        for tar in sorted(tars, key=lambda p: natural(p.name))
    ]
    found += _grouped(
        root, {place: sorted(files, key=lambda p: natural(p.name)) for place, files in sorted(images.items())},
        lambda path, bag: path.relative_to(bag).with_suffix("").as_posix(),
    )  # fmt: skip
    if not found:
        raise ReadError(f"{root}: has no images of cells ({', '.join(sorted(PICTURES))}) and no tars of them")
    return found


def _grouped(root: Path, images: dict[tuple[str, ...], list[Path]], name: Callable[[Path, Path], str]) -> list[Work]:
    """Bags of the images of a tree, by the first two names of their folders."""
    bags: dict[tuple[str, ...], list[Path]] = {}
    for place, files in images.items():
        bags.setdefault(place[:2], []).extend(files)
    depths = {len(place) for place in bags}
    if len(depths) > 1:
        some = sorted(bags, key=len)
        raise ReadError(
            f"{root}: has images in {root.joinpath(*some[0])} and in {root.joinpath(*some[-1])}; cells lie in "
            "<class>/<patient>/<cell>, in <patient>/<cell> or all in one folder, or name them in a table"
        )
    return [
        Work(
            place[-1] if place else root.name,
            tuple(files),
            _names([name(f, root.joinpath(*place)) for f in files], files),
            label=place[0] if len(place) == 2 else None,
            patient_id=place[-1] if place else None,
        )
        for place, files in bags.items()
    ]


def _whole_tar(path: Path) -> Work:
    """A tar as one bag, whatever its folders."""
    with guarded(path, "a tar"), tarfile.open(path) as tar:
        members = tuple(image_members(path, tar))
    if not members:
        raise ReadError(f"{path}: has no images of cells ({', '.join(sorted(PICTURES))})")
    stem = path.name[: -len(next(end for end in sorted(TARS, key=len)[::-1] if path.name.lower().endswith(end)))]
    names = [PurePosixPath(m.name).stem for m in members]
    return Work(stem, (path,), _names(names, [Path(m.name) for m in members]), members, patient_id=stem)


def _tar(path: Path) -> list[Work]:
    """A tar of one bag, or of a tree of them."""
    whole = _whole_tar(path)
    assert whole.members is not None
    by_place: dict[tuple[str, ...], list[tarfile.TarInfo]] = {}
    for member in whole.members:
        by_place.setdefault(PurePosixPath(member.name).parts[:-1], []).append(member)
    places = [tuple(part for part in place if part != ".") for place in by_place]
    if all(len(place) < 1 for place in places) or len(set(places)) == 1:
        return [whole]
    found = _grouped(
        Path(), {place: [Path(m.name) for m in ms] for place, ms in zip(places, by_place.values(), strict=True)},
        lambda file, _: file.stem,
    )  # fmt: skip
    members = {Path(m.name): m for m in whole.members}
    return [replace(work, files=(path,), members=tuple(members[f] for f in work.files)) for work in found]


def _names(names: Sequence[str], files: Sequence[Path]) -> tuple[str, ...]:
    """The names of the instances, which must tell them apart: else they keep the ending of the file or its folder."""
    for made in (names, [f.name for f in files], [f.as_posix() for f in files]):
        if len(set(made)) == len(made):
            return tuple(made)
    twice = next(str(f) for f in files if list(files).count(f) > 1)
    raise ManifestError(f"{twice}: is there twice in one bag; name each image once")
