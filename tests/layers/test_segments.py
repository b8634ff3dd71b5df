"""Every attention backend against the definition, outputs and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qgmil.errors import ConfigError
from qgmil.layers import segments
from qgmil.layers.kernels import bounded
from qgmil.layers.segments import BACKENDS, attention_blocks, choose_backend, segment_attention

#: Largest relative error (Frobenius) of outputs and gradients that rounding explains.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}


def definition(q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Attention of each bag, from the equation, head by head."""
    groups = q.shape[1] // k.shape[1]
    out, start = torch.empty_like(q), 0
    for n in sizes:
        rows = slice(start, start + n)
        for h in range(q.shape[1]):
            scores = q[rows, h] @ k[rows, h // groups].T * q.shape[-1] ** -0.5
            out[rows, h] = scores.softmax(dim=1) @ v[rows, h // groups]
        start += n
    return out


def made(sizes: tuple[int, ...], heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    made_by = torch.Generator().manual_seed(sum(sizes) + heads)
    total = sum(sizes)
    shapes = [(total, heads, width), (total, kv_heads, width), (total, kv_heads, width), (total, heads, width)]
    return [torch.randn(shape, generator=made_by).to(dtype) for shape in shapes]


def differentiated(attend, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = attend(*inputs)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(x.grad for x in inputs)]


BOUNDED = ("bounded", torch.bfloat16)
CASES = [("eager", torch.float64), ("sdpa", torch.float64), ("blockwise", torch.float64)]
CASES += [("eager", torch.float32), ("sdpa", torch.float32), ("blockwise", torch.float32), BOUNDED]
CASES += [("sdpa", torch.bfloat16)]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("backend", "dtype", "tiles"), [*((*case, False) for case in CASES), (*BOUNDED, True)])
def test_a_backend_is_the_definition(backend: str, dtype: torch.dtype, tiles: bool, kv_heads: int, monkeypatch) -> None:
    monkeypatch.setattr(bounded, "tiles", lambda: tiles)  # either forward pass, whatever this processor would take
    for name in ("BLOCK", "TILES_BLOCK"):
        monkeypatch.setattr(bounded, name, 16)  # several blocks, the last one not full
    monkeypatch.setattr(segments, "BLOCK_ENTRIES", 4 * 32 * 16)
    sizes = (1, 37, 2, 50)
    q, k, v, grad = made(sizes, 4, kv_heads, 16, dtype)
    exact = differentiated(lambda *x: definition(*x, sizes), *(x.double() for x in (q, k, v, grad)))
    got = differentiated(lambda *x: segment_attention(*x, sizes, backend=backend), q, k, v, grad)
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, exact, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= TOLERANCE[dtype] * b.norm(), name


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from([(1, 1), (4, 2), (3, 3)]))
@settings(max_examples=25, deadline=None)
def test_bags_never_see_each_other(sizes: list[int], heads: tuple[int, int]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, _ = made(tuple(sizes), *heads, 8, dtype)
        together = segment_attention(q, k, v, sizes)
        alone = [segment_attention(*bag, [len(bag[0])]) for bag in zip(*(x.split(sizes) for x in (q, k, v)))]  # noqa: B905
        assert torch.equal(together, torch.cat(alone))


def test_the_choice_of_a_backend() -> None:
    q, k, _, _ = made((9,), 4, 2, 16, torch.bfloat16)
    assert choose_backend(q, k) == "bounded"
    assert choose_backend(q.float(), k.float()) == "sdpa"
    assert choose_backend(q, k, dropout=0.1) == "blockwise"
    assert choose_backend(q * 1000, k) == "sdpa"  # its exponentials would overflow
    assert choose_backend(q * float("nan"), k) == "sdpa"


@pytest.mark.parametrize("tiles", [False, True])
def test_logits_at_the_bound_are_safe_and_right(tiles: bool, monkeypatch) -> None:
    monkeypatch.setattr(bounded, "tiles", lambda: tiles)
    q, k, v, grad = made((64,), 2, 2, 16, torch.bfloat16)
    q, k = (F.normalize(x.float(), dim=-1) for x in (q, k))
    k[0] = q[0]  # one logit reaches the bound, and its opposite does too
    k[1] = -q[0]
    reach = (bounded.MAX_LOGIT * 0.99 * 16**0.5) ** 0.5
    q, k = (q * reach).bfloat16(), (k * reach).bfloat16()
    assert choose_backend(q, k) == "bounded"
    exact = differentiated(lambda *x: definition(*x, (64,)), *(x.double() for x in (q, k, v, grad)))
    got = differentiated(lambda *x: segment_attention(*x, (64,)), q, k, v, grad)
    for a, b in zip(got, exact, strict=True):
        assert bool(torch.isfinite(a).all())
        assert (a.double() - b).norm() <= 0.06 * b.norm()  # logits near 40 are rounded to 1/8


def test_what_a_backend_cannot_do_is_said() -> None:
    q, k, v, _ = made((9,), 4, 2, 16, torch.float32)
    with pytest.raises(ConfigError, match="unknown attention backend 'fast'"):
        segment_attention(q, k, v, (9,), backend="fast")
    with pytest.raises(ConfigError, match="'bounded' is for bfloat16"):
        segment_attention(q, k, v, (9,), backend="bounded")
    with pytest.raises(ConfigError, match="'varlen' has no dropout"):
        segment_attention(q, k, v, (9,), 0.5, backend="varlen")


def test_blocks_of_the_map_are_its_rows() -> None:
    q, k, _, _ = made((45,), 4, 2, 16, torch.float64)
    whole = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(2, dim=1)).div(4.0).softmax(dim=-1)
    blocks = list(attention_blocks(q, k, entries=4 * 45 * 33))
    assert [start for start, _ in blocks] == [0, 33]
    assert torch.allclose(torch.cat([block for _, block in blocks], dim=1), whole, atol=1e-12)
    assert next(attention_blocks(q.bfloat16(), k.bfloat16()))[1].dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_varlen_on_cuda_is_the_definition(dtype: torch.dtype, kv_heads: int) -> None:
    sizes = (1, 137, 2, 500)
    inputs = [x.cuda() for x in made(sizes, 4, kv_heads, 64, dtype)]
    assert choose_backend(inputs[0], inputs[1]) == "varlen"
    exact = differentiated(lambda *x: definition(*x, sizes), *(x.double() for x in inputs))
    for backend in ("varlen", "sdpa"):
        got = differentiated(lambda *x, b=backend: segment_attention(*x, sizes, backend=b), *inputs)
        for a, b in zip(got, exact, strict=True):
            assert (a.double() - b).norm() <= 1e-2 * b.norm()


def test_every_backend_is_tested() -> None:
    assert set(BACKENDS) == {name for name, _ in CASES} | {"varlen"}
