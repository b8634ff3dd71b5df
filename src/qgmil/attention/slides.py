"""Slides to draw on: OpenSlide for pyramids, Pillow for plain images. Only what is shown is ever in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qgmil.bags.readers.base import guarded
from qgmil.errors import BagError, ConfigError, ReadError

#: Pixels of a plain image (or of a slide without smaller levels) that are read at once: 12,000 x 12,000.
MAX_PIXELS = 144_000_000
#: Rows of pixels of a slide read at a time when there is no level near the wanted size.
STRIP_PIXELS = 16_000_000
PLAIN = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@runtime_checkable
class Slide(Protocol):
    """A picture in level-0 pixels.

    `size` is (width, height); `mpp` microns per pixel, or None where the file does not say.
    """

    path: Path
    size: tuple[int, int]
    mpp: float | None

    def region(self, left: float, top: float, width: float, height: float, out: tuple[int, int]) -> Image.Image:
        """The rectangle at (left, top), in level-0 pixels, as RGB of `out` pixels; white beyond the slide's edge."""


def open_slide(path: str | Path) -> Slide:
    """Open a slide or image.

    Raises:
        ReadError: missing, no image, or an image too large to read as a whole (its size is named).
        ConfigError: a slide format, and OpenSlide is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ReadError(f"{path}: no such file; name the slide or image to draw on")
    if path.suffix.lower() in PLAIN:
        return PlainImage(path)
    try:
        import openslide
    except ImportError:
        return _without_openslide(path)
    try:
        return OpenSlideImage(path, openslide.OpenSlide(str(path)))
    except openslide.OpenSlideUnsupportedFormatError:
        return PlainImage(path)  # a TIFF without a scanner's tags
    except openslide.OpenSlideError as error:
        raise ReadError(f"{path}: cannot be read as a slide ({error}); copy it again") from None


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
        width, height = self.size
        if width * height > MAX_PIXELS:
            raise ReadError(
                f"{path}: is an image of {width:,} x {height:,} pixels, more than {MAX_PIXELS:,} to read as a whole; "
                "make a pyramid of it (for instance with vips tiffsave --pyramid --tile), or draw without it"
            )
        self._whole: Image.Image | None = None

    def region(self, left: float, top: float, width: float, height: float, out: tuple[int, int]) -> Image.Image:
        """As `Slide.region`."""
        if self._whole is None:
            with guarded(self.path, "an image"), _no_limit(), Image.open(self.path) as image:
                self._whole = flat(image)
        return cut(self._whole, left, top, width, height, out)


class OpenSlideImage:
    """A slide of several levels; the smallest that is still as sharp as what is shown is read."""

    def __init__(self, path: Path, slide: Any) -> None:
        self.path, self._slide = path, slide
        self.size: tuple[int, int] = slide.dimensions
        self.mpp = _positive(slide.properties.get("openslide.mpp-x"))

    def region(self, left: float, top: float, width: float, height: float, out: tuple[int, int]) -> Image.Image:
        """As `Slide.region`; where even the smallest level is far larger than `out`, strip by strip."""
        level = self._slide.get_best_level_for_downsample(max(1.0, width / out[0]))
        down = float(self._slide.level_downsamples[level])
        columns, rows = max(1, round(width / down)), max(1, round(height / down))
        step = max(1, min(rows, STRIP_PIXELS // columns))
        picture = Image.new("RGB", out, "white")
        for start in range(0, rows, step):
            count = min(step, rows - start)
            at = (round(left), round(top + start * down))
            with guarded(self.path, "a slide"):
                part = self._slide.read_region(at, level, (columns, count))
            y0, y1 = round(start / rows * out[1]), round((start + count) / rows * out[1])
            if y1 > y0:
                picture.paste(flat(part).resize((out[0], y1 - y0), Image.Resampling.BOX), (0, y0))
        return picture


def cut(whole: Image.Image, left: float, top: float, width: float, height: float, out: tuple[int, int]) -> Image.Image:
    """A rectangle of an RGB image at another size; white beyond its edge."""
    box = (left, top, left + width, top + height)
    if box[0] >= 0 and box[1] >= 0 and box[2] <= whole.width and box[3] <= whole.height:
        return whole.resize(out, Image.Resampling.BOX if width > out[0] else Image.Resampling.NEAREST, box=box)
    x0, y0 = max(0.0, left), max(0.0, top)
    x1, y1 = min(float(whole.width), box[2]), min(float(whole.height), box[3])
    picture = Image.new("RGB", out, "white")
    if x1 > x0 and y1 > y0:
        sx, sy = out[0] / width, out[1] / height
        size = (max(1, round((x1 - x0) * sx)), max(1, round((y1 - y0) * sy)))
        part = whole.resize(size, Image.Resampling.BOX, box=(x0, y0, x1, y1))
        picture.paste(part, (round((x0 - left) * sx), round((y0 - top) * sy)))
    return picture


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


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < 1000 else None
