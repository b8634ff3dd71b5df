"""Pictures of instances: from a folder, from a tar, or cut out of the slide."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol

from PIL import Image

from qgmil.bags.bag import Bag
from qgmil.bags.readers.base import guarded
from qgmil.errors import BagError, ReadError
from qgmil.images.slides import check_inside, flat, is_deep, open_slide

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
COMPRESSED = (gzip.GzipFile, bz2.BZ2File, lzma.LZMAFile)
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: Largest picture of an instance, in pixels and in bytes of its file.
MAX_PIXELS, MAX_BYTES = 64_000_000, 2**28
MAX_FILES = 5_000_000
#: Bytes that a compressed tar may unpack to: to find its members, all of it is decompressed.
MAX_UNPACKED = 2**36


class Images(Protocol):
    """Pictures of the instances of a bag, by row."""

    def picture(self, row: int) -> Image.Image:
        """The instance as RGB.

        Raises:
            ReadError: it cannot be read; the file is named.
        """


def is_slide(where: str | Path) -> bool:
    """Whether pictures are cut from this file by coordinates; of a folder or tar they are found by name."""
    path = Path(where)
    return path.is_file() and not path.name.lower().endswith(TARS)


def open_images(where: str | Path, bag: Bag) -> Images:
    """Pictures for the instances of a bag.

    Args:
        where: a folder or tar in which files are named by `bag.instance_ids` (with or without ending, with or without
            folders in front), or a slide or image that the bag's coordinates lie on (`place_tiles`).

    Raises:
        ReadError: nothing there, or no picture for any instance.
        BagError: the bag has no names of instances, or no coordinates, or they do not lie on the slide.
    """
    path = Path(where)
    if path.is_dir():
        return Folder(path, bag)
    if not path.is_file():
        raise ReadError(f"{path}: no such file or folder; name the folder, tar or slide with the pictures")
    if not is_slide(path):
        return Tar(path, bag)
    if bag.coords is None or bag.coord_unit != "px" or bag.tile_size is None:
        raise BagError(
            f"bag {bag.bag_id!r}: cutting its tiles out of {path} needs coordinates in level-0 pixels and a tile size; "
            "give --coord-unit px and --tile-size if that is what they are"
        )
    return Cut(path, bag)


class Cut:
    """Tiles cut out of a slide."""

    def __init__(self, path: Path, bag: Bag) -> None:
        self.slide, self.bag = open_slide(path), bag
        assert bag.coords is not None and bag.tile_size is not None
        self.edge = float(bag.tile_size)
        check_inside(bag.bag_id, bag.coords.double().numpy(), self.edge, self.slide)

    def picture(self, row: int) -> Image.Image:
        """As `Images.picture`."""
        assert self.bag.coords is not None
        x, y = self.bag.coords[row].tolist()
        side = max(1, min(512, round(self.edge)))
        return self.slide.region(x, y, self.edge, self.edge, (side, side))


class _Named(ABC):
    """Pictures that are found by the names of the instances.

    Args:
        where: what they are in.
        bag: whose instances have names.
        names: of all pictures there.
    """

    def __init__(self, where: Path, bag: Bag, names: Collection[str]) -> None:
        self.where = where
        self.found = _match(where, bag, names)

    def picture(self, row: int) -> Image.Image:
        """As `Images.picture`."""
        if row not in self.found:
            raise ReadError(f"{self.where}: has no picture of this instance")
        return self._read(self.found[row])

    @abstractmethod
    def _read(self, name: str) -> Image.Image: ...


class Folder(_Named):
    """Image files under a folder."""

    def __init__(self, path: Path, bag: Bag) -> None:
        files = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        super().__init__(path, bag, [p.relative_to(path).as_posix() for p in sorted(files)])

    def _read(self, name: str) -> Image.Image:
        path = self.where / name
        return decode(path, path.stat().st_size, lambda: Image.open(path))


class Tar(_Named):
    """Image files in a tar, read one by one where they lie; nothing is unpacked to disk."""

    def __init__(self, path: Path, bag: Bag) -> None:
        with guarded(path, "a tar"), tarfile.open(path) as tar:
            self.members = {m.name: m for m in image_members(path, tar)}
        super().__init__(path, bag, self.members)

    @staticmethod
    def pictures(path: Path, names: Collection[str]) -> Iterator[Image.Image]:
        """Images of a tar by name, in its order, in one pass.

        Raises:
            ReadError: one that cannot be read.
        """
        with guarded(path, "a tar"), tarfile.open(path) as tar:
            for member in image_members(path, tar):
                if member.name in names and (stream := tar.extractfile(member)) is not None:
                    content = io.BytesIO(stream.read())
                    yield decode(Path(f"{path}::{member.name}"), member.size, partial(Image.open, content))

    def _read(self, name: str) -> Image.Image:
        member = self.members[name]

        def read() -> Image.Image:
            with tarfile.open(self.where) as tar:
                stream = tar.extractfile(member)
                assert stream is not None  # members are regular files
                return Image.open(io.BytesIO(stream.read()))

        return decode(Path(f"{self.where}::{name}"), member.size, read)


def image_members(path: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The images in a tar, in its order.

    Raises:
        ReadError: too many files, or a compressed tar that unpacks to too much.
    """
    unpacked = 0
    for number, member in enumerate(tar):
        if number >= MAX_FILES:
            raise ReadError(f"{path}: holds more than {MAX_FILES:,} files")
        unpacked += member.size
        if unpacked > MAX_UNPACKED and isinstance(tar.fileobj, COMPRESSED):
            raise ReadError(f"{path}: unpacks to more than {MAX_UNPACKED:,} bytes; pack what is shown alone")
        if member.isreg() and PurePosixPath(member.name).suffix.lower() in SUFFIXES:
            yield member


