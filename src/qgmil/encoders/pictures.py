"""The pictures of one bag, in order: tiles of a slide, or cells from files and tars."""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qgmil.bags.readers.base import check_path, guarded
from qgmil.errors import ConfigError, ReadError
from qgmil.images.instances import COMPRESSED, decode
from qgmil.images.slides import Slide

FITS = ("pad", "crop", "stretch")


class Pictures(Protocol):
    """What an encoder is fed for one bag.

    `names` are the instances', None for tiles; `facts` go into the file: for tiles coordinates and what is known of
    the grid.
    """

    @property
    def names(self) -> tuple[str, ...] | None: ...

    @property
    def facts(self) -> dict[str, Any]: ...

    def __len__(self) -> int: ...

    def picture(self, row: int) -> Image.Image:
        """One of them as RGB; any number of threads may ask.

        Raises:
            ReadError: it cannot be read; the file is named.
        """

    def close(self) -> None:
        """Let go of files."""


class Tiles:
    """Tiles of a slide.

    Args:
        slide: the slide.
        corners: ``(N, 2)`` upper left, in level-0 pixels.
        edge: of a tile, in level-0 pixels.
        size: pixels that a tile is read as.
        facts: for the file.
    """

    names: tuple[str, ...] | None = None

    def __init__(self, slide: Slide, corners: NDArray[np.int64], edge: float, size: int, facts: dict[str, Any]) -> None:
        self.slide, self.corners, self.edge, self.size, self.facts = slide, corners, edge, size, facts

    def __len__(self) -> int:
        return len(self.corners)

    def picture(self, row: int) -> Image.Image:
        """As `Pictures.picture`."""
        x, y = self.corners[row].tolist()
        return self.slide.region(x, y, self.edge, self.edge, (self.size, self.size), smooth=True)

    def close(self) -> None:
        """As `Pictures.close`."""
        self.slide.close()


@dataclass(frozen=True)
class Shaping:
    """How the picture of a cell becomes a square.

    Args:
        fit: of pictures that are no squares: "pad" with white to the longer edge, "crop" to the middle of the shorter,
            or "stretch".
        centre: first take the middle square of this many pixels (what lies beyond the picture is white); None: all.
    """

    fit: str = "pad"
    centre: int | None = None

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ConfigError(f"fit={self.fit!r}: there are {', '.join(FITS)}")
        if self.centre is not None and self.centre < 1:
            raise ConfigError(f"centre={self.centre}: is a number of pixels")

    def apply(self, image: Image.Image) -> Image.Image:
        """The square."""
        if self.centre is not None:
            return _middle(image, self.centre)
        if image.width == image.height or self.fit == "stretch":
            return image
        return _middle(image, (max if self.fit == "pad" else min)(image.size))


def _middle(image: Image.Image, edge: int) -> Image.Image:
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    if left >= 0 and top >= 0:
        return image.crop((left, top, left + edge, top + edge))
    square = Image.new("RGB", (edge, edge), "white")
    square.paste(image, (-left, -top))
    return square


class CellFiles:
    """Image files of one bag, each a cell."""

    facts: dict[str, Any]

    def __init__(self, files: Sequence[Path], names: Sequence[str], shaping: Shaping) -> None:
        self.files, self.names, self.shaping, self.facts = tuple(files), tuple(names), shaping, {}

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, row: int) -> Image.Image:
        """As `Pictures.picture`."""
        path = self.files[row]
        check_path(path)
        return self.shaping.apply(decode(path, path.stat().st_size, lambda: Image.open(path), eight_bit=True))

    def close(self) -> None:
        """As `Pictures.close`."""


class CellTar:
    """Images in a tar, each a cell. A compressed one is decompressed into a temporary file, as threads jump about."""

    def __init__(self, path: Path, members: Sequence[tarfile.TarInfo], names: Sequence[str], shaping: Shaping) -> None:
        self.path, self.members, self.names, self.shaping = path, tuple(members), tuple(names), shaping
        self.facts: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._tar: tarfile.TarFile | None = None
        self._plain: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self.members)

    def picture(self, row: int) -> Image.Image:
        """As `Pictures.picture`; members of a compressed tar are best asked for in their order."""
        member = self.members[row]
        place = Path(f"{self.path}::{member.name}")
        return self.shaping.apply(
            decode(place, member.size, lambda: Image.open(io.BytesIO(self._bytes(member))), eight_bit=True)
        )

    def _bytes(self, member: tarfile.TarInfo) -> bytes:
        with self._lock, guarded(self.path, "a tar"):
            if self._tar is None:
                self._tar = self._opened()
            stream = self._tar.extractfile(member)
            if stream is None:
                raise ReadError(f"{self.path}: {member.name} is no file")
            return stream.read()

    def _opened(self) -> tarfile.TarFile:
        tar = tarfile.open(self.path)  # noqa: SIM115 - closed by close()
        if not isinstance(tar.fileobj, COMPRESSED):
            return tar
        with tar:
            plain = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close(); the size was looked at before
            tar.fileobj.seek(0)
            shutil.copyfileobj(tar.fileobj, plain)
        plain.seek(0)
        self._plain = plain
        return tarfile.open(fileobj=plain)

    def close(self) -> None:
        """As `Pictures.close`."""
        with self._lock:
            if self._plain is not None:
                self._plain.close()
            if self._tar is not None:
                self._tar.close()
            self._tar = None
