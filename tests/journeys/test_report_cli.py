"""qgmil report as a user types it, with the bags, without them, and for aggregators without attention."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cohort import make_cohort
from commandline import run
from qgmil.report.bags import chosen_bags
from qgmil.report.data import load_mass_curve, load_result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    manifest = make_cohort(folder / "data", patients=12)
    for model in ("abmil", "mean"):
        options = ["--folds", 2, "--epochs", 2, "--model", model, "--options.width", 8, "-q"]
        assert run("train", manifest, "-o", folder / model, *options) == 0
    return folder


def test_the_default_page_of_a_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", trained / "abmil", "--faithful", 6) == 0
    said = " ".join(capsys.readouterr().err.split())
    page = (trained / "abmil" / "report.html").read_text()
    chosen = chosen_bags(load_result(trained / "abmil"))
    assert f"{len(chosen)} bags shown" in said
    assert all(f"<h3>{bag}: predicted" in page for bag in chosen)
    assert "Removing the most attended instances" in page
    assert "6 of 24 bags, evenly spaced" in page
    assert "<script" not in page  # no coordinates, nothing to zoom into
    assert "script-src &#39;none&#39;" in page


def test_bags_that_are_chosen_are_wrong_and_sure_or_right_and_surest(trained: Path) -> None:
    result = load_result(trained / "abmil")
    rows, probabilities, truth = result.predictions()
    sure = {r["bag_id"]: (p.max(), p.argmax() == t) for r, p, t in zip(rows, probabilities, truth, strict=True)}
    for bag, why in chosen_bags(result).items():
        confidence, right = sure[bag]
        assert why.startswith("Wrong") != right
        if right:
            name = next(r["label"] for r in rows if r["bag_id"] == bag)
            same = [sure[r["bag_id"]] for r in rows if r["label"] == name]
            assert confidence == max(c for c, ok in same if ok)


def test_other_runs_stand_beside_it(trained: Path, tmp_path: Path) -> None:
    out = ["-o", tmp_path / "page.html", "--faithful", 0]
    assert run("report", trained / "abmil", "--compare", trained / "mean", "--show", "p01_0", *out) == 0
    assert "<h3>p01_0: predicted" in (tmp_path / "page.html").read_text()


def test_baselines_of_a_benchmark_stand_beside_it(trained: Path, tmp_path: Path) -> None:
    """The folder of a model's cells: the mean of their curves."""
    folder = tmp_path / "cells" / "cohort" / "abmil"
    for cell in sorted((trained / "abmil" / "cells").iterdir()):
        shutil.copytree(cell, folder / cell.name)
        shutil.copy(trained / "abmil" / "config.yaml", folder / cell.name)  # as cells of a benchmark have it
    name, curve = load_mass_curve(folder) or ("", {})
    whole = load_mass_curve(trained / "abmil")
    assert whole is not None
    assert name == whole[0] == "abmil (width=8)"
    np.testing.assert_allclose(curve["mass"], whole[1]["mass"], atol=1e-9)
    assert load_mass_curve(trained / "mean") is None
    out = ["-o", tmp_path / "page.html", "--faithful", 0, "--compare", folder]
    assert run("report", trained / "mean", *out) == 0
    assert "Share of the attention that the most attended instances hold" in (tmp_path / "page.html").read_text()
    (tmp_path / "nothing").mkdir()
    assert run("report", trained / "abmil", "--compare", tmp_path / "nothing", "-o", tmp_path / "x.html") == 1


def test_without_the_bags_the_page_says_why(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = tmp_path / "run"
    shutil.copytree(trained / "abmil", moved)
    config = moved / "config.yaml"
    config.write_text(config.read_text().replace("bags.csv", "gone.csv"))
    assert run("report", moved) == 0
    assert "are not there any more" in " ".join(capsys.readouterr().err.split())
    page = (moved / "report.html").read_text()
    assert "What is not on this page" in page
    assert "gone.csv are not there any more" in page
    assert run("report", trained / "mean") == 0
    assert "mean pools without attention" in (trained / "mean" / "report.html").read_text()


def test_what_cannot_be_written_is_said(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert run("report", trained / "abmil", "-o", page) == 1
    assert "exists already" in capsys.readouterr().err
    assert page.read_text() == "mine"
    assert run("report", trained / "abmil", "--show", "nobody", "-o", tmp_path / "x.html") == 1
    assert "no bag 'nobody'" in capsys.readouterr().err
    assert run("report", tmp_path, "-o", tmp_path / "x.html") == 1
    assert "is not a run folder" in capsys.readouterr().err
