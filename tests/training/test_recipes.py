"""The published recipe of a model: what it decides, what the user decides, and that a run holds it in full."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from cohort import SMALL, make_cohort
from qgmil.bags.dataset import open_bags
from qgmil.cli import main
from qgmil.errors import ConfigError
from qgmil.models.abmil import ABMIL
from qgmil.models.registry import model_entries
from qgmil.training.config import TrainConfig
from qgmil.training.fit import Interrupted, fit_model
from qgmil.training.recipes import RECIPE_FIELDS
from qgmil.training.runfolder import read_run

CLASSES = ("benign", "tumour")


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def test_the_published_recipe_fills_what_is_not_given() -> None:
    config = TrainConfig.build({"model": "abmil", "recipe": "published", "lr": 3e-3, "epochs": 7})
    assert (config.lr, config.epochs) == (3e-3, 7)
    assert (config.optimizer, config.batch_size, config.weight_decay) == ("adam", 1, 1e-4)
    assert (config.schedule, config.warmup, config.clip, config.label_smoothing) == ("constant", 0.0, 0.0, 0.0)
    assert config.scaling == "none"


def test_the_common_recipe_is_that_of_every_model() -> None:
    common = TrainConfig().model_dump(exclude={"model"})
    assert TrainConfig.build({"model": "abmil", "recipe": "common"}).model_dump(exclude={"model"}) == common


def test_a_model_without_a_published_recipe_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(ConfigError, match=r"no published recipe of 'max' is known; take recipe common, or .* abmil, "):
        TrainConfig.build({"model": "max", "recipe": "published"})
    with pytest.raises(ConfigError, match=r"unknown model 'abmill'.*did you mean"):
        TrainConfig.build({"model": "abmill", "recipe": "published"})


def test_what_is_fitted_in_one_go_has_nothing_to_choose() -> None:
    config = TrainConfig.build({"model": "linear_probe", "recipe": "published"})
    assert config.model_dump(exclude={"model", "recipe"}) == TrainConfig().model_dump(exclude={"model", "recipe"})


@pytest.mark.parametrize("name", [n for n, entry in model_entries().items() if entry.cls.published_recipe])
def test_every_published_recipe_is_a_valid_configuration(name: str) -> None:
    config = TrainConfig.build({"model": name, "recipe": "published"})
    recipe = model_entries()[name].cls.published_recipe
    assert {field: getattr(config, field) for field in recipe} == dict(recipe)
    assert set(recipe) <= set(RECIPE_FIELDS)


def test_a_misspelt_field_of_a_recipe_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ABMIL, "published_recipe", {"learning_rate": 1.0})
    with pytest.raises(ConfigError, match=r"recipe of 'abmil' sets learning_rate"):
        TrainConfig.build({"model": "abmil", "recipe": "published"})


def test_a_run_holds_its_recipe_whatever_becomes_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_cohort(tmp_path / "data", patients=12)
    run = tmp_path / "run"
    monkeypatch.setattr("qgmil.cli.output.finish_run", lambda folder, quiet: None)  # the page is not the subject
    small = ("--options.width", 16, "--device", "cpu", "--precision", "32", "--epochs", 2, "--quiet")
    flags = ("--recipe", "published", "--optimizer", "lookahead_radam", "--betas", 0.5, 0.9)
    assert command("train", manifest, "-o", run, "--model", "abmil", *flags, *small) == 0
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["recipe"], written["optimizer"], written["betas"]) == ("published", "lookahead_radam", [0.5, 0.9])
    assert (written["lr"], written["batch_size"], written["epochs"], written["schedule"]) == (5e-4, 1, 2, "constant")
    for changed in ({"lr": 7.0}, {}):
        monkeypatch.setattr(ABMIL, "published_recipe", changed)
        assert read_run(run)[0].lr == 5e-4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optimizer": "lion"}, r"optimizer = 'lion'.*lookahead_radam"),
        ({"betas": (0.9, 1.0)}, r"betas.1 = 1.0: .*less than 1"),
        ({"betas": (0.9,)}, r"betas"),
        ({"schedule": "linear"}, r"schedule = 'linear'.*constant"),
        ({"recipe": "mine"}, r"recipe = 'mine'.*published"),
    ],
)
def test_wrong_values_are_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig.build(values)


def test_the_models_page_shows_the_published_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("models", "abmil_gated") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--recipe published" in shown and "optimizer adam" in shown and "lr 0.0005" in shown
    assert command("models", "max") == 0
    assert "published" not in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["adam", "radam", "lookahead_radam", "sgd"])
def test_interrupted_and_resumed_equals_never_stopped_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    """As in test_resume.py with the default, here in one process."""
    bags = open_bags(make_cohort(tmp_path / "data", patients=12), in_memory=True)
    small = {**SMALL, "model": "abmil", "options": {"width": 16}, "lr": 1e-3, "epochs": 6, "checkpoint_seconds": 0.0}
    config = TrainConfig.build({**small, "optimizer": optimizer, "schedule": "constant"})

    def stop(done: int, most: int, scores: object) -> None:
        if done == 3:  # nine steps: between two slow ones
            raise KeyboardInterrupt

    whole = fit_model(bags, None, CLASSES, config, seed=2).model.state_dict()
    with pytest.raises(Interrupted):
        fit_model(bags, None, CLASSES, config, seed=2, folder=tmp_path, on_epoch=stop)
    resumed = fit_model(bags, None, CLASSES, config, seed=2, folder=tmp_path, resume=True)
    assert len(resumed.history) == 6
    assert all(torch.equal(value, whole[name]) for name, value in resumed.model.state_dict().items())
