"""Products of instances come in few sizes, and the results stay what they were."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from qgmil import PackedBags, create_model
from qgmil.layers.linear import LEAST, SIZES, Linear, next_size

PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm}


class Shapes(TorchDispatchMode):
    """Notes the shapes of all bfloat16 products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[object, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket in PRODUCTS and args[-1].dtype == torch.bfloat16:
            self.seen.add((func, *(tuple(x.shape) for x in args if isinstance(x, torch.Tensor))))
        return func(*args, **(kwargs or {}))


@given(st.integers(1, 10**6), st.sampled_from([None, 64]))
def test_a_size_is_near_and_there_are_few(rows: int, most: int | None) -> None:
    size = next_size(rows, most)
    assert rows <= size < rows + max(LEAST, rows / SIZES) and next_size(size, most) == size
    if rows > LEAST:
        assert next_size(rows + 1, most) >= size and size % LEAST == 0


def test_an_octave_has_sixteen_sizes() -> None:
    assert len({next_size(n) for n in range(4097, 8193)}) == 16
    assert [next_size(n) for n in (5, 16, 17, 100, 1000, 10_000)] == [5, 16, 32, 112, 1024, 10_240]
    assert next_size(10_000, 64) == 10_048


@pytest.mark.parametrize("rows", [1, 16, 17, 100, 127, 128])
def test_values_and_gradients_are_those_of_the_plain_layer(rows: int) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(24, 40)
    ours = Linear(24, 40)
    ours.load_state_dict(plain.state_dict())
    got = []
    for layer in (plain, ours):
        x = torch.linspace(-1, 1, rows * 24).view(rows, 24).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        assert out.shape == (rows, 40) and out.dtype == torch.bfloat16
        out.backward(torch.linspace(-1, 2, rows * 40).view(rows, 40).to(out.dtype))
        got.append((out.detach(), x.grad, layer.weight.grad, layer.bias.grad))
    for a, b in zip(*got, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=1e-2, atol=1e-3)


def test_float32_is_left_alone() -> None:
    layer, x = Linear(8, 4), torch.randn(100, 8)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("name", ["qgmil", "abmil_gated", "clam_sb", "acmil"])
def test_bags_of_like_sizes_share_every_product(name: str, tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """513 and 544 instances are one size: nothing new is compiled for the second bag, forward or backward."""
    from qgmil.layers.kernels import bounded

    monkeypatch.setattr(bounded, "tiles", lambda: tiles)
    model = create_model(name, in_dim=32, num_classes=2).train()
    seen = []
    for n in (513, 544):
        bags = PackedBags(torch.randn(n, 32), (n,), torch.zeros(1, dtype=torch.long))
        with Shapes() as shapes:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model.loss(model(bags), bags.labels)
            loss.backward()
        seen.append(shapes.seen)
    assert len(seen[0]) > 5
    assert seen[0] == seen[1]
