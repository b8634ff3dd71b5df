"""TransMIL beyond the contract: both paddings undone, order, bags of any size, memory, and cheap forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small import D, difference, features, small_model
from torch import Tensor

import qgmil
from qgmil.errors import ConfigError
from qgmil.layers import nystrom
from qgmil.layers.nystrom import NystromAttention, iterative_pinv
from qgmil.models.transmil import PPEG


def test_order_matters_but_not_where_the_square_is_uniform() -> None:
    model, x = small_model("transmil").double(), features(9, D, dtype=torch.float64)
    assert difference(model(x).logits, model(x.flip(0)).logits) > 1e-3
    same = x[:1].repeat(9, 1)
    assert difference(model(same).logits, model(same.flip(0)).logits) == 0


def test_a_repeated_instance_gets_the_weight_of_its_copy() -> None:
    """Five instances fill a square of nine with the first four again: so does the bag with them spelt out."""
    model, x = small_model("transmil").double(), features(5, D, dtype=torch.float64)
    short, full = model(x, return_attention=True), model(torch.cat([x, x[:4]]), return_attention=True)
    assert difference(short.logits, full.logits) < 1e-12
    row = model.layer2.attn.row(model.layer2.norm(model._mixed(model.embed(x))), 0)[1:]
    folded = row[:5].clone()
    folded[:4] += row[5:]
    expected = folded.clamp_min(0) / folded.clamp_min(0).sum()
    assert difference(short.attention, expected) < 1e-12


def test_attention_without_any_positive_weight_is_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("transmil")
    monkeypatch.setattr(NystromAttention, "row", lambda self, u, index: -torch.ones(len(u)))
    assert difference(model(features(4, D), return_attention=True).attention, torch.full((4,), 0.25)) < 1e-7


def test_the_row_times_the_values_is_what_comes_out() -> None:
    """Without convolution and output projection, and with the same values in both heads, mean over heads."""
    torch.manual_seed(0)
    layer, u = NystromAttention(8, 2, 4).double().eval(), torch.randn(12, 8, dtype=torch.float64)  # no zeros in front
    with torch.no_grad():
        layer.res_conv.weight.zero_()
        layer.to_qkv.weight[:16] *= 4
        layer.to_qkv.weight[20:24] = layer.to_qkv.weight[16:20]
        layer.to_out[0].weight.copy_(torch.eye(8))
        layer.to_out[0].bias.zero_()
        values = u @ layer.to_qkv.weight[16:20].T
        for index in (0, 3, 11):
            assert difference(layer(u)[index].view(2, 4).mean(dim=0), layer.row(u, index) @ values) < 1e-12


@pytest.mark.parametrize("rows", [1, 5])
def test_only_the_first_rows_are_those_of_all(rows: int) -> None:
    torch.manual_seed(0)
    layer = NystromAttention(8, 2, 4, kernel=5).double().eval()
    u = torch.randn(30, 8, dtype=torch.float64)
    assert difference(layer(u, rows), layer(u)[:rows]) < 1e-12


def test_three_convolutions_are_one() -> None:
    torch.manual_seed(0)
    ppeg, h = PPEG(6).double(), torch.randn(1 + 16, 6, dtype=torch.float64)
    square = h[1:].T.reshape(1, 6, 4, 4)
    expected = square + ppeg.proj(square) + ppeg.proj1(square) + ppeg.proj2(square)
    got = ppeg(h, 4)
    assert torch.equal(got[0], h[0])
    assert difference(got[1:], expected.flatten(2)[0].T) < 1e-12


def test_pseudo_inverse_stays_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the iteration would lose all digits: the inverse must be that of float64, to float32's rounding."""
    torch.manual_seed(0)
    layer, u, errors = NystromAttention(16, 2, 8).eval(), torch.randn(24, 16), []

    def watched(a: Tensor, scale: Tensor, iterations: int) -> Tensor:
        found = iterative_pinv(a, scale, iterations)
        exact = iterative_pinv(a.double(), scale.double(), iterations)
        errors.append(difference(found, exact) / float(exact.abs().max()))
        return found

    monkeypatch.setattr(nystrom, "iterative_pinv", watched)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(u)
    assert half.dtype == torch.bfloat16
    assert len(errors) == 1 and errors[0] < 1e-4
    with torch.no_grad():
        exact = layer(u)
    assert difference(half, exact) < 0.02 * float(exact.abs().max())


def saved_bytes(model: torch.nn.Module, x: Tensor) -> int:
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(x)
    return sum(sizes.values())


def test_memory_grows_linearly() -> None:
    model = small_model("transmil")
    small, large = (saved_bytes(model, features(n, D)) for n in (1000, 4000))
    assert large < 4.2 * small


def test_checkpointing_changes_no_number_and_keeps_less() -> None:
    model, x = small_model("transmil", dropout=0.2).train(), features(200, D)
    found = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        model.zero_grad()
        torch.manual_seed(0)
        output = model(x)
        model.loss(output, torch.tensor([1])).backward()
        found.append((output.logits.detach(), [p.grad.clone() for p in model.parameters()], saved_bytes(model, x)))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert found[1][2] < 0.7 * found[0][2]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"num_heads=3.*width=32"):
        qgmil.create_model("transmil", in_dim=D, num_classes=2, width=32, num_heads=3)


def test_head_convolution_is_a_depthwise_one() -> None:
    layer = NystromAttention(8, 2, 4, kernel=3).double()
    v = torch.randn(1, 2, 9, 4, dtype=torch.float64)
    weight = layer.res_conv.weight[:, 0, :, 0]
    padded = F.pad(v, (0, 0, 1, 1))
    expected = sum(weight[None, :, t, None, None] * padded[:, :, t : t + 9] for t in range(3))
    assert difference(layer.res_conv(v), expected) < 1e-12
    with pytest.raises(ConfigError, match="odd"):
        NystromAttention(8, 2, 4, kernel=4)
