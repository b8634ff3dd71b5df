"""qgmil attention as a user types it: one run, several, scores from elsewhere; interrupted and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cohort import make_cohort
from commandline import run
from qgmil.attention.concentration import concentration
from qgmil.bags.dataset import open_bags
from qgmil.training.explain import explain_bag
from qgmil.training.members import load_run

SMALL = ["--options.width", "16", "--options.num-heads", "2", "--options.ffn-dim", "16", "--lr", "3e-3"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("data"), patients=12)


@pytest.fixture(scope="module")
def runs(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    common = ["--folds", 2, "--seeds", 2, "--epochs", 3, "--precision", "32", "-q"]
    assert run("train", manifest, "-o", folder / "qgmil", *common, *SMALL) == 0
    assert run("train", manifest, "-o", folder / "abmil", "--model", "abmil", "--options.width", 16, *common) == 0
    assert run("train", manifest, "-o", folder / "mean", "--model", "mean", "--options.width", 16, *common) == 0
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def measured(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "both"
    assert run("attention", runs["qgmil"], runs["abmil"], "-o", out, "--repeats", 2) == 0
    return out


def test_every_file_is_there(measured: Path) -> None:
    assert sorted(p.name for p in measured.iterdir()) == [
        *("attention.md", "bags.csv", "bags.parquet", "comparison.csv", "entropy.png", "faithfulness.png"),
        *("heads.csv", "heads.parquet", "heads.png", "journal.jsonl", "mass_curves.png", "settings.json"),
        "summary.csv",
    ]
    assert pl.read_csv(measured / "bags.csv").shape == pl.read_parquet(measured / "bags.parquet").shape


def test_figures_are_those_of_the_models_that_never_saw_the_bag(
    measured: Path, runs: dict[str, Path], manifest: Path
) -> None:
    rows = pl.read_parquet(measured / "bags.parquet")
    assert rows.group_by("source").len().sort("source").rows() == [("abmil", 24), ("qgmil", 24)]
    assert rows["members"].unique().to_list() == [2]  # one a seed
    run_, bags = load_run(runs["qgmil"]), open_bags(manifest)
    said = explain_bag(run_, bags, "p03_1")
    tested = {m.folder.name for m in said.members}
    assert len(tested) == 2
    for member in said.members:
        assert "p03_1" not in member.seen_bags
        assert "P03" not in member.seen_patients
    row = rows.filter((pl.col("source") == "qgmil") & (pl.col("bag_id") == "p03_1")).to_dicts()[0]
    own = [concentration(s.values) for s in said.member_scores]
    assert row["top_10pct"] == pytest.approx(np.mean([f["top_10pct"] for f in own]))
    assert row["entropy"] == pytest.approx(np.mean([f["entropy"] for f in own]))
    assert row["probability"] == pytest.approx(said.probabilities.max())
    assert row["correct"] == (said.classes[said.predicted] == "tumour")
    np.testing.assert_allclose(said.scores.values, np.mean([s.values for s in said.member_scores], axis=0))


def test_predictions_are_the_out_of_fold_ones(measured: Path, runs: dict[str, Path]) -> None:
    """The run's own table of test predictions, seeds averaged."""
    rows = {r["bag_id"]: r for r in pl.read_parquet(measured / "bags.parquet").to_dicts() if r["source"] == "abmil"}
    said = pl.read_csv(runs["abmil"] / "predictions.csv").filter(pl.col("part") == "test")
    for (bag_id,), found in said.group_by("bag_id"):
        p = found["probability_tumour"].mean()
        assert rows[str(bag_id)]["probability"] == pytest.approx(max(p, 1 - p), abs=1e-4)


