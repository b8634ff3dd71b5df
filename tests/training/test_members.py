"""Using runs: honest evaluation and prediction."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cohort import SMALL, make_cohort
from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.errors import BagError, RunError
from qgmil.training.config import TrainConfig
from qgmil.training.members import evaluate_run, load_run, predict_run
from qgmil.training.run import train_run


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainConfig.build({**SMALL, "epochs": 4, "folds": 3})
    return train_run(manifest, tmp_path_factory.mktemp("runs") / "run", config)


def test_on_its_own_bags_evaluation_is_out_of_fold(run: Path, manifest: Path) -> None:
    result = evaluate_run(load_run(run), open_bags(manifest))
    pooled = json.loads((run / "metrics.json").read_text())["pooled"]["metrics"]
    for name in ("macro_f1", "auroc", "nll", "ece"):
        assert result["metrics"][name] == pytest.approx(pooled[name]["mean"], abs=1e-5), name
    assert {row["members"] for row in result["rows"]} == {1} and result["left_out"] == []


def test_including_seen_bags_is_another_figure_and_is_recorded(run: Path, manifest: Path) -> None:
    result = evaluate_run(load_run(run), open_bags(manifest), include_seen=True)
    assert result["include_seen"] is True and {row["members"] for row in result["rows"]} == {3}


def test_a_new_cohort_is_predicted_by_all_members(run: Path, tmp_path: Path) -> None:
    other = make_cohort(tmp_path / "new", patients=6, seed=9)
    other.write_text(other.read_text().replace("P0", "Q0").replace("\np0", "\nq0"))
    loaded = load_run(run)
    result = evaluate_run(loaded, open_bags(other))
    assert {row["members"] for row in result["rows"]} == {3}
    bags = open_bags(other)
    by_hand = np.mean([m.model(bags[0]).logits.softmax(-1)[0].detach().numpy() for m in loaded.members], axis=0)
    row = predict_run(loaded, bags)[0]
    assert [row["probability_benign"], row["probability_tumour"]] == pytest.approx(by_hand.tolist(), abs=1e-5)
    assert row["seen"] == "no"


def test_a_patient_that_was_trained_on_is_seen_under_another_bag_id(run: Path, manifest: Path) -> None:
    bag = open_bags(manifest)[0]
    twin = Bag(bag.features, bag.label, "new_name", bag.patient_id)
    assert predict_run(load_run(run), BagDataset.from_bags([twin]))[0]["seen"] == "yes"


def test_a_hold_out_run_cannot_be_evaluated_on_its_training_bags(manifest: Path, tmp_path: Path) -> None:
    run = load_run(train_run(manifest, tmp_path / "run", TrainConfig.build({**SMALL, "epochs": 1})))
    bags = open_bags(manifest)
    seen = bags.subset([b for b in bags.bag_ids if b in run.members[0].seen_bags])
    with pytest.raises(BagError, match=r"--include-seen"):
        evaluate_run(run, seen)
    whole = evaluate_run(run, bags)
    assert set(whole["left_out"]) == set(seen.bag_ids)


def test_an_unknown_label_is_named(run: Path) -> None:
    bags = BagDataset.from_bags([Bag(open_bags_features(), "normal", "x")])
    with pytest.raises(BagError, match=r"bag 'x' has label 'normal'.*benign, tumour"):
        evaluate_run(load_run(run), bags)


def open_bags_features():
    import torch

    return torch.randn(5, 12)


def test_another_encoder_is_refused_by_bag(run: Path) -> None:
    import torch

    with pytest.raises(BagError, match=r"'x' has 7 features.*made for 12"):
        predict_run(load_run(run), BagDataset.from_bags([Bag(torch.randn(3, 7), None, "x")]))


def test_a_run_without_models_says_how_to_go_on(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(RunError, match="--resume"):
        load_run(tmp_path)


def test_equal_names_of_a_new_cohort(run: Path, manifest: Path) -> None:
    """Other bags that happen to be called the same: nothing is left out when the user says so."""
    loaded, bags = load_run(run), open_bags(manifest)
    result = evaluate_run(loaded, bags, new_cohort=True)
    assert {row["members"] for row in result["rows"]} == {3} and result["new_cohort"] is True
    assert {row["seen"] for row in predict_run(loaded, bags, new_cohort=True)} == {"no"}


def test_without_its_split_a_run_is_not_evaluated(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "cells" / "fold1_seed0" / "split.csv").unlink()
    with pytest.raises(RunError, match=r"split\.csv is gone"):
        load_run(copy)


def test_an_unfinished_run_says_so(run: Path, tmp_path: Path) -> None:
    import shutil

    assert load_run(run).note == ""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "cells" / "fold1_seed0" / "model.safetensors").unlink()
    (copy / "cells" / "fold2_seed0" / "metrics.json").unlink()
    note = load_run(copy).note
    assert "2 of 3 models are used, 1 of them" in note


def test_every_bag_is_read_once_however_many_models(run: Path, manifest: Path, monkeypatch) -> None:
    loaded, bags = load_run(run), open_bags(manifest)
    read: list[str] = []
    original = BagDataset.__getitem__

    def counted(self: BagDataset, index: int) -> Bag:
        bag = original(self, index)
        read.append(bag.bag_id)
        return bag

    monkeypatch.setattr(BagDataset, "__getitem__", counted)
    told: list[int] = []
    rows = predict_run(loaded, bags, batch_size=3, on_bags=told.append)
    assert len(loaded.members) > 1
    assert sorted(read) == sorted(bags.bag_ids)
    assert [r["bag_id"] for r in rows] == list(bags.bag_ids)
    assert told[-1] == len(bags) * len(loaded.members) and told == sorted(told)


def test_prediction_does_not_load_the_training_loop() -> None:
    code = "import sys, qgmil.training.members; sys.exit('lightning.pytorch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
