"""Models by name: errors that help, options, losses, and models on disk."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import C, D, features, small_model

import qgmil
from qgmil.errors import ConfigError, QGMILError
from qgmil.models.base import Aggregator
from qgmil.models.registry import model_options

every_model = pytest.mark.parametrize("name", qgmil.list_models())


def test_list_models_has_the_promised_names() -> None:
    names = qgmil.list_models()
    assert names == sorted(set(names))
    presets = {"", "_elementwise", "_no_gate", "_layernorm", "_no_qknorm", "_minimal", "_deep", "_light"}
    assert {f"qgmil{p}" for p in presets} | {"abmil", "abmil_gated", "mean", "max"} <= set(names)


@every_model
def test_defaults_build_and_predict(name: str) -> None:
    model = qgmil.create_model(name, in_dim=D, num_classes=C)
    assert isinstance(model, Aggregator)
    assert isinstance(model, torch.nn.Module)
    assert model(features(4, D)).logits.shape == (1, C)
    assert qgmil.create_model(name, in_dim=1, num_classes=1)(features(1, 1)).logits.shape == (1, 1)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("qgml", "qgmil"), ("qgmil_lite", "qgmil_light"), ("ab_mil", "abmil"), ("qgmil-deep", "qgmil_deep")],
)
def test_an_unknown_name_suggests_close_ones(wrong: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="did you mean") as error:
        qgmil.create_model(wrong, in_dim=D, num_classes=C)
    assert wrong in str(error.value) and meant in str(error.value)
    with pytest.raises(ConfigError, match=meant):
        qgmil.load_released(wrong, {}, {})


def test_a_hopeless_name_lists_all() -> None:
    with pytest.raises(ConfigError) as error:
        qgmil.create_model("zzzz", in_dim=D, num_classes=C)
    assert all(name in str(error.value) for name in qgmil.list_models())


@every_model
def test_an_unknown_option_is_an_error_that_helps(name: str) -> None:
    options = model_options(name)
    with pytest.raises(ConfigError, match="surprise") as error:
        qgmil.create_model(name, in_dim=D, num_classes=C, surprise=1)
    assert all(option in str(error.value) for option in options)
    if "dropout" in options:
        with pytest.raises(ConfigError, match=r"drop_out.*did you mean.*dropout"):
            qgmil.create_model(name, in_dim=D, num_classes=C, drop_out=0.1)


@pytest.mark.parametrize("sizes", [{"in_dim": 0}, {"num_classes": 0}, {"in_dim": 2.5}, {"num_classes": "2"}], ids=str)
def test_impossible_sizes_are_errors(sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(sizes))):
        qgmil.create_model("qgmil", **{"in_dim": D, "num_classes": C, **sizes})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("qgmil", {"width": w}) for w in (0, -8, 1, 12.0)),
        *(("qgmil", {"num_heads": h}) for h in (0, -1)),
        *(("qgmil", {"num_kv_heads": k}) for k in (0, 3, 16, -1)),
        *(("qgmil", {"head_dim": d}) for d in (0, -4)),
        *(("qgmil", {"num_layers": n}) for n in (0, -1)),
        *(("qgmil", {"ffn_dim": f}) for f in (0, -2)),
        *(("qgmil", {"dropout": p}) for p in (-0.1, 1.5, math.nan)),
        *(("qgmil", {"attention_dropout": p}) for p in (-0.1, 1.5)),
        *(("qgmil", {"eps": e}) for e in (-1.0, math.nan)),
        ("abmil", {"width": 0}),
        ("abmil", {"attention_dim": 0}),
        ("abmil", {"dropout": 2.0}),
        ("mean", {"width": -1}),
        ("max", {"dropout": -1.0}),
    ],
    ids=str,
)
def test_options_out_of_range_are_errors_that_name_them(name: str, options: dict[str, Any]) -> None:
    """ "An option is unknown, out of range or inconsistent with another" (ConfigError)."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        qgmil.create_model(name, in_dim=D, num_classes=C, **options)


