"""Slides: OpenSlide for pyramids (DICOM among them), tiffslide for OME-TIFF, Pillow for plain images.

Only what is asked for is ever in memory.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qgmil.bags.made import EXTRACTED
from qgmil.bags.readers.base import guarded
from qgmil.errors import BagError, ConfigError, ReadError

#: Pixels of a plain image (or of a slide without smaller levels) that are read at once: 12,000 x 12,000.
MAX_PIXELS = 144_000_000
#: Rows of pixels of a slide read at a time when there is no level near the wanted size.
STRIP_PIXELS = 16_000_000
#: Pixels of a level that are read for one picture, strip by strip, before it is refused: 141,000 x 141,000.
MAX_READ = 20_000_000_000
PLAIN = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
OME = (".ome.tif", ".ome.tiff", ".ome.tf2", ".ome.btf")
OME_UNITS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}  # both letters that look like mu
#: Slides by their endings: what is looked for in folders.
SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".dcm", ".btf",
    *PLAIN,
)  # fmt: skip
#: A level counts as one of the wanted downsampling up to this: scanners round the sizes of levels.
TOLERANCE = 1.01


@runtime_checkable
class Slide(Protocol):
    """A picture in level-0 pixels.

    `size` is (width, height); `mpp` microns per pixel, or None where the file does not say.
    """

    path: Path
    size: tuple[int, int]
    mpp: float | None

    def region(
        self, left: float, top: float, width: float, height: float, out: tuple[int, int], *, smooth: bool = False
    ) -> Image.Image:
        """The rectangle at (left, top), in level-0 pixels, as RGB of `out` pixels; white beyond the slide's edge.

        With `smooth`, bilinear over what falls into a pixel, as encoders are fed; else sharp, as overlays are drawn.
        """

    def close(self) -> None:
        """Let go of the file."""


def open_slide(path: str | Path) -> Slide:
    """Open a slide or image.

    Raises:
        ReadError: missing, no image, or an image too large to read as a whole (its size is named).
        ConfigError: a slide format, and OpenSlide is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ReadError(f"{path}: no such file; name the slide or image")
    if path.suffix.lower() in PLAIN:
        return PlainImage(path)
    if path.name.lower().endswith(OME):
        return _open_ome(path)
    try:
        import openslide
    except ImportError:
        return _without_openslide(path)
    try:
        slide = openslide.OpenSlide(str(path))
        return OpenSlideImage(path, slide, slide.properties.get("openslide.mpp-x"))
    except openslide.OpenSlideUnsupportedFormatError:
        return PlainImage(path)  # a TIFF without a scanner's tags
    except openslide.OpenSlideError as error:
        raise ReadError(f"{path}: cannot be read as a slide ({error}); copy it again") from None


def slides_under(folder: Path) -> dict[str, Path]:
    """The slides in a folder and below by name (stem), sorted; of a DICOM slide, which is many files, one is given.

    Raises:
        ReadError: two slides of one name (both are named).
    """
    found: dict[str, Path] = {}
    for path in sorted(p for p in files_under(folder) if p.suffix.lower() in SUFFIXES and p.is_file()):
        dicom = path.suffix.lower() == ".dcm"
        name = slide_name(path)
        other = found.setdefault(name, path)
        if other != path and not (dicom and other.parent == path.parent):
            raise ReadError(
                f"{folder}: both {other} and {path} would be bag {name!r}; rename one, or name them in a table"
            )
    return found


def files_under(folder: Path) -> Iterator[Path]:
    """The files in a folder and below, without hidden ones and without what `qgmil extract` and `predict` wrote."""
    for at, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not is_output(Path(at, f))]
        yield from (Path(at, f) for f in files if not f.startswith("."))


def is_output(folder: Path) -> bool:
    """Whether a folder is what `qgmil extract` or `predict` wrote: its previews and overlays are no images of yours."""
    name = folder.name.removesuffix("_overlays")
    beside = folder.with_name(f"{name}_bags") if name != folder.name else folder
    return (beside / EXTRACTED).is_file()


def slide_name(path: Path) -> str:
    """What the bag of a slide is called: its file without the ending, of DICOM its folder."""
    ome = next((e for e in OME if path.name.lower().endswith(e)), None)
    return path.parent.name if path.suffix.lower() == ".dcm" else path.name[: -len(ome)] if ome else path.stem


