"""Fused layers against the plain formulas: values, gradients, pieces, dtypes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qgmil.layers.dropout import Dropout
from qgmil.layers.feedforward import SwiGLU
from qgmil.layers.kernels import rms, swiglu


def plain_swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def doubles(*shapes: tuple[int, ...]) -> list[Tensor]:
    made_by = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(s, generator=made_by, dtype=torch.float64).requires_grad_() for s in shapes]


def gradients(function, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    copies = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*copies)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(x.grad for x in copies)]


@pytest.mark.parametrize("piece", [1, 24, 10**6])
def test_rms_norm(piece: int, monkeypatch) -> None:
    monkeypatch.setattr(rms, "PIECE", piece)
    x, weight = doubles((5, 3, 8), (8,))
    ours = rms.rms_norm(x, weight, 1e-3)
    assert torch.allclose(ours, x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight, atol=1e-14)
    assert torch.autograd.gradcheck(lambda a, b: rms.rms_norm(a, b, 1e-3), (x, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_accumulates_in_float32(dtype: torch.dtype) -> None:
    x, weight, grad = (t.detach() for t in doubles((40, 512), (512,), (40, 512)))
    x = (x * 30).to(dtype)  # squares summed in half precision would overflow or lose their digits
    ours = gradients(lambda a, b: rms.rms_norm(a, b, 1e-6), [x, weight.float()], grad)
    exact = gradients(lambda a, b: F.rms_norm(a, (512,), b, 1e-6), [x.double(), weight], grad.to(dtype))
    assert [t.dtype for t in ours] == [dtype, dtype, torch.float32]
    for a, b, bound in zip(ours, exact, (2**-8, 2**-8, 1e-5), strict=True):
        assert (a.double() - b).norm() <= bound * b.norm()


def test_rms_norm_of_zeros_has_finite_gradients() -> None:
    x = torch.zeros(3, 8, requires_grad=True)
    rms.rms_norm(x, torch.ones(8), 1e-6).sum().backward()
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_swiglu(rows: int, monkeypatch) -> None:
    monkeypatch.setitem(swiglu.ROWS, "cpu", rows)
    inputs = doubles((5, 4), (6, 4), (6, 4), (4, 6))
    assert torch.allclose(swiglu.swiglu(*inputs), plain_swiglu(*inputs), atol=1e-12)
    assert torch.autograd.gradcheck(swiglu.swiglu, inputs)
    with torch.no_grad():
        assert torch.allclose(swiglu.swiglu(*inputs), plain_swiglu(*inputs), atol=1e-12)


def test_large_bags_take_the_piecewise_swiglu_and_agree(monkeypatch) -> None:
    torch.manual_seed(0)
    layer = SwiGLU(16, 32)
    x, grad = torch.randn(300, 16), torch.randn(300, 16)
    results = {}
    for large in (10**9, 100):
        monkeypatch.setattr("qgmil.layers.feedforward.LARGE", large)
        monkeypatch.setitem(swiglu.ROWS, "cpu", 128)
        for autocast in (False, True):
            layer.zero_grad()
            copy = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = layer(copy)
            out.backward(grad.to(out.dtype))
            values = [out, copy.grad, *(p.grad for p in layer.parameters())]
            results[large, autocast] = [v.detach().float() for v in values]
            assert values[2].dtype == torch.float32  # of the weights
    for autocast, bound in ((False, 1e-6), (True, 1e-2)):
        for a, b in zip(results[10**9, autocast], results[100, autocast], strict=True):
            assert (a - b).norm() <= bound * b.norm()


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_dropout_rate_mean_and_gradient(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 999, requires_grad=True)
    out = Dropout(p)(x)
    out.sum().backward()
    dropped = float((out == 0).double().mean())
    assert abs(dropped - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16
    assert out.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    assert torch.equal(x.grad, out.detach())
    by_column = (out == 0).double().mean(dim=0)  # every quarter of a 64-bit draw is fair
    assert all(abs(float(by_column[i::4].mean()) - p) < 0.005 for i in range(4))


def test_dropout_is_torch_dropout_otherwise() -> None:
    x = torch.randn(7, 3)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    torch.manual_seed(3)
    first = Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), first)
    assert Dropout(0.5)(x.bfloat16()).dtype == torch.bfloat16
