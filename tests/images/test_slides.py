"""Slides of every kind give the same pixels for the same place, at bounded memory, or a named refusal."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qgmil.errors import QGMILError, ReadError
from qgmil.images import slides
from qgmil.images.slides import OpenSlideImage, PlainImage, ome_microns, open_slide, slide_name, slides_under
from qgmil.images.tissue import find_tissue
from slides import TISSUE, painted, real_slide, write_dicom, write_flat_tiff, write_ome


def smooth_picture(width: int, height: int) -> np.ndarray:
    """Gradients: what no resampling changes much."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], axis=2).astype(np.uint8)


def test_an_ome_tiff_is_read_at_the_level_that_is_sharp_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = painted((640, 480), ((300, 200), 150))
    slide = open_slide(write_ome(tmp_path / "a.ome.tif", rgb, 0.25))
    assert isinstance(slide, OpenSlideImage)
    assert (slide.size, slide.mpp) == ((640, 480), pytest.approx(0.25))
    whole = np.asarray(slide.region(64, 32, 128, 128, (128, 128), smooth=True))
    np.testing.assert_array_equal(whole, rgb[32:160, 64:192])
    levels: list[int] = []
    read = slide._slide.read_region
    monkeypatch.setattr(
        slide._slide, "read_region", lambda at, level, size: levels.append(level) or read(at, level, size)
    )
    for down in (1, 2, 3, 4):
        part = np.asarray(slide.region(0, 0, 240, 240, (240 // down, 240 // down), smooth=True)).astype(float)
        want = rgb[:240, :240].reshape(240 // down, down, 240 // down, down, 3).mean((1, 3))
        assert np.abs(part - want).mean() < 4, down
    assert levels == [0, 1, 1, 2]


def test_a_dicom_slide_is_named_by_its_folder(tmp_path: Path) -> None:
    rgb = painted((500, 400), ((200, 200), 150))
    path = write_dicom(tmp_path / "case7", rgb, 0.5)
    assert slides_under(tmp_path) == {"case7": path}
    slide = open_slide(path)
    assert (slide.size, slide.mpp) == ((500, 400), pytest.approx(0.5))
    part = np.asarray(slide.region(100, 90, 128, 128, (128, 128), smooth=True)).astype(int)
    assert np.abs(part - rgb[90:218, 100:228]).mean() < 3  # a JPEG


def test_units_of_ome() -> None:
    head = '<?xml version="1.0"?><OME><Image ID="Image:0"><Pixels ID="0" SizeX="640" PhysicalSizeX="{}"{}></Pixels>'
    said = {"": 250.0, ' PhysicalSizeXUnit="nm"': 0.25, ' PhysicalSizeXUnit="mm"': 250_000.0}
    for unit, microns in said.items():
        assert ome_microns(head.format("250", unit)) == pytest.approx(microns)
    for text in (
        "",
        "no xml",
        "<OME><Pixels/></OME>",
        head.format("x", ""),
        head.format("1", ' PhysicalSizeXUnit="pixel"'),
    ):
        assert ome_microns(text) is None


def test_an_ome_tiff_of_16_bits_is_refused(tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.ome.tif", np.full((64, 64, 3), 4000, np.uint16), photometric="rgb", ome=True)
    with pytest.raises(ReadError, match=r"a\.ome\.tif: has pixels of uint16, axes YXS .*convert it first"):
        open_slide(tmp_path / "a.ome.tif")


def test_a_tile_beyond_the_edge_is_white_there(tmp_path: Path) -> None:
    rgb = np.full((64, 64, 3), 90, np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    for slide in (open_slide(tmp_path / "a.png"), open_slide(write_ome(tmp_path / "a.ome.tif", rgb, 0.5, 2))):
        part = np.asarray(slide.region(32, 32, 64, 64, (64, 64), smooth=True))
        assert (part[:31, :31] == 90).all() and (part[33:] == 255).all() and (part[:, 33:] == 255).all()


def test_a_scanner_slide_tile_is_what_openslide_reads() -> None:
    import openslide

    slide = open_slide(real_slide())
    want = openslide.OpenSlide(str(real_slide())).read_region((500, 700), 0, (224, 224)).convert("RGB")
    np.testing.assert_array_equal(
        np.asarray(slide.region(500, 700, 224, 224, (224, 224), smooth=True)), np.asarray(want)
    )


def test_threads_decode_a_plain_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(smooth_picture(400, 300)).save(tmp_path / "a.png")
    slide, decoded = PlainImage(tmp_path / "a.png"), []
    plain = slides.flat
    monkeypatch.setattr(slides, "flat", lambda image: decoded.append(1) or time.sleep(0.05) or plain(image))
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda x: np.asarray(slide.region(x, 0, 32, 32, (32, 32))), range(0, 256, 32)))
    assert len(decoded) == 1
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), smooth_picture(400, 300)[:32, :256])


def test_upsampling_is_bilinear_for_encoders_and_sharp_for_the_eye(tmp_path: Path) -> None:
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[:, 4:] = 200
    Image.fromarray(rgb).save(tmp_path / "a.png")
    slide = PlainImage(tmp_path / "a.png")
    sharp = np.asarray(slide.region(0, 0, 8, 8, (32, 32)))
    soft = np.asarray(slide.region(0, 0, 8, 8, (32, 32), smooth=True))
    assert set(np.unique(sharp)) == {0, 200}
    want = Image.fromarray(rgb).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(soft, np.asarray(want))


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L", "P", "LA"])
def test_modes_of_plain_images(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    colour = {"RGBA": (190, 120, 170, 255), "CMYK": (65, 135, 85, 0), "L": 120, "P": 7, "LA": (120, 255)}[mode]
    image = Image.new(mode, (40, 30), colour)
    if mode == "P":
        image.putpalette([c for i in range(256) for c in (i, 120, 170)])
    image.save(tmp_path / f"a.{suffix}")
    got = np.asarray(open_slide(tmp_path / f"a.{suffix}").region(0, 0, 10, 10, (10, 10)))[0, 0]
    want = {"RGBA": TISSUE, "CMYK": TISSUE, "L": (120,) * 3, "P": (7, 120, 170), "LA": (120,) * 3}[mode]
    assert np.abs(got.astype(int) - want).max() <= 1


def test_transparent_is_glass(tmp_path: Path) -> None:
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (np.asarray(open_slide(tmp_path / "a.png").region(0, 0, 10, 10, (10, 10))) == 255).all()


def test_a_slide_without_a_pyramid_takes_little_memory(tmp_path: Path) -> None:
    """100,000 px wide, 1.2 GB of pixels, one level: a small picture and a tile of it in a process of bounded memory."""
    tile = np.full((512, 512, 3), TISSUE, np.uint8)
    path = write_flat_tiff(tmp_path / "wide.tif", 100_000, 4_096, tile)
    assert path.stat().st_size < 10_000_000
    code = (
        "import resource, sys\n"
        "from qgmil.images.slides import open_slide\n"
        "from qgmil.images.tissue import find_tissue\n"
        "slide = open_slide(sys.argv[1])\n"
        "assert slide.size == (100_000, 4_096), slide.size\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = find_tissue(slide, 0.25)\n"
        "assert found.mask.all() and found.mask.shape[1] == 3125, found.mask.shape\n"
        "part = slide.region(99_000, 2_000, 224, 224, (224, 224), smooth=True)\n"
        "assert part.getpixel((5, 5)) == (190, 120, 170)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400  # MB; the pixels are 1,229


class Declared:
    """A slide that declares a million pixels a side and no smaller level; reading it would never end."""

    dimensions = (1_000_000, 1_000_000)
    level_downsamples = (1.0,)

    def get_best_level_for_downsample(self, down: float) -> int:
        return 0


def test_a_slide_that_declares_more_than_anybody_can_read_is_refused() -> None:
    slide = OpenSlideImage(Path("huge.svs"), Declared(), 0.25)
    with pytest.raises(ReadError, match=r"huge\.svs: has no level smaller than 1,000,000 x 1,000,000 pixels"):
        find_tissue(slide, 0.25)


def test_an_image_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    Image.new("L", (40_000, 30_000)).save(tmp_path / "bomb.png", optimize=False)
    tracemalloc.start()
    with pytest.raises(ReadError, match=r"bomb\.png: is an image of 40,000 x 30,000 pixels, more than 144,000,000"):
        open_slide(tmp_path / "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_broken_slides_are_named(tmp_path: Path) -> None:
    whole = real_slide().read_bytes()
    for name, content in (("half.svs", whole[: len(whole) // 2]), ("none.svs", b""), ("text.svs", b"no slide" * 99)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(QGMILError, match=name):
            slide = open_slide(tmp_path / name)
            slide.region(0, 0, *slide.size, (100, 100))
    with pytest.raises(ReadError, match="no such file"):
        open_slide(tmp_path / "gone.svs")


def test_slides_of_a_folder(tmp_path: Path) -> None:
    names = ("b/2.svs", "a.ome.tif", "c/series/1.dcm", "c/series/2.dcm", ".hidden.svs", "notes.txt", "d.jpg")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = slides_under(tmp_path)
    assert {n: str(p.relative_to(tmp_path)) for n, p in found.items()} == {
        "a": "a.ome.tif", "2": "b/2.svs", "series": "c/series/1.dcm", "d": "d.jpg",
    }  # fmt: skip
    (tmp_path / "b" / "d.png").write_bytes(b"x")
    with pytest.raises(ReadError, match=r"both .*b/d\.png and .*d\.jpg would be bag 'd'; rename one"):
        slides_under(tmp_path)
    assert slide_name(Path("x/y.OME.TIFF")) == "y"