def check_inside(bag_id: str, tiles: NDArray[np.float64], edge: float, slide: Slide) -> None:
    """A map on the wrong slide looks right: the tiles must lie on it, up to the part of one that padding adds.

    Args:
        tiles: ``(N, 2)`` upper left corners in level-0 pixels.
        edge: of a tile in level-0 pixels.

    Raises:
        BagError: they do not; both are named.
    """
    near, far = tiles.min(axis=0), tiles.max(axis=0) + edge
    if (near < -edge).any() or (far > np.array(slide.size) + edge).any():
        raise BagError(
            f"bag {bag_id!r} has tiles from ({near[0]:g}, {near[1]:g}) to ({far[0]:g}, {far[1]:g}), but "
            f"{slide.path} is {slide.size[0]:,} x {slide.size[1]:,} pixels: is it the slide that they were cut from?"
        )


def _open_ome(path: Path) -> Slide:
    """OME-TIFF keeps its smaller levels where OpenSlide does not look."""
    try:
        import tiffslide
    except ImportError:
        raise ConfigError(f"{path}: reading OME-TIFF needs tiffslide (pip install 'qgmil[ome]')") from None
    with guarded(path, "an OME-TIFF"):
        slide = tiffslide.TiffSlide(str(path))
        series = slide.ts_tifffile.series[0]
        if series.dtype != "uint8" or (series.axes.endswith("S") and series.shape[-1] not in (3, 4)):
            raise ReadError(
                f"{path}: has pixels of {series.dtype}, axes {series.axes} {series.shape}; slides are read as 8-bit "
                "RGB: convert it first, as which grey is white is yours to say"
            )
        return OpenSlideImage(path, slide, ome_microns(str(slide.properties.get("tiff.ImageDescription") or "")))


def ome_microns(xml: str) -> float | None:
    """Microns per pixel of the first image of an OME header; None where it says none (microns by default)."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]{0,10000}>", xml)
    if pixels is None or (size := re.search(r'\bPhysicalSizeX="([^"]{1,40})"', pixels[0])) is None:
        return None
    unit = re.search(r'\bPhysicalSizeXUnit="([^"]{1,40})"', pixels[0])
    factor = OME_UNITS.get(unit[1] if unit is not None else "µm")
    value = _positive(size[1])
    return None if value is None or factor is None else value * factor


def _without_openslide(path: Path) -> Slide:
    try:
        return PlainImage(path)
    except ReadError as error:
        raise ConfigError(
            f"{path}: reading slides needs OpenSlide (pip install 'qgmil[slides]'); as a plain image: {error}"
        ) from None


class PlainImage:
    """A PNG, JPEG or TIFF of one level. Its resolution is not believed: cameras and editors write any number there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mpp: float | None = None
        with guarded(path, "an image"), _no_limit(), Image.open(path) as image:
            self.size = image.size
            self.deep = is_deep(image)
        width, height = self.size
        if width * height > MAX_PIXELS:
            raise ReadError(
                f"{path}: is an image of {width:,} x {height:,} pixels, more than {MAX_PIXELS:,} to read as a whole; "
                "make a pyramid of it (for instance with vips tiffsave --pyramid --tile), or draw without it"
            )
        self._whole: Image.Image | None = None
        self._lock = threading.Lock()

    def region(
        self, left: float, top: float, width: float, height: float, out: tuple[int, int], *, smooth: bool = False
    ) -> Image.Image:
        """As `Slide.region`."""
        with self._lock:  # threads that read tiles decode it once
            if self._whole is None:
                with guarded(self.path, "an image"), _no_limit(), Image.open(self.path) as image:
                    self._whole = flat(image)
            whole = self._whole
        return cut(whole, left, top, width, height, out, smooth)

    def close(self) -> None:
        """As `Slide.close`."""
        self._whole = None


