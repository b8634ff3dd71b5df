"""Colours that give the class away are warned of; the same figures by hand; nothing is said where there is nothing."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commandline import run
from conftest import shared_data
from qgmil.bags.manifest import BagRecord
from qgmil.errors import ConfigError, ReadError
from qgmil.images.colours import bag_colours, check_colours, cross_validated
from slides import GLASS, disc


def cells(folder: Path, colour: tuple[int, int, int], count: int = 3, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = (np.array(colour) + rng.normal(0, 10, (20, 20, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def records(tmp_path: Path, shift: int, patients: int = 12) -> list[BagRecord]:
    made = []
    for i in range(patients):
        base = 150 + int(np.random.default_rng(i).integers(-4, 5)) + (shift if i % 2 else 0)
        cells(tmp_path / f"p{i}", (base, 120, 170), seed=i)
        made.append(BagRecord(f"p{i}", "ab"[i % 2], f"p{i}", (), {"images": f"p{i}"}))
    return made


def test_a_stain_that_tells_the_class_is_warned_of(tmp_path: Path) -> None:
    found = check_colours(records(tmp_path, shift=30, patients=24), tmp_path)
    assert found.auroc_mean == pytest.approx(1.0) and found.bags == 24
    assert found.chance is not None and found.chance < 0.95
    (problem,) = found.warnings()
    assert problem.kind == "colour" and "mean colour 1.00" in problem.message
    red = found.means["b"][0][0] - found.means["a"][0][0]
    assert red == pytest.approx(30, abs=4) and abs(found.means["b"][2][0] - found.means["a"][2][0]) < 2


def test_equal_stains_are_not(tmp_path: Path) -> None:
    found = check_colours(records(tmp_path, shift=0), tmp_path)
    assert found.auroc is not None and found.warnings() == []


def test_few_patients_and_broken_images(tmp_path: Path) -> None:
    made = records(tmp_path, 30, 6)
    (tmp_path / "p1" / "0.png").write_bytes(b"x")  # one cell of three: the others tell
    for path in (tmp_path / "p0").iterdir():
        path.write_bytes(b"x")
    found = check_colours(made, tmp_path)
    assert (found.auroc, found.bags) == (None, 5)
    assert [p.bag_id for p in found.warnings()] == ["p0"] and ".png: cannot be read" in found.warnings()[0].message


def test_the_colours_of_a_bag_by_hand(tmp_path: Path) -> None:
    folder = cells(tmp_path / "p", (100, 150, 200))
    pixels = np.concatenate([np.asarray(Image.open(p)).reshape(-1, 3) for p in folder.iterdir()]).astype(float)
    want = np.concatenate([pixels.mean(0), pixels.std(0)])
    np.testing.assert_allclose(bag_colours(folder), want, rtol=1e-9)
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            info = tarfile.TarInfo(path.name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    np.testing.assert_allclose(bag_colours(tmp_path / "p.tar"), want, rtol=1e-9)


def test_of_a_slide_the_glass_does_not_count(tmp_path: Path) -> None:
    rgb = np.full((300, 300, 3), GLASS, np.uint8)
    rgb[disc((300, 300), (150, 150), 60)] = (180, 110, 160)
    Image.fromarray(rgb).save(tmp_path / "s.png")
    assert np.abs(bag_colours(tmp_path / "s.png")[:3] - (180, 110, 160)).max() < 4


def test_tables_without_images(tmp_path: Path) -> None:
    made = records(tmp_path, 0, 2)
    with pytest.raises(ConfigError, match=r"no column 'cells' that names the images of each bag; it has 'images'"):
        check_colours(made, tmp_path, "cells")
    with pytest.raises(ConfigError, match="several bags name p0"):
        check_colours([made[0], made[0]], tmp_path)
    with pytest.raises(ReadError, match="no such file or folder"):
        bag_colours(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match="has no images"):
        bag_colours(tmp_path / "empty")


def test_noise_is_at_chance() -> None:
    rng = np.random.default_rng(0)
    labels, groups = np.repeat(["a", "b"], 50), np.arange(100)
    said = cross_validated(rng.normal(size=(100, 6)), labels, groups)
    assert said is not None and 0.35 < said < 0.65


@pytest.mark.shared
def test_the_leukaemia_cohort_is_confounded_by_colour(capsys: pytest.CaptureFixture[str]) -> None:
    """Mean colour alone is known to reach about 0.76; patients differ, so that is far above shuffled labels."""
    assert run("check", shared_data("deepapl"), "--images", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["colours"]["bags"] == 82
    assert said["colours"]["auroc_mean"] == pytest.approx(0.76, abs=0.05)
    assert said["colours"]["auroc_shuffled_95"] < 0.7
    assert "colour" in {w["kind"] for w in said["warnings"]}
