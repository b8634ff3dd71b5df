"""Gradients in float64, finite activations in bfloat16, and norms and softmax in at least float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import D, difference, features, randomise, small_model
from torch import Tensor, nn

import qgmil
from qgmil.models.base import Aggregator

every_model = pytest.mark.parametrize("name", qgmil.list_models())
TINY: dict[str, Any] = {"width": 8, "num_heads": 4, "ffn_dim": 6}
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("qgmil", {**TINY, "gate": gate}) for gate in ("headwise", "elementwise", "none")),
    *(("qgmil", {**TINY, "gate": gate, "num_kv_heads": 2}) for gate in ("headwise", "elementwise")),
    ("qgmil", {**TINY, "num_kv_heads": 1, "norm": "layer", "bias": True, "num_layers": 2}),
    ("qgmil", {**TINY, "pooling": "cls", "activation": "gelu"}),
    ("qgmil", {**TINY, "pooling": "mean", "mlp": "plain"}),
    ("abmil", {"width": 6, "attention_dim": 4}),
    ("abmil_gated", {"width": 6, "attention_dim": 4}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v)))
def test_gradients_are_exact(name: str, options: dict[str, Any]) -> None:
    """Of inputs, and of all weights at once, for two bags with padding between them."""
    model = small_model(name, **options).double()
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1]]).bool()
    x = features(2, 4, D, dtype=torch.float64).requires_grad_()
    names = [key for key, _ in model.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def call(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        arguments = ((x, mask), {"return_attention": True})
        output = torch.func.functional_call(model, dict(zip(names, values, strict=True)), *arguments)
        return (output.logits, output.embedding) + (() if output.attention is None else (output.attention,))

    assert torch.autograd.gradcheck(call, (x, *weights), fast_mode=True)


@pytest.mark.parametrize("gate", ["headwise", "elementwise", "none"])
def test_gradients_of_inputs_in_full(gate: str) -> None:
    """Not the fast mode: every entry of the Jacobian."""
    model = small_model(**TINY, gate=gate, num_kv_heads=2).double()
    x = features(5, D, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: model(v).logits, (x,))


def non_finite_modules(model: Aggregator, x: Tensor) -> list[str]:
    """Names of the modules that gave NaN or infinity."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, result: Any) -> None:
            for value in result if isinstance(result, tuple) else (result,):
                if isinstance(value, Tensor) and not bool(value.isfinite().all()):
                    found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    assert handles
    output = model(x, return_attention=True)
    for handle in handles:
        handle.remove()
    for name in ("logits", "embedding", "attention"):
        value = output[name]
        if value is not None and not bool(value.isfinite().all()):
            found.append(name)
    return found


@every_model
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("how", ["module", "autocast"])
def test_bfloat16_stays_finite(name: str, scale: float, how: str) -> None:
    model, x = small_model(name), features(2, 50, D) * scale
    if how == "module":
        model.bfloat16()
        assert non_finite_modules(model, x.bfloat16()) == []
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert non_finite_modules(model, x) == []


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_compute_in_at_least_float32(norm: str, dtype: torch.dtype) -> None:
    """In float16 the squares of 1,000 overflow; the result must be that of float64, rounded once."""
    model = small_model(norm=norm, pooling="attention").to(dtype)
    names = ["input_proj.1", "layers.0.input_layernorm", "layers.0.self_attn.q_norm", "final_norm", "pooling.norm"]
    for name in names:
        half = model.get_submodule(name)
        width = half.weight.shape[0]
        for scale in (1e-3, 1.0, 3e3):
            x = (features(20, width) * scale).to(dtype)
            ours = half(x)
            assert ours.dtype == dtype
            half.double()
            exact = half(x.double())
            half.to(dtype)
            # One rounding to the type is half an ulp; a whole one allows for float32's own error at a tie.
            ulp = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
            assert bool(((ours.double() - exact).abs() <= ulp).all()), (name, scale)


def test_layer_attention_in_bfloat16_is_a_distribution() -> None:
    bag = small_model().bfloat16().layer_attention(features(300, D))[0][0]
    assert bag.attention.dtype == torch.float32
    assert difference(bag.attention.sum(-1), torch.ones(4, 300)) < 1e-4


def test_large_scores_do_not_overflow() -> None:
    """Scores of thousands: softmax subtracts the maximum."""
    for name in ("qgmil", "qgmil_no_qknorm", "abmil_gated"):
        model = randomise(small_model(name))
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "attention_weights" in key or "q_proj" in key:
                    p.mul_(1e4)
        output = model(features(2, 30, D) * 100, return_attention=True)
        assert bool(output.logits.isfinite().all())
        assert bool(output.attention.isfinite().all())
