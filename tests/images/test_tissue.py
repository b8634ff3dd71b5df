"""Tissue is found where it was painted; pens, dust, glass of any grey and pictures full of tissue do not mislead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qgmil.errors import ConfigError
from qgmil.images.slides import PlainImage, open_slide
from qgmil.images.tissue import Tissue, coloured, find_tissue, otsu, pen
from slides import GLASS, TISSUE, disc, painted, real_slide

MPP = 8.0  # of a pixel: the mask is then the picture


def slide(tmp_path: Path, rgb: np.ndarray) -> PlainImage:
    path = tmp_path / "slide.png"
    Image.fromarray(rgb).save(path)
    return PlainImage(path)


def agreement(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union."""
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize("glass", [(255, 255, 255), (200, 200, 200), (238, 236, 240)])
def test_the_mask_is_what_was_painted(tmp_path: Path, glass: tuple[int, int, int]) -> None:
    rgb = painted((200, 150), ((70, 70), 40))
    truth = disc((200, 150), (70, 70), 40)
    rgb[~truth] = glass
    rgb[:, 180:] = 0  # nothing was scanned there
    found = find_tissue(slide(tmp_path, rgb), MPP)
    assert agreement(found.mask, truth) > 0.95
    assert found.area == pytest.approx(truth.sum() * 64e-6, rel=0.05)  # mm² of 8 x 8 microns a pixel
    assert found.scale == (1.0, 1.0)


def test_small_pieces_go_and_small_holes_are_filled(tmp_path: Path) -> None:
    size = (260, 160)
    rgb = painted(size, ((80, 80), 50), ((200, 40), 7))
    large, small = disc(size, (80, 60), 15), disc(size, (80, 105), 5)
    rgb[large | small] = GLASS
    found = find_tissue(slide(tmp_path, rgb), MPP, min_area=0.02, max_hole=0.01)  # 312 and 156 pixels
    assert not found.mask[disc(size, (200, 40), 7)].any()
    assert not found.mask[disc(size, (80, 60), 11)].any()
    assert found.mask[small].all()
    kept = find_tissue(slide(tmp_path, rgb), MPP, min_area=0.0, max_hole=0.0)
    assert kept.mask[disc(size, (200, 40), 5)].all() and not kept.mask[disc(size, (80, 105), 2)].any()


@pytest.mark.parametrize("ink", [(20, 120, 60), (30, 50, 190), (200, 30, 40), (10, 10, 10)])
def test_marks_of_pens_are_no_tissue(tmp_path: Path, ink: tuple[int, int, int]) -> None:
    size = (200, 150)
    rgb = painted(size, ((60, 75), 40))
    mark = np.zeros((150, 200), bool)
    mark[40:110, 150:165] = True
    rgb[mark] = ink
    found = find_tissue(slide(tmp_path, rgb), MPP)
    assert not found.mask[mark].any()
    assert agreement(found.mask, disc(size, (60, 75), 40)) > 0.95
    if max(ink) - min(ink) > 30:  # a stain of that colour
        assert find_tissue(slide(tmp_path, rgb), MPP, pens="keep").mask[mark].all()


def test_stains_are_no_pens() -> None:
    """Haematoxylin, eosin, blood and DAB at the darkness they have in a small picture."""
    for colour in ((90, 60, 130), (60, 40, 110), (230, 140, 180), (190, 60, 80), (120, 80, 50), (150, 160, 200)):
        assert not pen(np.full((9, 9, 3), colour, np.float32)).any(), colour


def test_an_empty_slide_has_no_tissue_and_a_full_one_is_not_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    empty = (np.array(GLASS) + rng.normal(0, 3, (120, 120, 3))).clip(0, 255).astype(np.uint8)
    assert find_tissue(slide(tmp_path, empty), MPP).area == 0
    full = np.array(TISSUE) + rng.normal(0, 10, (120, 120, 3))
    full[:, 60:] += (30, 60, 40)  # paler, but no glass
    assert find_tissue(slide(tmp_path, full.clip(0, 255).astype(np.uint8)), MPP).mask.all()


def test_everything_and_values_that_are_none(tmp_path: Path) -> None:
    blank = slide(tmp_path, np.full((20, 30, 3), 255, np.uint8))
    assert find_tissue(blank, MPP, everything=True).mask.all()
    with pytest.raises(ConfigError, match="pens='wash': say drop"):
        find_tissue(blank, MPP, pens="wash")
    with pytest.raises(ConfigError, match="not below 0: min_area=-1"):
        find_tissue(blank, MPP, min_area=-1)


def test_a_real_slide() -> None:
    """CMU-1: two fifths of it is skin; the flake of ink to the right is not."""
    real = open_slide(real_slide())
    found = find_tissue(real, 0.499)
    assert found.mask.mean() == pytest.approx(0.40, abs=0.02)
    assert found.area == pytest.approx(0.66, abs=0.03)
    at = np.array([[1400, 1500], [100, 300], [2080, 600]]) / 16  # epidermis, glass, flake
    assert [bool(found.mask[round(y), round(x)]) for x, y in at] == [True, False, False]
    real.close()


@given(st.lists(st.integers(0, 40), min_size=2, max_size=30))
def test_otsu_is_the_best_of_all_thresholds(counts: list[int]) -> None:
    def between(t: int) -> float:
        values = np.arange(len(counts))
        low, high = np.repeat(values[: t + 1], counts[: t + 1]), np.repeat(values[t + 1 :], counts[t + 1 :])
        if not len(low) or not len(high):
            return -1.0
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    every = [between(t) for t in range(len(counts))]
    assert between(otsu(np.array(counts))) == pytest.approx(max(every), rel=1e-9, abs=1e-9)


@given(st.integers(0, 2**31), st.floats(1, 40), st.floats(0.5, 4), st.floats(0.5, 4))
def test_the_share_of_a_square_is_counted(seed: int, edge: float, sx: float, sy: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((17, 23)) < 0.5
    found = Tissue(mask, Image.new("RGB", (23, 17)), (sx, sy), 0.0, None)
    x, y = rng.uniform(0, 22 * sx, 20), rng.uniform(0, 16 * sy, 20)
    for value, a, b in zip(found.share(x, y, edge), x, y, strict=True):
        x0, y0 = min(round(a / sx), 22), min(round(b / sy), 16)
        x1, y1 = min(max(x0 + 1, round((a + edge) / sx)), 23), min(max(y0 + 1, round((b + edge) / sy)), 17)
        assert value == pytest.approx(mask[y0:y1, x0:x1].mean())


def test_the_threshold_is_held_between_its_bounds() -> None:
    rgb = np.full((40, 40, 3), 255, np.uint8)
    rgb[:20] = (255, 20, 180)  # so strong that Otsu alone would ask for a hundred
    rgb[20:24] = (240, 215, 230)
    mask, threshold = coloured(rgb)
    assert threshold == 16 and mask[:23].all() and not mask[27:].any()
