"""Instance scores where the instances lie: a map in colour over the slide, or over their outlines alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from qgmil.attention.scores import InstanceScores
from qgmil.attention.slides import Slide
from qgmil.bags.bag import Bag
from qgmil.errors import BagError, ConfigError

#: Largest edge of a picture.
MAX_SIZE = 10_000
PERCENTILES = (1.0, 99.0)
RANGES = ("percentile", "absolute", "0-max")


@dataclass(frozen=True, eq=False)
class Overlay:
    """A map of scores and what lies under it, both of one size.

    Args:
        base: RGB, the slide; without one a blank canvas with the outlines of the tiles.
        heat: RGBA, one colour a tile, opaque where there is one.
        origin: level-0 pixel (x, y) of the picture's upper left corner.
        scale: picture pixels a level-0 pixel.
        tiles: ``(N, 2)`` upper left corners in level-0 pixels, in the order of the scores.
        tile_size: edge of a tile in level-0 pixels.
        mpp: microns per level-0 pixel, or None.
        low, high: scores at the ends of the colour map.
        range_name: how they were chosen, in words.
        colours: name of the colour map.
        scores: what is shown.
        values: ``(N,)`` what the colours show: the scores, or their percentile ranks.
    """

    base: Image.Image
    heat: Image.Image
    origin: tuple[float, float]
    scale: float
    tiles: NDArray[np.float64]
    tile_size: float
    mpp: float | None
    low: float
    high: float
    range_name: str
    colours: str
    scores: InstanceScores
    values: NDArray[np.float64]

    def blended(self, opacity: float = 0.5) -> Image.Image:
        """The map over the slide.

        Raises:
            ConfigError: an opacity outside 0 to 1.
        """
        if not 0 <= opacity <= 1:
            raise ConfigError(f"opacity must lie between 0 and 1, got {opacity!r}")
        alpha = self.heat.getchannel("A").point(lambda a: round(a * opacity))
        picture = self.base.copy()
        picture.paste(self.heat.convert("RGB"), mask=alpha)
        return picture


def place_tiles(
    bag: Bag, *, tile_size: float | None = None, coord_unit: str | None = None, mpp: float | None = None
) -> Bag:
    """The bag with coordinates and tile size in level-0 pixels, from what it knows and what is given.

    Args:
        tile_size: edge of a tile in the unit of the coordinates, where the file does not know it.
        coord_unit: "px", "um" or "grid", where the file does not know it.
        mpp: microns per level-0 pixel, for coordinates in microns.

    Raises:
        BagError: no coordinates, an unknown unit or tile size, or microns without a pixel size; it says how to give it.
    """
    where = f"bag {bag.bag_id!r}"
    if bag.coords is None:
        raise BagError(f"{where} has no coordinates: there is nowhere to draw its instances; try qgmil gallery")
    unit = coord_unit or bag.coord_unit
    if unit is None:
        raise BagError(
            f"{where}: its file does not say what unit its coordinates have; if they are level-0 pixels of the upper "
            "left corner give --coord-unit px (um: microns, grid: column and row)"
        )
    edge = 1.0 if unit == "grid" else tile_size if tile_size is not None else bag.tile_size
    if unit == "grid" and (tile_size or bag.tile_size) is not None:
        size = float(tile_size or bag.tile_size or 1)
        return replace(bag, coords=bag.coords * size, coord_unit="px", tile_size=size)
    if edge is None:
        raise BagError(
            f"{where}: its file does not say how large its tiles are; give --tile-size, in the unit of the coordinates "
            f"({unit})"
        )
    if not edge > 0:
        raise BagError(f"{where}: a tile size of {edge:g} cannot be drawn; it must be above 0")
    if unit == "um":
        per_pixel = mpp or bag.mpp
        if per_pixel is None:
            raise BagError(f"{where}: its coordinates are in microns; give the microns per level-0 pixel with --mpp")
        return replace(
            bag, coords=bag.coords.double() / per_pixel, coord_unit="px", tile_size=edge / per_pixel, mpp=per_pixel
        )
    return replace(bag, coord_unit="px", tile_size=float(edge), mpp=bag.mpp or mpp)


def make_overlay(
    bag: Bag,
    scores: InstanceScores,
    slide: Slide | None = None,
    *,
    size: int = 2000,
    colours: str = "viridis",
    value_range: str | tuple[float, float] = "percentile",
    smooth: bool = False,
) -> Overlay:
    """Draw the scores of a bag whose coordinates are level-0 pixels (`place_tiles`).

    Overlapping tiles share their pixels: where several lie, the mean of their scores is shown.

    Args:
        slide: what to draw on; None: the outlines of the tiles.
        size: longer edge of the picture, in pixels.
        colours: a colour map of matplotlib; viridis, cividis and magma can be told apart with any colour vision.
        value_range: "percentile": from the 1st to the 99th percentile of the bag's scores; "absolute": 0 to 1;
            "0-max": 0 to the largest; or (low, high).
        smooth: interpolate between tiles. Off, what is seen is what was computed.

    Raises:
        BagError: coordinates in another unit, no tile size, other instances than scores, or a slide that does not
            contain them.
        ConfigError: an unknown colour map or range, or a size that cannot be.
    """
    if bag.coords is None or bag.coord_unit != "px" or bag.tile_size is None:
        raise BagError(f"bag {bag.bag_id!r}: its coordinates are not in level-0 pixels with a tile size (place_tiles)")
    if len(scores.values) != len(bag):
        raise BagError(f"bag {bag.bag_id!r}: {len(scores.values)} scores for {len(bag)} instances")
    if not 16 <= size <= MAX_SIZE:
        raise ConfigError(f"a picture of {size} pixels cannot be drawn: choose a size from 16 to {MAX_SIZE:,}")
    if colours not in colormaps:
        raise ConfigError(
            f"there is no colour map {colours!r}: take viridis, cividis, magma or another of matplotlib's"
        )
    tiles = bag.coords.to(torch.float64).numpy()
    edge, mpp = float(bag.tile_size), bag.mpp
    if slide is None:
        origin = (float(tiles[:, 0].min()), float(tiles[:, 1].min()))
        extent = tuple(float(tiles[:, i].max()) + edge - origin[i] for i in (0, 1))
    else:
        _check_inside(bag, tiles, edge, slide)
        origin, extent, mpp = (0.0, 0.0), (float(slide.size[0]), float(slide.size[1])), bag.mpp or slide.mpp
    scale = size / max(extent)
    out = (max(1, round(extent[0] * scale)), max(1, round(extent[1] * scale)))
    low, high, name = choose_range(scores.values, value_range)
    heat = _heat(tiles, edge, scores.values, origin, scale, out, (low, high), colours, smooth)
    if slide is None:
        base = _outlines(tiles, edge, origin, scale, out)
    else:
        base = slide.region(0, 0, extent[0], extent[1], out)
    return Overlay(
        base, heat, origin, scale, tiles, edge, mpp, low, high, name, colours, scores, np.asarray(scores.values)
    )


def choose_range(
    values: Sequence[float] | NDArray[np.float64], wanted: str | tuple[float, float]
) -> tuple[float, float, str]:
    """Scores at the two ends of the colours, and in words how they were chosen.

    Raises:
        ConfigError: an unknown name, or limits that do not increase.
    """
    v = np.asarray(values, dtype=np.float64)
    if isinstance(wanted, tuple):
        low, high = wanted
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"the range of colours must increase, got {low:g} to {high:g}")
        return float(low), float(high), "range as given"
    if wanted == "percentile":
        low, high = (float(x) for x in np.percentile(v, PERCENTILES))
        return low, high, "1st to 99th percentile of this bag"
    if wanted == "absolute":
        return 0.0, 1.0, "absolute, 0 to 1"
    if wanted == "0-max":
        return 0.0, float(v.max()), "0 to the largest of this bag"
    raise ConfigError(f"unknown range {wanted!r}: choose {', '.join(RANGES)}, or LOW,HIGH")


def rgb(values: NDArray[np.float64], limits: tuple[float, float], colours: str) -> NDArray[np.uint8]:
    """Colours ``(..., 3)`` of scores; where all are alike, the middle one."""
    low, high = limits
    share = np.full(values.shape, 0.5) if not high > low else np.clip((values - low) / (high - low), 0, 1)
    return (colormaps[colours](share)[..., :3] * 255).round().astype(np.uint8)


def _check_inside(bag: Bag, tiles: NDArray[np.float64], edge: float, slide: Slide) -> None:
    """A map on the wrong slide looks right: the tiles must lie on it, up to the part of one that padding adds."""
    far = tiles.max(axis=0) + edge
    near = tiles.min(axis=0)
    if (near < -edge).any() or (far > np.array(slide.size) + edge).any():
        raise BagError(
            f"bag {bag.bag_id!r} has tiles from ({near[0]:g}, {near[1]:g}) to ({far[0]:g}, {far[1]:g}), but "
            f"{slide.path} is {slide.size[0]:,} x {slide.size[1]:,} pixels: is it the slide that they were cut from?"
        )


def _heat(
    tiles: NDArray[np.float64],
    edge: float,
    values: NDArray[np.float64],
    origin: tuple[float, float],
    scale: float,
    out: tuple[int, int],
    limits: tuple[float, float],
    colours: str,
    smooth: bool,
) -> Image.Image:
    """Sum and number of tiles at every pixel by differences at their corners: time linear in tiles and pixels."""
    width, height = out
    corners = (tiles - np.array(origin)) * scale
    left, top = (np.clip(np.floor(corners[:, i] + 0.5).astype(int), 0, out[i] - 1) for i in (0, 1))
    right = np.clip(np.floor(corners[:, 0] + edge * scale + 0.5).astype(int), left + 1, width)
    bottom = np.clip(np.floor(corners[:, 1] + edge * scale + 0.5).astype(int), top + 1, height)
    total = np.zeros((height + 1, width + 1))
    count = np.zeros((height + 1, width + 1), dtype=np.int32)
    for rows, columns, sign in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
        np.add.at(total, (rows, columns), sign * values)
        np.add.at(count, (rows, columns), sign)
    total, count = (x.cumsum(axis=0).cumsum(axis=1)[:height, :width] for x in (total, count))
    covered = count > 0
    shown = np.divide(total, count, out=np.zeros_like(total), where=covered)
    if smooth:
        shown = _smoothed(shown, covered, edge * scale)
    picture = np.zeros((height, width, 4), dtype=np.uint8)
    picture[covered, :3] = rgb(shown[covered], limits, colours)
    picture[covered, 3] = 255
    return Image.fromarray(picture, "RGBA")


def _smoothed(shown: NDArray[np.float64], covered: NDArray[np.bool_], edge: float) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter

    spread = gaussian_filter(np.where(covered, shown, 0.0), edge / 2)
    weight = gaussian_filter(covered.astype(np.float64), edge / 2)
    return np.divide(spread, weight, out=np.zeros_like(spread), where=covered & (weight > 0))


def _outlines(
    tiles: NDArray[np.float64], edge: float, origin: tuple[float, float], scale: float, out: tuple[int, int]
) -> Image.Image:
    picture = Image.new("RGB", out, "white")
    draw = ImageDraw.Draw(picture)
    side = edge * scale
    for x, y in (tiles - np.array(origin)) * scale:
        if side >= 4:
            draw.rectangle((x, y, x + side - 1, y + side - 1), fill="#F2F2F2", outline="#D0D0D0")
        else:
            draw.rectangle((x, y, x + max(side - 1, 0), y + max(side - 1, 0)), fill="#E0E0E0")
    return picture
