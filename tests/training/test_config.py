"""The configuration: files, flags, and what is wrong with them in words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qgmil.errors import ConfigError
from qgmil.training.config import TrainConfig


def test_yaml_round_trip_is_exact(tmp_path: Path) -> None:
    config = TrainConfig.build({"model": "abmil", "lr": 3e-4, "options": {"width": 64}, "skip": ("empty",), "folds": 4})
    path = tmp_path / "c.yaml"
    path.write_text(config.to_yaml())
    assert TrainConfig.read(path) == config
    assert set(yaml.safe_load(path.read_text())) == set(TrainConfig.model_fields)


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("lr: 0.01\nepochs: 3\n")
    config = TrainConfig.read(path, lr=0.5)
    assert (config.lr, config.epochs, config.batch_size) == (0.5, 3, TrainConfig().batch_size)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rate": 1}, r"no option 'learning_rate'.*lr"),
        ({"lr": -1}, r"lr = -1: .*greater than 0"),
        ({"monitor": "f1"}, r"monitor = 'f1'.*val_macro_f1"),
        ({"epochs": 0}, r"epochs = 0"),
        ({"folds": 1}, r"folds = 1"),
        ({"folds": 3, "split_column": ["split"]}, r"exclude each other"),
        ({"val": 1.5}, r"val = 1.5"),
    ],
)
def test_bad_values_are_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig.build(values)


@pytest.mark.parametrize("text", ["- a\n- b\n", "lr: [1\n", "just words"])
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        TrainConfig.read(path)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        TrainConfig.read(path)


def test_options_that_arrive_as_text_are_numbers(tmp_path: Path) -> None:
    """From the command line, and 1e-6 in YAML, which is text there."""
    path = tmp_path / "c.yaml"
    path.write_text("options:\n  eps: 1e-6\n  num-heads: 4\n  gate: none\n  bias: 'true'\n")
    options = TrainConfig.read(path).options
    assert options == {"eps": 1e-6, "num_heads": 4, "gate": "none", "bias": True}


@pytest.mark.parametrize("name", ["in_dim", "num_classes", "standardize", "name"])
def test_what_is_no_option_of_a_model_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        TrainConfig.build({"options": {name: 3}})


def test_a_yaml_key_that_is_no_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("on: 3\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: True is no option's name"):
        TrainConfig.read(path)
