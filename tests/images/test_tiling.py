"""Tiles have the size that was asked for on the slide, lie where the grid says, and only on tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qgmil.errors import BagError, ConfigError
from qgmil.images.slides import PlainImage
from qgmil.images.tiling import Grid, cut, preview, slide_mpp
from qgmil.images.tissue import Tissue, find_tissue
from slides import painted


def slide(tmp_path: Path, size: tuple[int, int], *discs: tuple[tuple[float, float], float]) -> PlainImage:
    path = tmp_path / "slide.png"
    Image.fromarray(painted(size, *discs)).save(path)
    return PlainImage(path)


def everything(size: tuple[int, int]) -> Tissue:
    return Tissue(np.ones((4, 4), bool), Image.new("RGB", (4, 4)), (size[0] / 4, size[1] / 4), 1.0, None)


class Sized:
    path, mpp = Path("s.svs"), None

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)


@given(
    st.integers(8, 300), st.floats(0.2, 2.0), st.floats(0.15, 1.0), st.integers(200, 3000), st.integers(200, 3000),
    st.integers(0, 7),
)  # fmt: skip
def test_the_grid(size: int, mpp: float, own: float, width: int, height: int, overlap: int) -> None:
    """Whole tiles only, as many as fit, neighbours a step apart within the rounding to pixels."""
    grid = Grid(size, mpp, overlap)
    if own > 1.2 * mpp or grid.level0(own) > min(width, height):
        with pytest.raises(BagError):
            cut(Sized(width, height), everything((width, height)), grid, own)  # type: ignore[arg-type]
        return
    corners = cut(Sized(width, height), everything((width, height)), grid, own)  # type: ignore[arg-type]
    step, edge = (size - overlap) * mpp / own, size * mpp / own
    for axis, length in ((0, width), (1, height)):
        at = np.unique(corners[:, axis])
        assert at[0] == 0
        assert np.abs(at - np.arange(len(at)) * step).max() <= 0.5
        assert at[-1] + edge <= length + 1 < at[-1] + step + edge + 2
    assert len(corners) == len(np.unique(corners, axis=0))
    assert (np.lexsort((corners[:, 0], corners[:, 1])) == np.arange(len(corners))).all()  # row by row


def test_only_tiles_with_tissue(tmp_path: Path) -> None:
    made = slide(tmp_path, (800, 400), ((200, 200), 150))
    found = find_tissue(made, 2.0)
    corners = cut(made, found, Grid(50, 2.0, min_tissue=0.5), 2.0)
    middles = corners + 25
    away = np.hypot(middles[:, 0] - 200, middles[:, 1] - 200)
    assert away.max() < 165
    every = np.array([(x + 25, y + 25) for y in range(0, 400, 50) for x in range(0, 800, 50)])
    inside = np.hypot(every[:, 0] - 200, every[:, 1] - 200) < 120
    assert len(corners) >= inside.sum()
    picture = np.asarray(preview(made, found, corners, 50.0, longest=400)).astype(int)
    assert picture.shape == (200, 400, 3)
    blue = (picture == (40, 80, 220)).all(axis=2)
    assert blue[:, 250:].sum() == 0 and blue[50:150, 50:150].sum() > 200
    green = (picture == (0, 150, 60)).all(axis=2)
    y, x = np.nonzero(green)
    assert np.abs(np.hypot(x - 100, y - 100) - 74).max() < 8  # the outline of the disc


def test_a_magnification_is_a_name_for_microns() -> None:
    assert Grid(256, 0.5).name == "20x_256px_0px_overlap"
    assert Grid(224, 0.25, 16).name == "40x_224px_16px_overlap"
    assert Grid(224, 0.5).level0(0.25) == 448


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 4, "mpp": 0.5}, "tile=4: a tile has an edge of at least 8"),
        ({"size": 224, "mpp": 0.0}, "mpp=0.0: microns per pixel are above 0"),
        ({"size": 224, "mpp": 0.5, "overlap": 224}, "overlap=224: must be from 0 to less than the tile of 224"),
        ({"size": 224, "mpp": 0.5, "min_tissue": 2.0}, "min_tissue=2.0: is a share"),
    ],
)
def test_grids_that_are_none(values: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Grid(**values)  # type: ignore[arg-type]


def test_what_cannot_be_cut_is_said(tmp_path: Path) -> None:
    made = slide(tmp_path, (300, 200), ((100, 100), 60))
    with pytest.raises(BagError, match=r"slide\.png: does not say how many microns a pixel is; give --slide-mpp"):
        slide_mpp(made)
    assert slide_mpp(made, 0.5) == 0.5
    found = find_tissue(made, 0.5)
    with pytest.raises(BagError, match=r"is 300 x 200 pixels, smaller than one tile of 448"):
        cut(made, found, Grid(224, 1.0), 0.5)
    with pytest.raises(BagError, match=r"was scanned at 0\.5 microns per pixel, tiles of 0\.25 would be blown up"):
        cut(made, found, Grid(64, 0.25), 0.5)
    small = find_tissue(made, 0.5)  # the disc is 0.003 mm²
    with pytest.raises(BagError, match=r"\(0\.000 mm² in all, 0\.00[34] in pieces that are too small"):
        cut(made, small, Grid(64, 0.5), 0.5)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(BagError, match=r"slide\.png: slide_mpp is .*; expected microns per pixel"):
            slide_mpp(made, value)
    empty = find_tissue(slide(tmp_path, (300, 200)), 0.5)
    with pytest.raises(BagError, match=r"no tissue was found \(0\.000 mm² in all.*--min-area, .*--tissue all"):
        cut(made, empty, Grid(64, 0.5), 0.5)