def decode(path: Path, size: int, read: Callable[[], Image.Image], *, eight_bit: bool = False) -> Image.Image:
    """A picture of one instance as RGB, over white where it is transparent.

    Args:
        path: for messages.
        size: bytes of its file.
        read: opens it, without decoding its pixels.
        eight_bit: refuse brighter greys than 8 bits hold, instead of stretching what is there to them.

    Raises:
        ReadError: broken, or too large by its declared size; it is named.
    """
    if size > MAX_BYTES:
        raise ReadError(f"{path}: is {size:,} bytes, more than a picture of one instance can be")
    with guarded(path, "an image"), read() as image:
        if image.width * image.height > MAX_PIXELS:
            raise ReadError(f"{path}: declares {image.width:,} x {image.height:,} pixels; that is no single instance")
        if eight_bit and is_deep(image):
            raise ReadError(
                f"{path}: has more than 8 bits a pixel (mode {image.mode}); which grey is white is yours to say: "
                "convert it to 8 bits first"
            )
        return flat(image)


def _match(where: Path, bag: Bag, names: Collection[str]) -> dict[int, str]:
    """The file of each row: by its name as it stands, else by its last part, each with or without ending.

    Raises:
        BagError: instances without names.
        ReadError: a name that fits several files (both are named), or no file at all.
    """
    if bag.instance_ids is None:
        raise BagError(
            f"bag {bag.bag_id!r}: its file has no names of instances (instance_ids), so nothing says which picture in "
            f"{where} is which; for tiles with coordinates name the slide instead"
        )
    exact: dict[str, list[str]] = {}
    last: dict[str, list[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        for key in {name, str(path.with_suffix(""))}:
            exact.setdefault(key, []).append(name)
        for key in {path.name, path.stem}:
            last.setdefault(key, []).append(name)
    found: dict[int, str] = {}
    for row, instance in enumerate(bag.instance_ids):
        candidates = exact.get(instance) or last.get(instance) or last.get(PurePosixPath(instance).name) or []
        if len(candidates) > 1:
            raise ReadError(
                f"{where}: instance {instance!r} of bag {bag.bag_id!r} could be {candidates[0]!r} or "
                f"{candidates[1]!r}; name the folder of this bag alone"
            )
        if candidates:
            found[row] = candidates[0]
    if not found:
        some = next(iter(names), None)
        there = f"it has {some!r}" if some else "it has no images"
        raise ReadError(
            f"{where}: has no picture of bag {bag.bag_id!r} (its first instance is {bag.instance_ids[0]!r}; {there})"
        )
    return found
