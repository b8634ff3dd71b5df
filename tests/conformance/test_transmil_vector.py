"""TransMIL: the release's weights give the release's numbers, and the model equals a reference that makes every map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_transmil import Array, transmil
from torch import Tensor
from vector_files import TOLERANCE, VECTORS, Vector, largest_difference, read

import qgmil
from qgmil.errors import ConfigError
from qgmil.models.base import Aggregator

EXACT = 1e-10


@pytest.fixture(scope="module")
def vector() -> Vector:
    return read(VECTORS / "baselines" / "transmil.safetensors")


def numpy_state(state: dict[str, Tensor]) -> dict[str, Array]:
    return {name: value.detach().double().numpy() for name, value in state.items()}


def close(ours: Tensor, theirs: Array, tolerance: float = EXACT) -> None:
    assert tuple(ours.shape) == theirs.shape
    assert float(np.abs(ours.detach().double().numpy() - theirs).max()) <= tolerance


def test_logits(vector: Vector) -> None:
    model = qgmil.load_released("transmil", vector.state, vector.config)
    output = model(vector.x)
    assert output.logits.dtype == torch.float32
    assert largest_difference(output.logits, vector.tensors["logits"]) <= TOLERANCE


def test_reference_matches_the_vector(vector: Vector) -> None:
    logits, _, _ = transmil(numpy_state(vector.state), vector.x[0].double().numpy(), vector.config["num_landmarks"])
    np.testing.assert_allclose(logits, vector.tensors["logits"][0], rtol=0, atol=TOLERANCE / 10)


def test_weights_go_back_under_the_released_names(vector: Vector) -> None:
    back = qgmil.load_released("transmil", vector.state, vector.config).to_released()
    assert back.keys() == vector.state.keys()
    assert all(torch.equal(back[name], value) for name, value in vector.state.items())


def test_without_a_configuration_the_landmarks_are_half_the_width(vector: Vector) -> None:
    assert vector.config["num_landmarks"] == vector.config["embed_dim"] // 2
    model = qgmil.load_released("transmil", vector.state)
    assert largest_difference(model(vector.x).logits, vector.tensors["logits"]) <= TOLERANCE


def test_standardisation_is_folded_into_the_export() -> None:
    model = qgmil.create_model("transmil", in_dim=5, num_classes=2, width=16, num_heads=2, standardize=True).eval()
    assert model.standardize is not None
    with torch.no_grad():
        model.standardize.mean.copy_(torch.arange(5.0))
        model.standardize.std.copy_(torch.tensor([0.5, 1, 2, 3, 4]))
    x = torch.randn(9, 5)
    again = qgmil.load_released("transmil", model.to_released())
    assert largest_difference(model(x).logits, again(x).logits) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"num_heads": 4}}, "num_heads = 4, but the weights have 8"),
        ({"config": {"num_landmarks": 0}}, "num_landmarks"),
        ({"config": {"landmarks": 4}}, "landmarks"),
        ({"drop": "_fc1.0.weight"}, "not a checkpoint of the TransMIL release"),
        ({"drop": "layer2.norm.bias"}, "missing layer2.norm.bias"),
        ({"add": "layer3.norm.bias"}, "unexpected layer3.norm.bias"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(vector: Vector, change: dict[str, Any], message: str) -> None:
    state = {k: v for k, v in vector.state.items() if k != change.get("drop")}
    if "add" in change:
        state[change["add"]] = torch.zeros(3)
    with pytest.raises(ConfigError, match=message):
        qgmil.load_released("transmil", state, {**vector.config, **change.get("config", {})})


def seeded(landmarks: int, seed: int, num_classes: int = 2) -> Aggregator:
    options = {"width": 8, "num_heads": 2, "num_landmarks": landmarks}
    model = qgmil.create_model("transmil", in_dim=5, num_classes=num_classes, **options).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            gain = 3.0 if "to_qkv" in name else 1.0
            parameter.copy_(gain * noise / parameter.shape[-1] ** 0.5 if parameter.ndim >= 2 else 1 + 0.3 * noise)
    return model


@settings(max_examples=15)
@given(size=st.integers(1, 30), landmarks=st.sampled_from([1, 3, 8, 64]), seed=st.integers(0, 2**16))
@example(size=1, landmarks=64, seed=0)
@example(size=2, landmarks=8, seed=1)
@example(size=7, landmarks=3, seed=2)
@example(size=15, landmarks=17, seed=3)  # the token and the square are exactly one run a landmark
@example(size=16, landmarks=12, seed=4)  # two landmarks and a half are padding
def test_model_equals_reference(size: int, landmarks: int, seed: int) -> None:
    model = seeded(landmarks, seed)
    x = torch.randn(size, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits, embedding, attention = transmil(numpy_state(model.to_released()), x.numpy(), landmarks)
    output = model(x, return_attention=True)
    scale = max(1.0, float(np.abs(logits).max()))
    close(output.logits[0] / scale, logits / scale)
    close(output.embedding[0], embedding)
    close(output.attention, attention, 1e-8)  # divided by its sum, which may be small