class OpenSlideImage:
    """A slide of several levels; the smallest that is still as sharp as what is shown is read.

    Args:
        path: the file.
        slide: an open OpenSlide, or what has its methods.
        mpp: microns per pixel as the file says it.
    """

    def __init__(self, path: Path, slide: Any, mpp: Any = None) -> None:
        self.path, self._slide = path, slide
        self.size: tuple[int, int] = tuple(slide.dimensions)
        self.mpp = _positive(mpp)

    def close(self) -> None:
        """As `Slide.close`."""
        self._slide.close()

    def region(
        self, left: float, top: float, width: float, height: float, out: tuple[int, int], *, smooth: bool = False
    ) -> Image.Image:
        """As `Slide.region`; where even the smallest level is far larger than `out`, strip by strip."""
        if left < 0 or top < 0 or left + width > self.size[0] or top + height > self.size[1]:
            return self._beyond(left, top, width, height, out, smooth)
        level = self._slide.get_best_level_for_downsample(max(1.0, width / out[0] * TOLERANCE))
        down = float(self._slide.level_downsamples[level])
        columns, rows = max(1, round(width / down)), max(1, round(height / down))
        if columns * rows > MAX_READ:
            raise ReadError(
                f"{self.path}: has no level smaller than {columns:,} x {rows:,} pixels to look at; make a pyramid of it"
            )
        step = max(1, min(rows, STRIP_PIXELS // columns))
        picture = Image.new("RGB", out, "white")
        for start in range(0, rows, step):
            count = min(step, rows - start)
            at = (round(left), round(top + start * down))
            with guarded(self.path, "a slide"):
                part = self._slide.read_region(at, level, (columns, count))
            y0, y1 = round(start / rows * out[1]), round((start + count) / rows * out[1])
            if y1 > y0:
                how = Image.Resampling.BILINEAR if smooth else Image.Resampling.BOX
                picture.paste(flat(part).resize((out[0], y1 - y0), how), (0, y0))
        return picture

    def _beyond(
        self, left: float, top: float, width: float, height: float, out: tuple[int, int], smooth: bool
    ) -> Image.Image:
        """A region that reaches over the edge: libraries fill what is not there with black or nothing."""
        x0, y0 = max(0.0, left), max(0.0, top)
        x1, y1 = min(float(self.size[0]), left + width), min(float(self.size[1]), top + height)
        picture = Image.new("RGB", out, "white")
        if x1 > x0 and y1 > y0:
            sx, sy = out[0] / width, out[1] / height
            size = (max(1, round((x1 - x0) * sx)), max(1, round((y1 - y0) * sy)))
            inside = self.region(x0, y0, x1 - x0, y1 - y0, size, smooth=smooth)
            picture.paste(inside, (round((x0 - left) * sx), round((y0 - top) * sy)))
        return picture


def cut(
    whole: Image.Image, left: float, top: float, width: float, height: float, out: tuple[int, int], smooth: bool = False
) -> Image.Image:
    """A rectangle of an RGB image at another size; white beyond its edge."""
    box = (left, top, left + width, top + height)
    sharp = Image.Resampling.BOX if width > out[0] else Image.Resampling.NEAREST
    how = Image.Resampling.BILINEAR if smooth else sharp
    if box[0] >= 0 and box[1] >= 0 and box[2] <= whole.width and box[3] <= whole.height:
        return whole.resize(out, how, box=box)
    x0, y0 = max(0.0, left), max(0.0, top)
    x1, y1 = min(float(whole.width), box[2]), min(float(whole.height), box[3])
    picture = Image.new("RGB", out, "white")
    if x1 > x0 and y1 > y0:
        sx, sy = out[0] / width, out[1] / height
        size = (max(1, round((x1 - x0) * sx)), max(1, round((y1 - y0) * sy)))
        part = whole.resize(size, Image.Resampling.BILINEAR if smooth else Image.Resampling.BOX, box=(x0, y0, x1, y1))
        picture.paste(part, (round((x0 - left) * sx), round((y0 - top) * sy)))
    return picture


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has more than 8 bits a channel, so that which value is white would be a guess."""
    raw = [str(tile[3]) for tile in getattr(image, "tile", [])]  # how Pillow unpacks it: RGB;16B loses half
    return image.mode.startswith("I") or image.mode == "F" or any(";16" in r or ";32" in r for r in raw)


def flat(image: Image.Image) -> Image.Image:
    """RGB over white: transparency is what lies beyond the scanned area; 16 bits are scaled, not cut off."""
    if image.mode.startswith("I") or image.mode == "F":
        low, high = image.getextrema()
        scale = 255 / (float(high) - float(low)) if high != low else 0.0  # type: ignore[arg-type]
        image = image.point(lambda v: (v - float(low)) * scale).convert("L")  # type: ignore[arg-type]
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        over = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(over, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _no_limit() -> Iterator[None]:
    """Pillow's own limit off: it warns or stops at sizes of its own, ours is checked with the declared size."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _positive(text: Any) -> float | None:
    try:
        value = float(text or "")
    except (TypeError, ValueError):
        return None
    return value if 0 < value < 1000 else None
