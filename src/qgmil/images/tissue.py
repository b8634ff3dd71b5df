"""Where the tissue is: a mask of a small picture of the slide.

Glass is grey, stained tissue is coloured: the chroma of a pixel, the largest of its red, green and blue minus the
smallest, tells them apart under white and grey backgrounds, and black where nothing was scanned. The threshold is
Otsu's (1979), held between `LEAST` and `MOST`, so that neither dust on an empty slide nor a picture full of tissue
splits in two. Pixels of the colours of pens are taken out first (`PENS`). Then gaps are closed, pieces smaller than
`min_area` go, and holes smaller than `max_hole` are filled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from qgmil.errors import ConfigError
from qgmil.images.slides import Slide

#: Microns per pixel of the picture in which tissue is looked for, and its longest edge.
MPP, MAX_EDGE = 8.0, 4096
#: Bounds of the threshold on chroma, of 255.
LEAST, MOST = 8, 16
PENS = ("drop", "keep")
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tissue:
    """Where the tissue of a slide is.

    Args:
        mask: ``(h, w)``, True on tissue.
        picture: what it was found in, of the same size.
        scale: level-0 pixels a pixel of the mask, in x and in y.
        area: of the tissue in mm².
        threshold: on chroma, of 255; None where everything was taken.
        dropped: mm² in pieces that were too small.
    """

    mask: Mask
    picture: Image.Image
    scale: tuple[float, float]
    area: float
    threshold: int | None
    dropped: float = 0.0

    def share(self, x: NDArray[np.float64], y: NDArray[np.float64], edge: float) -> NDArray[np.float64]:
        """Share of tissue in each square, by its upper left corner in level-0 pixels: ``(N,)``, 0 to 1."""
        summed = np.pad(self.mask.cumsum(0).cumsum(1, dtype=np.int64), ((1, 0), (1, 0)))
        height, width = self.mask.shape
        x0, y0 = _cells(x / self.scale[0], width), _cells(y / self.scale[1], height)
        x1 = np.maximum(x0 + 1, _cells((x + edge) / self.scale[0], width))
        y1 = np.maximum(y0 + 1, _cells((y + edge) / self.scale[1], height))
        x0, y0, x1, y1 = np.minimum(x0, width - 1), np.minimum(y0, height - 1), x1.clip(1, width), y1.clip(1, height)
        inside = summed[y1, x1] - summed[y0, x1] - summed[y1, x0] + summed[y0, x0]
        return inside / ((x1 - x0) * (y1 - y0))


def _cells(at: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    return np.rint(at).astype(np.int64).clip(0, most)


def find_tissue(
    slide: Slide,
    mpp: float,
    *,
    pens: str = "drop",
    min_area: float = 0.02,
    max_hole: float = 0.02,
    everything: bool = False,
) -> Tissue:
    """Look for tissue in a picture of the slide at 8 microns a pixel (coarser for slides above 32 mm).

    Args:
        slide: the slide.
        mpp: its microns per level-0 pixel.
        pens: "drop" takes saturated green, blue and red marks for pen; "keep" for stains of such colours.
        min_area: smallest piece of tissue, in mm².
        max_hole: holes up to this size, in mm², are tissue.
        everything: take the whole picture as tissue.

    Raises:
        ConfigError: another value of `pens`, or areas below zero.
        ReadError: the slide cannot be read.
    """
    if pens not in PENS:
        raise ConfigError(f"pens={pens!r}: say drop (marks of pens are no tissue) or keep")
    if not (0 <= min_area < math.inf and 0 <= max_hole < math.inf):
        raise ConfigError(f"areas are in mm², and not below 0: min_area={min_area}, max_hole={max_hole}")
    width, height = slide.size
    down = max(1.0, MPP / mpp, max(slide.size) / MAX_EDGE)
    size = (max(1, round(width / down)), max(1, round(height / down)))
    picture = slide.region(0, 0, width, height, size)
    scale = (width / size[0], height / size[1])
    pixel = scale[0] * scale[1] * mpp**2 / 1e6  # mm²
    if everything:
        mask, threshold = np.ones((size[1], size[0]), bool), None
        dropped = 0.0
    else:
        mask, threshold = coloured(np.asarray(picture), pens=pens)
        mask = ndimage.binary_closing(np.pad(mask, 3, mode="edge"), _disc(2))[3:-3, 3:-3] | mask
        before = mask
        mask = without_small(mask, min_area / pixel)
        dropped = float((before & ~mask).sum()) * pixel
        mask = filled(mask, max_hole / pixel)
    return Tissue(mask, picture, scale, float(mask.sum()) * pixel, threshold, dropped)


def coloured(rgb: NDArray[np.uint8], *, pens: str = "drop") -> tuple[Mask, int]:
    """Pixels with more chroma than the threshold, and the threshold.

    Args:
        rgb: ``(h, w, 3)``.
        pens: as for `find_tissue`.
    """
    smooth = ndimage.gaussian_filter(rgb.astype(np.float32), (1, 1, 0))
    chroma = smooth.max(axis=2) - smooth.min(axis=2)
    drawn = pen(smooth) if pens == "drop" else np.zeros(chroma.shape, bool)
    levels = chroma[~drawn].astype(np.uint8)
    threshold = int(np.clip(otsu(np.bincount(levels, minlength=256)), LEAST, MOST))
    return (chroma > threshold) & ~drawn, threshold


def pen(rgb: NDArray[np.float32]) -> Mask:
    """Ink: green above red as no stain of tissue is, blue or red far above the others; with a rim of two pixels."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    ink = ((green - red > 18) & (green - blue > -40)) | (blue - red > 85) | ((red - green > 130) & (red - blue > 110))
    return ndimage.binary_dilation(ndimage.binary_opening(ink, _disc(1)), _disc(2))


def otsu(counts: NDArray[np.int64]) -> int:
    """The level up to which one of two classes goes, so that the variance between them is largest (Otsu 1979)."""
    levels = np.arange(len(counts))
    below, total = counts.cumsum(), counts.sum()
    moment = (counts * levels).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * below - moment * total) ** 2.0 / (below * (total - below))
    between[~np.isfinite(between)] = -1
    return int(np.flatnonzero(between == between.max()).mean()) if total else 0


def without_small(mask: Mask, least: float) -> Mask:
    """The mask without connected pieces of fewer pixels than `least`."""
    pieces, count = ndimage.label(mask)
    if not count:
        return mask
    keep = np.bincount(pieces.ravel()) >= least
    keep[0] = False
    return keep[pieces]


def filled(mask: Mask, most: float) -> Mask:
    """The mask with its holes of at most `most` pixels; what reaches the edge of the picture is no hole."""
    pieces, count = ndimage.label(~mask)
    if not count:
        return mask
    small = np.bincount(pieces.ravel()) <= most
    for edge in (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]):
        small[edge] = False
    small[0] = False
    return mask | small[pieces]


def _disc(radius: int) -> Mask:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x**2 + y**2 <= radius**2 + 0.5