def test_the_printed_table_has_both_runs_and_verdicts(
    measured: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (measured / "bags.parquet").read_bytes()
    assert run("attention", runs["qgmil"], runs["abmil"], "-o", measured, "--repeats", 2) == 0  # nothing to do
    assert (measured / "bags.parquet").read_bytes() == before
    text = " ".join(capsys.readouterr().out.split())
    assert "all (24)" in text
    assert "class tumour (12)" in text
    assert "qgmil - abmil" in text
    assert text.count("Removing the most attended instances") == 2


def test_a_measurement_that_was_killed_goes_on_with_what_is_there(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qgmil.analysis.sources as sources

    options = ["--no-faithfulness", "--no-stability"]
    assert run("attention", runs["abmil"], "-o", tmp_path / "whole", *options) == 0
    asked: list[str] = []
    real = sources.explain_bag

    def counted(run_, bags, bag_id, **settings):  # type: ignore[no-untyped-def]
        asked.append(bag_id)
        if len(asked) == 10:
            raise KeyboardInterrupt
        return real(run_, bags, bag_id, **settings)

    monkeypatch.setattr(sources, "explain_bag", counted)
    assert run("attention", runs["abmil"], "-o", tmp_path / "cut", *options) == 130
    assert run("attention", runs["abmil"], "-o", tmp_path / "cut", *options) == 0
    assert len(asked) == 10 + 24 - 9
    whole, cut = ((tmp_path / name / "bags.csv").read_text() for name in ("whole", "cut"))
    assert whole == cut


def test_rollout_and_gradient_are_measured_too(runs: dict[str, Path], tmp_path: Path) -> None:
    for score in ("rollout", "gradient"):
        out = tmp_path / score
        assert run("attention", runs["qgmil"], "-o", out, "--score", score, "--repeats", 1, "--no-layers") == 0
        assert json.loads((out / "settings.json").read_text())["score"] == score
        assert pl.read_parquet(out / "bags.parquet")["entropy"].is_between(0, 1).all()
        assert not (out / "heads.csv").exists()


def test_scores_from_elsewhere_beside_a_run(
    runs: dict[str, Path], manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bags = open_bags(manifest)
    scores = {bag.bag_id: np.linspace(0, 3, len(bag)) for bag in (bags[i] for i in range(20))}
    np.savez(tmp_path / "theirs.npz", **scores)
    options = ["--scores", tmp_path / "theirs.npz", "--normalise", "softmax", "--no-faithfulness", "--no-stability"]
    assert run("attention", runs["abmil"], manifest, "-o", tmp_path / "out", *options) == 0
    assert "theirs.npz: 4 of 24 bags were left out: they have no scores" in " ".join(capsys.readouterr().err.split())
    rows = pl.read_parquet(tmp_path / "out" / "bags.parquet").filter(pl.col("source") == "theirs.npz").to_dicts()
    assert len(rows) == 20
    logits = scores["p00_0"]
    expected = concentration(np.exp(logits) / np.exp(logits).sum())
    assert rows[0]["entropy"] == pytest.approx(expected["entropy"])
    assert rows[0]["correct"] is None
    assert run("attention", manifest, "-o", tmp_path / "alone", *options) == 0
    short = {**scores, "p00_0": logits[:-1]}
    np.savez(tmp_path / "short.npz", **short)
    assert run("attention", manifest, "-o", tmp_path / "no", "--scores", tmp_path / "short.npz", *options[2:]) == 1
    assert "bag 'p00_0' has" in capsys.readouterr().err


def test_what_cannot_be_measured_is_said(
    runs: dict[str, Path], manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: object) -> str:
        assert run("attention", *arguments) == 1
        return " ".join(capsys.readouterr().err.split())

    out = ["-o", tmp_path / "out"]
    assert "mean has no score 'attention': it has gradient" in error(runs["mean"], *out)
    assert "is no run folder" in error(manifest, *out)
    assert "at most one table" in error(manifest, tmp_path / "x.csv", *out)
    assert "is given twice" in error(runs["abmil"], runs["abmil"], *out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("mine")
    assert "is not empty" in error(runs["abmil"], "-o", tmp_path / "mine")
    one = tmp_path / "one"
    assert run("train", manifest, "-o", one, "--model", "abmil", "--options.width", 16, "--epochs", 1, "-q") == 0
    capsys.readouterr()
    assert run("attention", one, "-o", tmp_path / "held", "--no-faithfulness", "--no-stability") == 0
    assert "bags were left out" in capsys.readouterr().err
