"""The model against a reference written independently from the equations, and the reference against the vectors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from reference_numpy import Array, Result, Spec, abmil
from reference_numpy import qgmil as reference
from torch import Tensor
from vector_files import ABMIL, QGMIL, TOLERANCE, Vector, read

import qgmil
from qgmil.bags.bag import PackedBags

files = pytest.mark.parametrize("path", QGMIL, ids=lambda p: p.stem)
EXACT = 1e-10


def numpy_state(state: dict[str, Tensor]) -> dict[str, Array]:
    return {name: value.double().numpy() for name, value in state.items()}


def run_reference(vector: Vector, spec: Spec) -> list[Result]:
    state = numpy_state(vector.state)
    return [reference(state, x[v].double().numpy(), spec) for x, v in zip(vector.x, vector.valid, strict=True)]


def distance(vector: Vector, results: list[Result]) -> float:
    """The largest deviation from the recorded logits, pooling attention and layer attention."""
    worst = 0.0
    for b, result in enumerate(results):
        pairs = [(result.logits, vector.tensors["logits"][b])]
        if "pool_attention" in vector.tensors:
            pairs.append((result.attention, vector.tensors["pool_attention"][b][vector.valid[b]]))
        pairs += [(a, vector.layer_attention(i, b)) for i, a in enumerate(result.layer_attention)]
        worst = max(worst, *(float(np.abs(ours - theirs.double().numpy()).max()) for ours, theirs in pairs))
    return worst


@files
def test_reference_matches_the_vectors(path: Path) -> None:
    vector = read(path)
    assert distance(vector, run_reference(vector, vector.spec)) <= TOLERANCE / 10


@pytest.mark.parametrize("path", ABMIL, ids=lambda p: p.stem)
def test_reference_abmil_matches_the_vectors(path: Path) -> None:
    vector = read(path)
    result = abmil(numpy_state(vector.state), vector.x.double().numpy())
    np.testing.assert_allclose(result.logits, vector.tensors["logits"][0], rtol=0, atol=TOLERANCE / 10)
    np.testing.assert_allclose(result.attention, vector.tensors["attention"][0], rtol=0, atol=TOLERANCE / 10)


@pytest.mark.parametrize(
    ("file", "other"),
    [
        ("qgmil", {"eps": 1e-5}),
        ("qgmil", {"final_norm": False}),
        ("qgmil", {"pool_normed": False}),
        ("config_mean", {"final_norm": False}),
        ("config_cls", {"cls_first": False}),
        ("config_gelu", {"tanh_gelu": True}),
        ("qgmil_layernorm", {"outer_layer_eps": 1e-6}),
        ("qgmil_minimal", {"outer_layer_eps": 1e-6}),
        ("config_layernorm_qknorm", {"outer_layer_eps": 1e-6}),
        ("config_layernorm_qknorm", {"eps": 1e-5}),
    ],
)
def test_the_other_reading_does_not_match(file: str, other: dict[str, Any]) -> None:
    """Every choice that the text leaves open is decided by a file: the alternative is at least three times as far."""
    vector = read(next(p for p in QGMIL if p.stem == file))
    chosen = distance(vector, run_reference(vector, vector.spec))
    rejected = distance(vector, run_reference(vector, dataclasses.replace(vector.spec, **other)))
    assert rejected > 3 * chosen


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights of the size of a trained model's, not 0.02: gates, scores and norms all matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim >= 2:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)
            elif name.endswith("weight"):
                parameter.copy_(1.0 + 0.3 * noise)
            else:
                parameter.copy_(0.5 * noise)


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from([1, 2, 4, 6]))
    norm = draw(st.sampled_from(["rms", "layer"]))
    return {
        "num_classes": draw(st.integers(1, 4)),
        "width": heads * draw(st.sampled_from([2, 4, 6])),
        "num_heads": heads,
        "num_kv_heads": draw(st.sampled_from([k for k in (1, 2, 3, 4, 6) if heads % k == 0])),
        "head_dim": draw(st.sampled_from([2, 4, 8])),
        "num_layers": draw(st.integers(1, 3)),
        "ffn_dim": draw(st.sampled_from([8, 12])),
        "gate": draw(st.sampled_from(["headwise", "elementwise", "none"])),
        "norm": norm,
        "qk_norm": draw(st.sampled_from(["rms", "layer", "none", None])),
        "mlp": draw(st.sampled_from(["swiglu", "plain"])),
        "activation": draw(st.sampled_from(["silu", "gelu", "relu"])),
        "bias": draw(st.booleans()),
        "pooling": draw(st.sampled_from(["attention", "mean", "max", "cls"])),
        "eps": draw(st.sampled_from([1e-6, 1e-4])) if norm == "rms" else 1e-6,
    }


def close(ours: Tensor, theirs: Array) -> None:
    assert tuple(ours.shape) == theirs.shape
    assert float(np.abs(ours.detach().numpy() - theirs).max()) <= EXACT


BASE: dict[str, Any] = {
    "num_classes": 2,
    "width": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "num_layers": 2,
    "ffn_dim": 12,
}


@given(options=options(), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 2**16))
@example(options=BASE, sizes=[1, 40, 7], seed=0)
@example(options=BASE | {"gate": "elementwise", "bias": True}, sizes=[5, 1], seed=1)
@example(options=BASE | {"norm": "layer", "qk_norm": "rms", "mlp": "plain"}, sizes=[9, 3], seed=2)
@example(options=BASE | {"pooling": "cls", "activation": "gelu"}, sizes=[1, 12], seed=3)
def test_model_equals_reference(options: dict[str, Any], sizes: list[int], seed: int) -> None:
    model = qgmil.create_model("qgmil", in_dim=7, **options).double().eval()
    randomise(model, seed)
    x = torch.randn(sum(sizes), 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bags = PackedBags(x, tuple(sizes))
    spec = Spec(
        num_heads=options["num_heads"],
        num_kv_heads=options["num_kv_heads"],
        gate=options.get("gate", "headwise"),
        activation=options.get("activation", "silu"),
        pooling=options.get("pooling", "attention"),
        eps=options.get("eps", 1e-6),
    )
    state = numpy_state(model.state_dict())
    results = [reference(state, part.numpy(), spec) for part in x.split(sizes)]

    output = model(bags, return_attention=True)
    close(output.logits, np.stack([r.logits for r in results]))
    close(output.embedding, np.stack([r.embedding for r in results]))
    if spec.pooling == "attention":
        close(output.attention, np.concatenate([r.attention for r in results]))
    layers = model.layer_attention(bags)
    assert len(layers) == options["num_layers"]
    for i, layer in enumerate(layers):
        assert len(layer) == len(sizes)
        for ours, result in zip(layer, results, strict=True):
            close(ours.attention, result.layer_attention[i])
            if result.gates[i] is None:
                assert ours.gate is None
            else:
                close(ours.gate, result.gates[i])


@given(size=st.integers(1, 40), seed=st.integers(0, 2**16), gated=st.booleans())
def test_abmil_equals_reference(size: int, seed: int, gated: bool) -> None:
    name = "abmil_gated" if gated else "abmil"
    vector = read(next(p for p in ABMIL if p.stem == name))
    model = qgmil.load_released(name, vector.state, vector.config).double().eval()
    randomise(model, seed)
    x = torch.randn(size, vector.config["in_dim"], dtype=torch.float64)
    result = abmil(numpy_state(model.to_released()), x.numpy())
    output = model(x, return_attention=True)
    close(output.logits[0], result.logits)
    close(output.embedding[0], result.embedding)
    close(output.attention, result.attention)
