"""Whole runs: what the folder holds, and that its numbers agree with each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from sklearn.metrics import f1_score, roc_auc_score

import qgmil
from cohort import SMALL, make_cohort
from qgmil.errors import ConfigError, ManifestError, QGMILError, RunError, SplitError
from qgmil.report.data import load_result
from qgmil.training.config import TrainConfig
from qgmil.training.run import train_run
from qgmil.training.runfolder import cell_folders


def train(manifest: Path, output: Path, **options: object) -> Path:
    return train_run(manifest, output, TrainConfig.build({**SMALL, "epochs": 4, **options}))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folds(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(manifest, tmp_path_factory.mktemp("runs") / "folds", folds=3, seeds=2)


def test_a_hold_out_run_holds_everything(manifest: Path, tmp_path: Path) -> None:
    run = train(manifest, tmp_path / "run")
    names = {p.name for p in run.iterdir()}
    assert names >= {
        *("config.yaml", "model.safetensors", "config.json", "history.csv", "predictions.csv", "metrics.json"),
        *("environment.json", "split.csv"),
    }
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["lr"] == SMALL["lr"] and Path(config["manifest"]) == manifest.resolve()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["qgmil"] == qgmil.__version__
    assert cell_folders(run) == [run]


def test_metrics_follow_from_the_predictions(manifest: Path, tmp_path: Path) -> None:
    run = train(manifest, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    table = pl.read_csv(run / "predictions.csv").filter(pl.col("part") == "test")
    truth, said = table["label"].to_numpy(), table["predicted"].to_numpy()
    assert metrics["test"]["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro"))
    score = table["probability_tumour"].to_numpy()
    assert metrics["test"]["auroc"] == pytest.approx(roc_auc_score(truth == "tumour", score))
    logits = table.select("logit_benign", "logit_tumour").to_numpy() / metrics["temperature"]
    calibrated = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    assert table["calibrated_tumour"].to_numpy() == pytest.approx(calibrated, abs=1e-5)
    assert metrics["attention"]["top_10pct"] == pytest.approx(table["attention_top_10pct"].mean(), abs=1e-5)


def test_the_saved_model_gives_the_saved_predictions(manifest: Path, tmp_path: Path) -> None:
    run = train(manifest, tmp_path / "run")
    model, bags = qgmil.load_model(run), qgmil.open_bags(manifest)
    rows = pl.read_csv(run / "predictions.csv")
    bag = bags[bags.bag_ids.index(rows["bag_id"][0])]
    logits = model(bag).logits[0].tolist()
    assert logits == pytest.approx([rows["logit_benign"][0], rows["logit_tumour"][0]], abs=1e-5)


def test_no_patient_is_on_two_sides_and_every_bag_is_tested_once_a_seed(folds: Path, manifest: Path) -> None:
    tested: dict[int, list[str]] = {0: [], 1: []}
    for cell in cell_folders(folds):
        split = pl.read_csv(cell / "split.csv")
        sides = split.group_by("patient_id").agg(pl.col("part").n_unique())
        assert sides["part"].max() == 1
        assert set(split["part"]) == {"train", "val", "test"} and len(split) == 40
        seed = int(cell.name[-1])
        tested[seed] += split.filter(pl.col("part") == "test")["bag_id"].to_list()
    everyone = sorted(pl.read_csv(manifest)["bag_id"].to_list())
    assert sorted(tested[0]) == sorted(tested[1]) == everyone


def test_seeds_share_splits_unless_new_ones_are_asked_for(folds: Path, manifest: Path, tmp_path: Path) -> None:
    def test_part(run: Path, cell: str) -> set[str]:
        split = pl.read_csv(run / "cells" / cell / "split.csv")
        return set(split.filter(pl.col("part") == "test")["bag_id"])

    assert test_part(folds, "fold0_seed0") == test_part(folds, "fold0_seed1")
    other = train(manifest, tmp_path / "run", folds=3, seeds=2, resplit=True, epochs=1)
    assert test_part(other, "fold0_seed0") != test_part(other, "fold0_seed1")


def test_the_summary_is_the_mean_and_spread_of_the_cells(folds: Path) -> None:
    summary = json.loads((folds / "metrics.json").read_text())
    cells = [json.loads((c / "metrics.json").read_text()) for c in cell_folders(folds)]
    values = [c["test"]["macro_f1"] for c in cells]
    assert summary["summary"]["metrics"]["macro_f1"]["mean"] == pytest.approx(np.mean(values))
    assert summary["summary"]["metrics"]["macro_f1"]["sd"] == pytest.approx(np.std(values, ddof=1))
    seeds = [np.mean([c["test"]["macro_f1"] for c in cells if c["seed"] == s]) for s in (0, 1)]
    assert summary["summary"]["metrics"]["macro_f1"]["sd_over_seeds"] == pytest.approx(np.std(seeds, ddof=1))


def test_pooled_figures_and_their_interval(folds: Path) -> None:
    summary = json.loads((folds / "metrics.json").read_text())
    table = pl.read_csv(folds / "predictions.csv")
    per_seed = []
    for seed in (0, 1):
        rows = table.filter(pl.col("seed") == seed)
        per_seed.append(f1_score(rows["label"].to_numpy(), rows["predicted"].to_numpy(), average="macro"))
    assert summary["pooled"]["metrics"]["macro_f1"]["mean"] == pytest.approx(np.mean(per_seed))
    interval = summary["intervals"]["macro_f1"]
    assert interval["low"] <= np.mean(per_seed) <= interval["high"]


def test_a_fold_without_a_class_is_undefined_and_pooled(tmp_path: Path) -> None:
    """Folds from a column, one of which tests on benign bags only."""
    manifest = make_cohort(tmp_path / "data")
    rows = pl.read_csv(manifest).with_columns(
        fold=pl.when(pl.col("patient_id").is_in(["P00", "P02"])).then(0).otherwise(1 + pl.col("fold") % 2)
    )
    rows.write_csv(manifest)
    run = train(manifest, tmp_path / "run", split_column=("fold",))
    cell = json.loads((run / "cells" / "fold0_seed0" / "metrics.json").read_text())
    assert cell["test"]["macro_f1"] is None and "tumour" in cell["test"]["undefined"]["macro_f1"]
    summary = json.loads((run / "metrics.json").read_text())
    assert summary["summary"]["metrics"]["macro_f1"]["n_undefined"] == 1
    assert summary["pooled"]["metrics"]["macro_f1"]["mean"] is not None


def test_a_leaking_split_column_is_refused_with_the_patient(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data")
    rows = (
        pl.read_csv(manifest)
        .with_row_index()
        .with_columns(split=pl.when(pl.col("index") % 2 == 0).then(pl.lit("train")).otherwise(pl.lit("test")))
    )
    rows.write_csv(manifest)
    with pytest.raises(SplitError, match="P00"):
        train(manifest, tmp_path / "run", split_column=("split",))
    assert not (tmp_path / "run").exists()


def test_one_bag_per_patient(manifest: Path, tmp_path: Path) -> None:
    run = train(manifest, tmp_path / "run", bag_per="patient", epochs=1)
    split = pl.read_csv(run / "split.csv")
    assert sorted(split["bag_id"]) == [f"P{p:02d}" for p in range(20)]


def test_skipped_bags_are_recorded(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data")
    (tmp_path / "data" / "features" / "p03_1.npy").unlink()
    with pytest.raises(QGMILError, match=r"p03_1"):
        train(manifest, tmp_path / "run", folds=2, epochs=1)
    for name, options in (("folds", {"folds": 2}), ("single", {})):
        run = train(manifest, tmp_path / name, epochs=1, skip=("missing",), **options)
        assert [s["bag_id"] for s in load_result(run).skipped] == ["p03_1"]
    whole = train(make_cohort(tmp_path / "whole"), tmp_path / "other", epochs=1, skip=("missing",))
    assert load_result(whole).skipped == [] and not (whole / "skipped.csv").exists()


def test_an_existing_run_is_not_overwritten(folds: Path, manifest: Path) -> None:
    before = (folds / "metrics.json").read_bytes()
    with pytest.raises(RunError, match=r"exists already.*--resume"):
        train(manifest, folds)
    assert (folds / "metrics.json").read_bytes() == before


def test_an_output_that_cannot_be_written_is_refused(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="file"):
        train(manifest, tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


def test_one_class_only(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data")
    manifest.write_text(manifest.read_text().replace("tumour", "benign"))
    with pytest.raises(ConfigError, match=r"one class only \(benign\)"):
        train(manifest, tmp_path / "run")


def test_fewer_patients_than_folds(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", patients=4)
    with pytest.raises(SplitError, match=r"(?s)folds.*5|5.*folds"):
        train(manifest, tmp_path / "run", folds=5)


def test_wrong_width_names_bag_and_file(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data")
    np.save(tmp_path / "data" / "features" / "p05_0.npy", np.zeros((4, 99), dtype=np.float32))
    with pytest.raises(QGMILError, match=r"p05_0.*99") as error:
        train(manifest, tmp_path / "run")
    assert "12" in str(error.value)


def test_a_directory_for_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError):
        train(tmp_path, tmp_path / "run")


def test_unknown_model_is_refused_before_anything_is_written(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'qgmill'.*qgmil"):
        train(manifest, tmp_path / "run", model="qgmill")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [{"options": {"zzz": 1}}, {"options": {"gate": "wide"}}, {"device": "mps"}],
)
def test_what_cannot_be_trained_leaves_no_folder(manifest: Path, tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(QGMILError):
        train_run(manifest, tmp_path / "run", TrainConfig.build({"model": "qgmil", **options}))
    assert not (tmp_path / "run").exists()


def test_class_names_with_quotes_commas_and_brackets(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data")
    manifest.write_text(manifest.read_text().replace("tumour", '"a ""q"", b"').replace("benign", "[x]"))
    run = train(manifest, tmp_path / "run", folds=2, model="linear_probe", options={})
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["classes"] == ["[x]", 'a "q", b'] and metrics["pooled"]["n_bags"] == 40


def test_three_classes(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", patients=24)
    rows = pl.read_csv(manifest).with_columns(
        label=pl.when(pl.col("patient_id").is_in([f"P{i:02d}" for i in range(0, 24, 3)]))
        .then(pl.lit("third"))
        .otherwise(pl.col("label"))
    )
    rows.write_csv(manifest)
    run = train(manifest, tmp_path / "run", folds=2)
    table = pl.read_csv(run / "predictions.csv")
    names = ["benign", "third", "tumour"]
    assert table.select(f"probability_{n}" for n in names).sum_horizontal().to_numpy() == pytest.approx(1.0, abs=1e-6)
    assert set(json.loads((run / "metrics.json").read_text())["pooled"]["per_seed"][0]["f1_per_class"]) == set(names)


def test_a_split_column_in_a_parquet_manifest(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data")
    pl.read_csv(manifest).write_parquet(tmp_path / "data" / "bags.parquet")
    run = train(tmp_path / "data" / "bags.parquet", tmp_path / "run", split_column=("fold",), epochs=1)
    assert len(cell_folders(run)) == 3