@every_model
@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 1]), torch.tensor([0.0, 1.0, 1.0])], ids=["long", "float"])
def test_one_logit_means_binary_cross_entropy(name: str, labels: torch.Tensor) -> None:
    model = small_model(name, num_classes=1)
    if type(model).loss is not Aggregator.loss:
        pytest.skip("this aggregator has a loss of its own, with its own tests")
    output = model(features(3, 5, D))
    assert output.logits.shape == (3, 1)
    expected = 0.0
    for z, y in zip(output.logits[:, 0].double().tolist(), labels.tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        expected -= (y * math.log(p) + (1 - y) * math.log1p(-p)) / 3
    assert float(model.loss(output, labels).detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@every_model
def test_several_logits_mean_cross_entropy(name: str) -> None:
    model = small_model(name, num_classes=4)
    if type(model).loss is not Aggregator.loss:
        pytest.skip("this aggregator has a loss of its own, with its own tests")
    output, labels = model(features(3, 5, D)), torch.tensor([3, 0, 2])
    expected = 0.0
    for row, y in zip(output.logits.double().tolist(), labels.tolist(), strict=True):
        top = max(row)
        expected += (top + math.log(sum(math.exp(v - top) for v in row)) - row[y]) / 3
    assert float(model.loss(output, labels).detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_binary_loss_does_not_overflow() -> None:
    model = small_model(num_classes=1)
    output = model(features(2, 5, D))
    output.logits = torch.tensor([[1e4], [-1e4]])
    assert float(model.loss(output, torch.tensor([1, 0]))) == 0.0
    assert float(model.loss(output, torch.tensor([0, 1]))) == pytest.approx(1e4)


def same(a: Aggregator, b: Aggregator) -> None:
    """Same class, name, configuration, weights and predictions, all exact."""
    assert type(a) is type(b)
    assert a.config == b.config
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    x = features(2, 7, D)
    one, other = a.eval()(x, return_attention=True), b.eval()(x, return_attention=True)
    assert torch.equal(one.logits, other.logits)
    assert (one.attention is None) == (other.attention is None)
    assert one.attention is None or torch.equal(one.attention, other.attention)


def test_save_and_load_write_two_files(tmp_path: Path) -> None:
    model = small_model("abmil")
    qgmil.save_model(model, tmp_path / "new" / "folder")
    loaded = qgmil.load_model(tmp_path / "new" / "folder")
    assert not loaded.training
    same(model, loaded)
    assert {p.name for p in (tmp_path / "new" / "folder").iterdir()} == {"model.safetensors", "config.json"}


def test_the_saved_configuration_is_readable_and_complete(tmp_path: Path) -> None:
    model = small_model("qgmil_elementwise", pooling="cls", num_kv_heads=2)
    qgmil.save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["name"] == "qgmil_elementwise"
    assert (config["in_dim"], config["num_classes"]) == (D, C)
    assert config["options"].items() >= {"pooling": "cls", "num_kv_heads": 2, "width": 32}.items()
    again = qgmil.create_model(config["name"], in_dim=D, num_classes=C, **config["options"])
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    same(model, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_save_and_load_keep_the_weights_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    """Loading may choose its precision, but must not change a value that float32 or the file's type can hold."""
    model = small_model().to(dtype)
    qgmil.save_model(model, tmp_path)
    for key, value in qgmil.load_model(tmp_path).state_dict().items():
        assert torch.equal(value.double(), model.state_dict()[key].double()), key


def test_a_standardising_model_survives(tmp_path: Path) -> None:
    model = small_model(standardize=True)
    model.standardize.set_statistics(features(D, seed=1), features(D, seed=2).abs() + 0.1)
    qgmil.save_model(model, tmp_path)
    same(model, qgmil.load_model(tmp_path))
    x = features(2, 7, D)
    plain = qgmil.load_released("qgmil", model.to_released(), model.released_config())
    torch.testing.assert_close(plain(x).logits, model(x).logits, rtol=1e-4, atol=1e-4)


def test_a_released_model_survives(tmp_path: Path) -> None:
    for name in ("qgmil_light", "qgmil_deep", "abmil", "abmil_gated"):
        model = small_model(name)
        config = model.released_config() if name.startswith("qgmil") else None
        loaded = qgmil.load_released(name, model.to_released(), config)
        qgmil.save_model(loaded, tmp_path)
        same(loaded, qgmil.load_model(tmp_path))
        assert torch.equal(loaded(features(3, D)).logits, model(features(3, D)).logits)


@pytest.mark.parametrize("damage", ["missing", "surplus", "shape", "cut", "no weights", "no config", "bad config"])
def test_a_damaged_folder_is_a_named_error(damage: str, tmp_path: Path) -> None:
    qgmil.save_model(small_model(), tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    state = load_file(weights)
    culprit = "final_norm.weight"
    if damage == "missing":
        save_file({k: v for k, v in state.items() if k != culprit}, weights)
    elif damage == "surplus":
        culprit = "extra.weight"
        save_file({**state, culprit: torch.ones(3)}, weights)
    elif damage == "shape":
        save_file({**state, culprit: torch.ones(3)}, weights)
    elif damage == "cut":
        culprit = "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        culprit = "model.safetensors"
        weights.unlink()
    elif damage == "no config":
        culprit = "config.json"
        config.unlink()
    else:
        culprit = "config.json"
        config.write_text("{")
    with pytest.raises(QGMILError, match=culprit):
        qgmil.load_model(tmp_path)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    """Weights with code in them must not run, whatever they are called."""
    qgmil.save_model(small_model(), tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(QGMILError, match=r"model\.safetensors"):
        qgmil.load_model(tmp_path)


@every_model
def test_load_state_dict_is_strict(name: str) -> None:
    model = small_model(name)
    state = model.state_dict()
    first = next(iter(state))
    with pytest.raises(RuntimeError, match=first):
        model.load_state_dict({k: v for k, v in state.items() if k != first})
    with pytest.raises(RuntimeError, match="extra"):
        model.load_state_dict({**state, "extra": torch.ones(1)})


@every_model
def test_pickle_and_deepcopy(name: str) -> None:
    model = small_model(name)
    same(model, copy.deepcopy(model))
    same(model, pickle.loads(pickle.dumps(model)))  # noqa: S301 (our own bytes: spawned workers need it)


@pytest.mark.parametrize("name", ["qgmil", "abmil", "abmil_gated"])
def test_a_foreign_checkpoint_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError):
        qgmil.load_released(name, {"encoder.weight": torch.ones(2, 2)})
    with pytest.raises(ConfigError):
        qgmil.load_released(name, {})


def test_models_without_a_release_say_so() -> None:
    with pytest.raises(ConfigError, match="released"):
        qgmil.load_released("mean", {})
    with pytest.raises(ConfigError, match="release"):
        small_model("mean").to_released()


def test_the_name_of_the_abmil_checkpoint_must_be_right() -> None:
    """Asking for the gated model and getting the other one silently would spoil a comparison."""
    with pytest.raises(ConfigError):
        qgmil.load_released("abmil_gated", small_model("abmil").to_released())
    with pytest.raises(ConfigError):
        qgmil.load_released("abmil", small_model("abmil_gated").to_released())
