"""Instance scores where the instances lie: a map in colour over the slide, or over their outlines alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from qgmil.attention.scores import InstanceScores
from qgmil.bags.bag import Bag
from qgmil.errors import BagError, ConfigError
from qgmil.images.slides import Slide, check_inside

#: Largest edge of a picture.
MAX_SIZE = 10_000
#: Pixels of a map that are worked out at a time.
BAND_PIXELS = 1_000_000
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
        tile_size: edge of a tile in the unit of the coordinates, where the file does not know it; of a grid, the
            level-0 pixels from one column to the next.
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
    if mpp is not None and not (mpp > 0 and math.isfinite(mpp)):
        raise BagError(f"{where}: a pixel of {mpp:g} microns cannot be; --mpp must be above 0")
    # a size that the file knows is in the unit of its coordinates: for a grid, one step, and no number of pixels
    edge = tile_size if tile_size is not None else None if unit == "grid" else bag.tile_size
    if edge is None:
        in_unit = (
            "level-0 pixels from one column to the next" if unit == "grid" else f"the unit of the coordinates ({unit})"
        )
        raise BagError(f"{where}: its file does not say how large its tiles are; give --tile-size, in {in_unit}")
    if not (edge > 0 and math.isfinite(edge)):
        raise BagError(f"{where}: a tile size of {edge:g} cannot be drawn; it must be above 0")
    if unit == "grid":
        return replace(bag, coords=bag.coords.double() * edge, coord_unit="px", tile_size=edge, mpp=bag.mpp or mpp)
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
        BagError: coordinates in another unit or not finite, no tile size, other instances than scores, or a slide that
            does not contain them.
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
    if not np.isfinite(tiles).all():
        raise BagError(f"bag {bag.bag_id!r}: it has coordinates that are not finite; correct them in its file")
    if slide is None:
        origin = (float(tiles[:, 0].min()), float(tiles[:, 1].min()))
        extent = (float(tiles[:, 0].max()) + edge - origin[0], float(tiles[:, 1].max()) + edge - origin[1])
    else:
        check_inside(bag.bag_id, tiles, edge, slide)
        origin, extent, mpp = (0.0, 0.0), (float(slide.size[0]), float(slide.size[1])), bag.mpp or slide.mpp
    canvas = _Canvas.of(tiles, edge, origin, extent, size)
    low, high, name = choose_range(scores.values, value_range)
    heat = _heat(canvas, scores.values, (low, high), colours, smooth)
    base = _outlines(canvas) if slide is None else slide.region(0, 0, *extent, canvas.out)
    return Overlay(base, heat, origin, canvas.scale, tiles, edge, mpp, low, high, name, colours, scores)


@dataclass(frozen=True, eq=False)
class _Canvas:
    """Tiles in picture pixels.

    Args:
        corners: ``(N, 2)`` upper left corners.
        side: edge of a tile.
        scale: picture pixels a level-0 pixel.
        out: width and height of the picture.
    """

    corners: NDArray[np.float64]
    side: float
    scale: float
    out: tuple[int, int]

    @classmethod
    def of(
        cls,
        tiles: NDArray[np.float64],
        edge: float,
        origin: tuple[float, float],
        extent: tuple[float, float],
        size: int,
    ) -> _Canvas:
        """A picture of which the longer edge has `size` pixels."""
        scale = size / max(extent)
        out = (max(1, round(extent[0] * scale)), max(1, round(extent[1] * scale)))
        return cls((tiles - np.array(origin)) * scale, edge * scale, scale, out)


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


def rgb(values: NDArray[np.floating], limits: tuple[float, float], colours: str) -> NDArray[np.uint8]:
    """Colours ``(..., 3)`` of scores; where all are alike, the middle one."""
    low, high = limits
    shades = colormaps[colours]
    table = (shades(np.arange(shades.N))[:, :3] * 255).round().astype(np.uint8)
    share = np.full(values.shape, 0.5) if not high > low else (values - low) / (high - low)
    return table[(share * shades.N).clip(0, shades.N - 1).astype(np.intp)]


def _heat(
    canvas: _Canvas, values: NDArray[np.float64], limits: tuple[float, float], colours: str, smooth: bool
) -> Image.Image:
    width, height = canvas.out
    picture = np.zeros((height, width, 4), dtype=np.uint8)
    if smooth:
        field = np.zeros((height, width), dtype=np.float32)
        covered = np.zeros(field.shape, dtype=bool)
        for rows, shown, some in _means(canvas, values):
            field[rows], covered[rows] = shown, some
        bands = iter([(slice(None), _smoothed(field, covered, canvas.side), covered)])
    else:
        bands = _means(canvas, values)
    for rows, shown, some in bands:
        picture[rows, :, 3] = 255 * some
        picture[rows, :, :3][some] = rgb(shown[some], limits, colours)
    return Image.fromarray(picture, "RGBA")


def _means(
    canvas: _Canvas, values: NDArray[np.float64]
) -> Iterator[tuple[slice, NDArray[np.floating], NDArray[np.bool_]]]:
    """Rows of the picture, the mean score of the tiles at each pixel, and where there is one.

    Sums and numbers come from differences at the corners of tiles, so that time is linear in tiles and pixels; band by
    band, as all of a large picture in float64 would take gigabytes.
    """
    (width, height), corners, far = canvas.out, canvas.corners, canvas.corners + canvas.side
    left, top = (np.clip(np.floor(corners[:, i] + 0.5).astype(int), 0, canvas.out[i] - 1) for i in (0, 1))
    right = np.clip(np.floor(far[:, 0] + 0.5).astype(int), left + 1, width)
    bottom = np.clip(np.floor(far[:, 1] + 0.5).astype(int), top + 1, height)
    y, x = np.concatenate([top, bottom, top, bottom]), np.concatenate([left, right, right, left])
    sign = np.repeat([1.0, 1.0, -1.0, -1.0], len(corners))
    weight = sign * np.tile(values, 4)
    order = np.argsort(y, kind="stable")
    y, x, sign, weight = y[order], x[order], sign[order], weight[order]
    above = np.zeros((2, width + 1))  # differences along x of the last row of the band before
    step = max(1, BAND_PIXELS // width)
    for start in range(0, height, step):
        stop = min(start + step, height)
        here = slice(*np.searchsorted(y, (start, stop)))
        change = np.zeros((2, stop - start, width + 1))
        np.add.at(change[0], (y[here] - start, x[here]), weight[here])
        np.add.at(change[1], (y[here] - start, x[here]), sign[here])
        change[:, 0] += above
        np.cumsum(change, axis=1, out=change)
        above = change[:, -1].copy()
        total, count = np.cumsum(change, axis=2, out=change)[..., :width]
        covered = count > 0.5
        yield slice(start, stop), np.divide(total, count, out=np.zeros_like(total), where=covered), covered


def _smoothed(shown: NDArray[np.float32], covered: NDArray[np.bool_], edge: float) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    spread = gaussian_filter(shown, edge / 2)  # 0 where there is no tile
    weight = gaussian_filter(covered.astype(np.float32), edge / 2)
    return np.divide(spread, weight, out=np.zeros_like(spread), where=covered & (weight > 0))


def _outlines(canvas: _Canvas) -> Image.Image:
    picture = Image.new("RGB", canvas.out, "white")
    draw = ImageDraw.Draw(picture)
    fill, outline = ("#F2F2F2", "#D0D0D0") if canvas.side >= 4 else ("#E0E0E0", None)
    reach = max(canvas.side - 1, 0)
    for x, y in canvas.corners:
        draw.rectangle((x, y, x + reach, y + reach), fill=fill, outline=outline)
    return picture
