"""The grid of tiles of a slide: how large a tile is at level 0, where tiles lie, and which of them have tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from qgmil.errors import BagError, ConfigError
from qgmil.images.slides import Slide
from qgmil.images.tissue import Tissue

#: Microns per pixel that a magnification stands for, by custom: 10 / magnification.
MICRONS = 10.0
#: A slide may be this much coarser than what is asked of it before its tiles count as made up.
UPSAMPLING = 1.2


@dataclass(frozen=True)
class Grid:
    """How slides are cut.

    Args:
        size: edge of a tile in pixels at `mpp`.
        mpp: microns per pixel of a tile, as the encoder sees it (before it resizes).
        overlap: pixels that neighbours share.
        min_tissue: least share of tissue in a tile that is kept.
    """

    size: int
    mpp: float
    overlap: int = 0
    min_tissue: float = 0.25

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ConfigError(f"tile={self.size}: a tile has an edge of at least 8 pixels")
        if not 0 < self.mpp < 1000:
            raise ConfigError(f"mpp={self.mpp}: microns per pixel are above 0, and 0.25 to 2 as a rule")
        if not 0 <= self.overlap < self.size:
            raise ConfigError(f"overlap={self.overlap}: must be from 0 to less than the tile of {self.size} pixels")
        if not 0 <= self.min_tissue <= 1:
            raise ConfigError(f"min_tissue={self.min_tissue}: is a share, from 0 to 1")

    @property
    def magnification(self) -> float:
        """What `mpp` is called by custom, 20 for 0.5 microns."""
        return round(MICRONS / self.mpp, 2)

    @property
    def name(self) -> str:
        """As TRIDENT names folders: ``20x_256px_0px_overlap``."""
        return f"{self.magnification:g}x_{self.size}px_{self.overlap}px_overlap"

    def level0(self, slide_mpp: float) -> float:
        """Edge of a tile in level-0 pixels."""
        return self.size * self.mpp / slide_mpp


def slide_mpp(slide: Slide, given: float | None = None) -> float:
    """Microns per level-0 pixel: what was given, else what the slide says.

    Raises:
        BagError: neither is there (it is asked for, never guessed), or no number that can be one.
    """
    if given is not None:
        if not 0 < given < 1000:
            raise BagError(f"{slide.path}: slide_mpp is {given}; expected microns per pixel, 0.1 to 1 as a rule")
        return given
    if slide.mpp is None:
        raise BagError(
            f"{slide.path}: does not say how many microns a pixel is; give --slide-mpp (for instance 0.25 of a 40x "
            "scanner, 0.5 of a 20x one), or a column mpp in the table of slides"
        )
    return slide.mpp


def check_scale(slide: Slide, grid: Grid, mpp: float) -> None:
    """Refuse to blow up a slide that is coarser than the tiles that are asked for.

    Raises:
        BagError: it is.
    """
    if mpp > UPSAMPLING * grid.mpp:
        raise BagError(
            f"{slide.path}: was scanned at {mpp:g} microns per pixel, tiles of {grid.mpp:g} would be blown up; ask for "
            f"--mpp {mpp:g} or more"
        )


def cut(slide: Slide, tissue: Tissue, grid: Grid, mpp: float) -> NDArray[np.int64]:
    """Upper left corners in level-0 pixels ``(N, 2)`` of the tiles with enough tissue, row by row; whole tiles only.

    Raises:
        BagError: the slide is coarser than the tiles, smaller than one of them, or has no tissue.
    """
    check_scale(slide, grid, mpp)
    edge = grid.level0(mpp)
    step = (grid.size - grid.overlap) * grid.mpp / mpp
    columns, rows = (math.floor((length - edge) / step + 1e-6) + 1 if length >= edge else 0 for length in slide.size)
    if columns < 1 or rows < 1:
        raise BagError(
            f"{slide.path}: is {slide.size[0]:,} x {slide.size[1]:,} pixels, smaller than one tile of "
            f"{edge:,.0f}; take smaller tiles"
        )
    x, y = np.meshgrid(np.arange(columns) * step, np.arange(rows) * step)
    corners = np.stack([x.ravel(), y.ravel()], axis=1)
    kept = tissue.share(corners[:, 0], corners[:, 1], edge) >= max(grid.min_tissue, 1e-9)
    if not kept.any():
        raise BagError(
            f"{slide.path}: no tissue was found ({tissue.area:.3f} mm² in all, {tissue.dropped:.3f} in pieces that are "
            f"too small, no tile with {grid.min_tissue:.0%} of it); look at its preview, and try --min-tissue, "
            "--min-area, --pens keep, or --tissue all"
        )
    return np.rint(corners[kept]).astype(np.int64)


def preview(
    slide: Slide, tissue: Tissue, corners: NDArray[np.int64], edge: float, *, longest: int = 1200
) -> Image.Image:
    """The slide with the outline of its tissue (green; holes too), and the tiles that were kept (blue)."""
    width, height = slide.size
    down = max(max(slide.size) / longest, 1e-9)
    size = (max(1, round(width / down)), max(1, round(height / down)))
    mask = np.asarray(Image.fromarray(tissue.mask).resize(size, Image.Resampling.NEAREST))
    shown = np.array(slide.region(0, 0, width, height, size))
    shown[mask & ~ndimage.binary_erosion(mask, iterations=2)] = (0, 150, 60)
    picture = Image.fromarray(shown)
    draw = ImageDraw.Draw(picture)
    for left, top in (corners / down).tolist():
        low = edge / down - 1
        if low > 0:
            draw.rectangle((left, top, left + low, top + low), outline=(40, 80, 220))
    return picture
