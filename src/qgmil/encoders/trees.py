"""Trees of cells: folders and tars whose names say class and patient."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from qgmil.bags.readers.base import guarded, natural
from qgmil.errors import ManifestError, ReadError
from qgmil.images.instances import SUFFIXES as PICTURES
from qgmil.images.instances import TARS, image_members
from qgmil.images.slides import is_output

LIE = "cells lie in <class>/<patient>/<cell>, <patient>/<cell> or one folder; or name them in a table (image, bag_id)"


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


def cells_under(root: Path) -> list[Work]:
    """The bags of a folder of cells, and of the tars in it (in <class>/<patient>.tar or <class>/<patient>/<any>.tar).

    Raises:
        ReadError: none, or at different depths.
    """
    images: dict[tuple[str, ...], list[Path]] = {}
    tars: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not is_output(Path(folder, f)))
        place = Path(folder).relative_to(root).parts
        for name in files:
            if name.startswith("."):
                continue
            if name.lower().endswith(TARS):
                tars.append(Path(folder, name))
            elif os.path.splitext(name)[1].lower() in PICTURES:  # noqa: PTH122 - there may be 100,000 of them
                images.setdefault(place, []).append(Path(folder, name))
    found = [_placed_tar(root, tar) for tar in sorted(tars, key=lambda p: natural(p.name))]
    found += _grouped(
        root, {place: sorted(files, key=lambda p: natural(p.name)) for place, files in sorted(images.items())},
        lambda path, bag: path.relative_to(bag).with_suffix("").as_posix(),
    )  # fmt: skip
    if not found:
        raise ReadError(f"{root}: has no images of cells ({', '.join(sorted(PICTURES))}) and no tars of them")
    return found


def cells_in_tar(path: Path) -> list[Work]:
    """A tar of one bag, or of a tree of them; a leading folder of the tar's own name says nothing.

    Raises:
        ReadError: no images, broken, or folders that could be classes or something above them.
    """
    whole = _whole_tar(path)
    assert whole.members is not None
    by_place: dict[tuple[str, ...], list[tarfile.TarInfo]] = {}
    for member in whole.members:
        place = tuple(part for part in PurePosixPath(member.name).parts[:-1] if part != ".")
        by_place.setdefault(place, []).append(member)
    if all(place[:1] == (whole.bag_id,) for place in by_place):
        by_place = {place[1:]: members for place, members in by_place.items()}
    if len(by_place) == 1:
        return [whole]
    if min(len(place) for place in by_place) > 2 and len({place[0] for place in by_place}) == 1:
        raise ReadError(f"{path}: all images are below {next(iter(by_place))[0]!r}, which may be a class or not; {LIE}")
    names = {place: [Path(m.name) for m in members] for place, members in by_place.items()}
    found = _grouped(path, names, lambda file, _: file.stem)
    members = {Path(m.name): m for m in whole.members}
    return [replace(work, files=(path,), members=tuple(members[f] for f in work.files)) for work in found]


def _placed_tar(root: Path, path: Path) -> Work:
    """A tar in a folder: the folders above it are class and patient."""
    above = path.parent.relative_to(root).parts
    if len(above) > 2:
        raise ReadError(f"{path}: lies deeper than <class>/<patient>/; {LIE}")
    whole = _whole_tar(path)
    return replace(
        whole, label=above[0] if above else None, patient_id=above[1] if len(above) > 1 else whole.patient_id
    )


def _grouped(root: Path, images: dict[tuple[str, ...], list[Path]], name: Callable[[Path, Path], str]) -> list[Work]:
    """Bags of the images of a tree, by the first two names of their folders."""
    bags: dict[tuple[str, ...], list[Path]] = {}
    for place, files in images.items():
        bags.setdefault(place[:2], []).extend(files)
    depths = {len(place) for place in bags}
    if len(depths) > 1:
        some = sorted(bags, key=len)
        raise ReadError(f"{root}: has images in {root.joinpath(*some[0])} and in {root.joinpath(*some[-1])}; {LIE}")
    return [
        Work(
            place[-1] if place else root.name,
            tuple(files),
            told_apart([name(f, root.joinpath(*place)) for f in files], files),
            label=place[0] if len(place) == 2 else None,
            patient_id=place[-1] if place else None,
        )
        for place, files in bags.items()
    ]


def _whole_tar(path: Path) -> Work:
    """A tar as one bag, whatever its folders."""
    with guarded(path, "a tar"), tarfile.open(path) as tar:
        members = tuple(sorted(image_members(path, tar), key=lambda m: natural(m.name)))
    if not members:
        raise ReadError(f"{path}: has no images of cells ({', '.join(sorted(PICTURES))})")
    stem = path.name[: -len(next(end for end in sorted(TARS, key=len)[::-1] if path.name.lower().endswith(end)))]
    names = [PurePosixPath(m.name).stem for m in members]
    return Work(stem, (path,), told_apart(names, [Path(m.name) for m in members]), members, patient_id=stem)


def told_apart(names: Sequence[str], files: Sequence[Path]) -> tuple[str, ...]:
    """The names of the instances, which must tell them apart: else they keep the ending of the file or its folder."""
    for made in (names, [f.name for f in files], [f.as_posix() for f in files]):
        if len(set(made)) == len(made):
            return tuple(made)
    twice = next(str(f) for f in files if list(files).count(f) > 1)
    raise ManifestError(f"{twice}: is there twice in one bag; name each image once")
