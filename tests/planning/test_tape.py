"""The tape: blocks, their ends, and arithmetic, on fake tensors and on real ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qgmil.planning.tape import FREED, Tape

KB = 1000


def record(compute: Callable[[Tensor], object], x_shape: tuple[int, ...], fake: bool) -> Tape:
    """The tape of a computation on ones."""
    tape = Tape(fake=fake)
    if fake:
        with FakeTensorMode():
            x = torch.ones(x_shape)
            with tape:
                compute(x)
    else:
        x = torch.ones(x_shape)
        with tape:
            compute(x)
    return tape


def sizes(tape: Tape) -> list[int]:
    """Bytes taken (positive) and given back (negative), in order."""
    taken = {key: n for key, n in tape.events if n != FREED}
    return [-taken[key] if n == FREED else n for key, n in tape.events]


@pytest.mark.parametrize("fake", [True, False])
def test_blocks_are_noted_when_they_come_and_go(fake: bool) -> None:
    def compute(x: Tensor) -> None:
        y = x * 2  # 4 KB
        z = torch.cat([y, y])  # 8 KB
        del y
        z.add_(1)  # writes into what is there
        w = z[:10].view(-1)  # views have no memory of their own
        del z, w

    tape = record(compute, (10, 100), fake)
    assert sizes(tape) == [4 * KB, 8 * KB, -4 * KB, -8 * KB]


@pytest.mark.parametrize("fake", [True, False])
def test_the_backward_pass_is_on_the_tape(fake: bool) -> None:
    def compute(x: Tensor) -> None:
        weight = torch.ones(100, 50, requires_grad=True)
        (x @ weight).sum().backward()

    tape = record(compute, (10, 100), fake)
    assert tape.flops == 2 * (2 * 10 * 100 * 50)  # x is no parameter: one product forward, one backward
    assert 100 * 50 * 4 in sizes(tape)


def test_attention_is_counted_apart() -> None:
    def compute(x: Tensor) -> None:
        q = x.view(1, 4, 64, 8).requires_grad_()
        F.scaled_dot_product_attention(q, q, q).sum().backward()
        x.view(4, 64, 8) @ x.view(4, 8, 64)
        x.view(64, 32) @ x.view(32, 64)

    tape = record(compute, (4 * 64 * 8,), True)
    fused = 4 * 4 * 64 * 64 * 8
    assert tape.attention_flops == fused * 7 // 2 + 2 * 4 * 64 * 8 * 64
    assert tape.flops == tape.attention_flops + 2 * 64 * 32 * 64


def test_variable_length_attention_counts_each_bag_alone() -> None:
    from torch.nn.attention.varlen import varlen_attn

    tape = Tape(fake=True, sizes=(3, 5))
    with FakeTensorMode():
        q = torch.ones(8, 2, 16, dtype=torch.bfloat16)
        offsets = torch.tensor([0, 3, 8], dtype=torch.int32)
        with tape:
            varlen_attn(q, q, q, offsets, offsets, 5, 5)
    assert tape.flops == tape.attention_flops == 4 * (9 + 25) * 2 * 16


@pytest.mark.parametrize("inference", [True, False])
def test_inference_mode_hides_no_arithmetic(inference: bool) -> None:
    layer = nn.Linear(100, 20)

    def compute(x: Tensor) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            layer(x)

    assert record(compute, (10, 100), False).flops == 2 * 10 * 100 * 20


def test_what_depends_on_values_is_taken_at_its_largest() -> None:
    def compute(x: Tensor) -> None:
        assert (x > 0).nonzero().shape == (60, 2)
        assert x[x > 0].shape == (60,)
        assert x[x[:, 0] > 0].shape == (6, 10)
        assert x.masked_select(x > 0).shape == (60,)
        assert x[x.sum(1).argmax()].shape == (10,)
        assert x.sum().item() == 1.0 and not bool(x.any())
        assert torch.bincount(x.long()[:, 0], minlength=7).shape == (7,)
        values, inverse, counts = x.long().unique(return_inverse=True, return_counts=True)
        assert values.shape == (60,) and inverse.shape == (6, 10) and counts.shape == (60,)

    record(compute, (6, 10), True)
