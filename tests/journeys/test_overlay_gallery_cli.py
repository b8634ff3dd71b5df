"""qgmil overlay and qgmil gallery as a user types them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cohort import write_tiles
from commandline import run
from conftest import shared_data
from qgmil.training.explain import explain_bag
from qgmil.training.members import load_run


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve slides of nine tiles with coordinates and names, and pictures of two of them."""
    folder = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(0)
    rows = ["bag_id,label,features"]
    for i in range(12):
        x = rng.normal(size=(9, 6)).astype(np.float32) + 2 * (i % 2)
        write_tiles(folder / f"s{i}.h5", x, [f"t{k}" for k in range(9)], columns=3)
        rows.append(f"s{i},{'tumour' if i % 2 else 'benign'},s{i}.h5")
    Image.fromarray(rng.integers(100, 255, (60, 64, 3), dtype=np.uint8)).save(folder / "s3.png")
    (folder / "tiles").mkdir()
    for k in range(9):
        Image.new("RGB", (20, 20), (25 * k, 0, 0)).save(folder / "tiles" / f"t{k}.png")
    (folder / "bags.csv").write_text("\n".join(rows) + "\n")
    return folder / "bags.csv"


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--folds", 2, "--epochs", 2, "--model", "abmil", "--options.width", 8, "-q"]
    assert run("train", manifest, "-o", out, *options) == 0
    return out


def weights(trained: Path, manifest: Path, bag_id: str) -> np.ndarray:
    from qgmil.bags.dataset import open_bags

    return explain_bag(load_run(trained), open_bags(manifest), bag_id).scores.values


def unit(bag: str = "s3") -> list[str]:
    return [bag, "--coord-unit", "px", "--tile-size", "20"]


def test_a_map_on_the_slide_and_for_qupath(
    trained: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = manifest.parent / "s3.png"
    out = ["-o", tmp_path / "map.png", "--slide", slide, "--geojson", tmp_path / "map.geojson", "--size", 200]
    assert run("overlay", trained, *unit(), *out) == 0
    assert "s3: predicted" in capsys.readouterr().err
    assert Image.open(tmp_path / "map.png").width > 200
    features = json.loads((tmp_path / "map.geojson").read_text())["features"]
    tiles = [f for f in features if f["properties"]["objectType"] == "detection"]
    found = [f["properties"]["measurements"]["attention"] for f in tiles]
    np.testing.assert_allclose(found, weights(trained, manifest, "s3"), rtol=1e-6)
    before = (tmp_path / "map.png").read_bytes()
    assert run("overlay", trained, *unit(), *out) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "map.png").read_bytes() == before
    assert run("overlay", trained, *unit(), *out, "--overwrite", "--score", "gradient", "--range", "-1,1") == 0


def test_a_feature_file_of_no_table(trained: Path, manifest: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.h5"
    new.write_bytes((manifest.parent / "s1.h5").read_bytes())
    assert run("overlay", trained, *unit(str(new)), "-o", tmp_path / "new.png") == 0
    assert (tmp_path / "new.png").is_file()
    # without a slide there is nothing to see through to: the colours are those of the colour map
    found = {tuple(c) for c in np.asarray(Image.open(tmp_path / "new.png").convert("RGB")).reshape(-1, 3).tolist()}
    assert {(68, 1, 84), (253, 231, 37)} <= found  # the two ends of viridis


def test_what_is_missing_is_asked_for(
    trained: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: object) -> str:
        assert run(*arguments) == 1
        return " ".join(capsys.readouterr().err.split())

    bare = tmp_path / "bare.npy"
    np.save(bare, np.zeros((3, 6), dtype=np.float32))
    out = ["-o", tmp_path / "x.png"]
    assert "bag 'bare' has no coordinates" in error("overlay", trained, bare, *out)
    assert "there is no bag 's99'" in error("overlay", trained, "s99", *out)
    assert "name what to write" in error("overlay", trained, "s3")
    assert "give two numbers" in error("overlay", trained, *unit(), *out, "--range", "1,x")
    assert "no such file" in error("overlay", trained, *unit(), *out, "--slide", tmp_path / "gone.svs")
    seen = one_model(manifest, tmp_path)
    assert "bag 's3' or its patient shaped every model" in error("overlay", seen, *unit(), *out)
    assert not (tmp_path / "x.png").exists()
    assert run("overlay", seen, *unit(), *out, "--include-seen") == 0


def one_model(manifest: Path, tmp_path: Path) -> Path:
    """A run whose one model was trained on s3."""
    lines = manifest.read_text().splitlines()
    table = manifest.parent / "split.csv"
    parts = ["part"] + ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    table.write_text("\n".join(f"{line},{part}" for line, part in zip(lines, parts, strict=True)) + "\n")
    out = tmp_path / "one"
    options = ["--epochs", 1, "--model", "abmil", "--options.width", 8, "--split-column", "part", "-q"]
    assert run("train", table, "-o", out, *options) == 0
    return out


def test_a_gallery_from_a_folder_and_from_the_slide(
    trained: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["-o", tmp_path / "g.png", "--table", tmp_path / "g.csv", "--top", 4, "--bottom", 2]
    assert run("gallery", trained, "s3", "--images", manifest.parent / "tiles", *out) == 0
    assert "6 of 9 instances" in capsys.readouterr().err
    with (tmp_path / "g.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = weights(trained, manifest, "s3")
    order = np.argsort(-values, kind="stable")
    assert [r["instance_id"] for r in rows] == [f"t{i}" for i in [*order[:4], *order[7:]]]
    assert float(rows[-1]["cumulative"]) == pytest.approx(1)
    assert run("gallery", trained, *unit(), "--images", manifest.parent / "s3.png", "-o", tmp_path / "s.png") == 0
    some = tmp_path / "some"
    some.mkdir()
    (some / "t0.png").write_bytes((manifest.parent / "tiles" / "t0.png").read_bytes())
    # pictures found by name need no unit, so one that cannot be made pixels does not matter
    by_name = ["--images", some, "-o", tmp_path / "n.png", "--coord-unit", "um"]
    capsys.readouterr()
    assert run("gallery", trained, "s3", *by_name) == 0
    assert "9 of 9 instances, 8 without a picture" in " ".join(capsys.readouterr().err.split())
    assert run("gallery", trained, "s3", "--images", manifest.parent / "tiles", *out) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.shared
def test_cells_of_a_real_patient(tmp_path: Path) -> None:
    table = shared_data("deepapl")
    options = ["--model", "abmil_gated", "--options.width", 32, "--epochs", 1, "--folds", 2, "-q"]
    assert run("train", table, "-o", tmp_path / "run", *options) == 0
    tar = table.parent / "cells" / "Patient_00.tar"
    out = ["-o", tmp_path / "g.png", "--table", tmp_path / "g.csv", "--top", 74, "--bottom", 0]
    assert run("gallery", tmp_path / "run", "Patient_00", "--images", tar, *out) == 0
    with (tmp_path / "g.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 74
    assert not any(r["problem"] for r in rows)
