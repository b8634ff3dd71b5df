"""The released weights give the released numbers: logits, attention and gradients of every recorded file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from vector_files import ABMIL, QGMIL, TOLERANCE, Vector, largest_difference, read

import qgmil
from qgmil.errors import ConfigError, QGMILError
from qgmil.models.qgmil import QGMIL as QGMILModel

qgmil_files = pytest.mark.parametrize("path", QGMIL, ids=lambda p: p.stem)
abmil_files = pytest.mark.parametrize("path", ABMIL, ids=lambda p: p.stem)
Q_PROJ = "layers.0.self_attn.q_proj.weight"


def load(vector: Vector) -> torch.nn.Module:
    return qgmil.load_released("qgmil", vector.state, vector.config).eval()


def test_all_files_are_here() -> None:
    assert len(QGMIL) == 17
    assert len(ABMIL) == 2


@qgmil_files
def test_logits(path: Path) -> None:
    vector = read(path)
    output = load(vector)(vector.x, vector.mask)
    assert output.logits.dtype == torch.float32
    assert largest_difference(output.logits, vector.tensors["logits"]) <= TOLERANCE


@qgmil_files
def test_pool_attention(path: Path) -> None:
    vector = read(path)
    attention = load(vector)(vector.x, vector.mask, return_attention=True).attention
    if "pool_attention" not in vector.tensors:
        assert vector.config["pooling"] != "attention"
        return
    expected = vector.tensors["pool_attention"]
    assert largest_difference(attention[vector.valid], expected[vector.valid]) <= TOLERANCE
    assert not attention[~vector.valid].any()


@qgmil_files
def test_layer_attention(path: Path) -> None:
    vector = read(path)
    layers = load(vector).layer_attention(vector.x, vector.mask)
    assert len(layers) == vector.config["num_layers"]
    for i, bags in enumerate(layers):
        assert len(bags) == len(vector.x)
        for b, bag in enumerate(bags):
            assert largest_difference(bag.attention, vector.layer_attention(i, b)) <= TOLERANCE


@qgmil_files
def test_gradients(path: Path) -> None:
    vector = read(path)
    model = load(vector)
    x = vector.x.clone().requires_grad_()
    model(x, vector.mask).logits.square().sum().backward()
    valid = vector.valid
    assert largest_difference(x.grad[valid], vector.tensors["grad/x"][valid]) <= TOLERANCE
    assert not x.grad[~valid].any()
    weights = dict(model.named_parameters())
    assert largest_difference(weights[Q_PROJ].grad, vector.tensors[f"grad/{Q_PROJ}"]) <= TOLERANCE


@qgmil_files
def test_round_trip_is_bitwise(path: Path) -> None:
    vector = read(path)
    model = load(vector)
    exported = model.to_released()
    assert exported.keys() == vector.state.keys()
    for name, value in vector.state.items():
        assert torch.equal(exported[name], value), name
    again = qgmil.load_released("qgmil", exported, model.released_config()).eval()
    with torch.no_grad():
        assert torch.equal(again(vector.x, vector.mask).logits, model(vector.x, vector.mask).logits)


@qgmil_files
def test_released_config_keeps_what_matters(path: Path) -> None:
    vector = read(path)
    config = load(vector).released_config()
    names = (
        *("in_dim", "embed_dim", "num_classes", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "headwise_attn_output_gate", "elementwise_attn_output_gate", "use_qk_norm", "qkv_bias"),
        *("use_rms_norm", "rms_norm_eps", "hidden_act", "dropout", "num_layers", "pooling", "use_cls_token"),
    )
    assert {n: config[n] for n in names} == {n: vector.config[n] for n in names}


@qgmil_files
def test_state_dict_has_the_released_names(path: Path) -> None:
    vector = read(path)
    shapes = {name: value.shape for name, value in load(vector).state_dict().items()}
    assert shapes == {name: value.shape for name, value in vector.state.items()}


@qgmil_files
def test_from_released_needs_no_more_than_the_weights_say(path: Path) -> None:
    """Without a configuration: sizes come from shapes, and what they do not say is refused (the activation apart)."""
    vector = read(path)
    config = vector.config
    # Neither mean against max, nor the size of a head that has no norm and no gate, leaves a trace in the weights.
    if config["pooling"] in ("mean", "max") or (vector.gate == "none" and not config["use_qk_norm"]):
        with pytest.raises(ConfigError, match="config"):
            QGMILModel.from_released(vector.state)
        return
    model = QGMILModel.from_released(vector.state).eval()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert shapes == {name: value.shape for name, value in vector.state.items()}
    if config["hidden_act"] == "silu":
        logits = model(vector.x, vector.mask).logits
        assert largest_difference(logits, vector.tensors["logits"]) <= TOLERANCE


def test_a_missing_or_misshapen_weight_is_an_error() -> None:
    vector = read(QGMIL[-1])
    for name, value in (("final_norm.weight", None), ("final_norm.weight", torch.ones(5)), ("surplus", torch.ones(5))):
        state = dict(vector.state)
        state.pop(name, None)
        if value is not None:
            state[name] = value
        with pytest.raises(QGMILError, match=name):
            qgmil.load_released("qgmil", state, vector.config)


@abmil_files
def test_abmil(path: Path) -> None:
    vector = read(path)
    model = qgmil.load_released(path.stem, vector.state, vector.config).eval()
    output = model(vector.x, return_attention=True)
    assert largest_difference(output.logits, vector.tensors["logits"]) <= TOLERANCE
    assert largest_difference(output.attention, vector.tensors["attention"][0]) <= TOLERANCE
    exported = model.to_released()
    assert exported.keys() == vector.state.keys()
    assert all(torch.equal(exported[name], value) for name, value in vector.state.items())
    again = qgmil.load_released(path.stem, exported).eval()  # all sizes are in the weights
    assert torch.equal(again(vector.x).logits, output.logits)
