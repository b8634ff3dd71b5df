"""Streamed figures of the layers against the full maps; rollout against the dense product; memory linear in the bag."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qgmil import create_model
from qgmil.attention.inside import evaluating, has_layers, layer_figures, layers_of, rollout, rows_of_block
from qgmil.bags.bag import Bag
from qgmil.errors import BagError, ConfigError
from qgmil.models.base import Aggregator
from qgmil.models.qgmil import QGMIL

SMALL = {"width": 16, "num_heads": 4, "ffn_dim": 24}
VARIANTS = {
    "headwise": {},
    "elementwise": {"gate": "elementwise"},
    "no gate": {"gate": "none"},
    "grouped": {"num_kv_heads": 2},
    "deep": {"num_layers": 3},
    "token": {"pooling": "cls", "num_layers": 2},
    "mean": {"pooling": "mean"},
}


def make(**options: object) -> QGMIL:
    torch.manual_seed(1)
    model = create_model("qgmil", in_dim=6, num_classes=2, **SMALL, **options)
    assert isinstance(model, QGMIL)
    with torch.no_grad():  # untrained maps are almost uniform: nothing could be told apart
        for block in model.blocks:
            block.self_attn.q_proj.weight.mul_(30)
    return model.eval()


def bag(n: int, seed: int = 0) -> Bag:
    return Bag(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) * 2, bag_id="b")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("entries", [1, 150, 2**20])
def test_figures_equal_those_of_the_full_map(name: str, entries: int) -> None:
    model = make(**VARIANTS[name])
    n = 37
    with torch.inference_mode():
        maps = [layer[0] for layer in model.layer_attention(bag(n))]
    for dense, figures in zip(maps, layer_figures(model, bag(n), entries=entries), strict=True):
        a = dense.attention.double().numpy()  # (H, rows, rows)
        rows = a.shape[1]
        entropy = -(a * np.log(a)).sum(axis=2).mean(axis=1) / math.log(rows)
        np.testing.assert_allclose(figures.row_entropy, entropy, atol=1e-6)
        np.testing.assert_allclose(figures.received, a.mean(axis=1), atol=1e-6)
        np.testing.assert_allclose(figures.sink, rows * a.mean(axis=1).max(axis=1), rtol=1e-5)
        assert figures.token == (name == "token")
        if dense.gate is None:
            assert figures.gate == {}
        else:
            gate = dense.gate.double().numpy().reshape(rows, 4, -1).transpose(1, 0, 2).reshape(4, -1)
            np.testing.assert_allclose(figures.gate["mean"], gate.mean(axis=1), atol=1e-6)
            np.testing.assert_allclose(figures.gate["q50"], np.median(gate, axis=1), atol=1e-6)
            np.testing.assert_allclose(figures.gate["below_0.1"], (gate < 0.1).mean(axis=1))


def test_the_largest_logit_is_that_of_the_scaled_products() -> None:
    model = make()
    (layer,), _ = layers_of(model, bag(20))
    logits = np.einsum("ihd,jhd->hij", layer.q.numpy(), layer.k.numpy()) / math.sqrt(4)
    (figures,) = layer_figures(model, bag(20), entries=40)
    np.testing.assert_allclose(figures.max_logit, logits.max(axis=(1, 2)), rtol=1e-5)


def dense_rollout(model: QGMIL, one: Bag) -> np.ndarray:
    """From the full maps, in float64."""
    with torch.inference_mode():
        maps = [layer[0] for layer in model.layer_attention(one)]
        out = model(one, return_attention=model.has_attention)
    rows = maps[0].attention.shape[1]
    if model.pooling_kind == "cls":
        a = np.eye(rows)[0]
    elif model.pooling_kind == "mean":
        a = np.full(rows, 1 / rows)
    else:
        a = out.attention.double().numpy()
    for layer in reversed(maps):
        mixed = layer.gated.double().numpy().mean(axis=0) + np.eye(rows)
        a = a @ mixed
        a /= a.sum()
    return a[1:] / a[1:].sum() if model.pooling_kind == "cls" else a


@pytest.mark.parametrize("name", VARIANTS)
def test_rollout_equals_the_dense_product(name: str) -> None:
    model = make(**VARIANTS[name])
    found = rollout(model, bag(23), entries=100)
    np.testing.assert_allclose(found, dense_rollout(model, bag(23)), atol=1e-6)
    assert found.sum() == pytest.approx(1)


@given(st.permutations(range(9)))
def test_what_is_found_moves_with_the_instances(order: list[int]) -> None:
    model, one = make(), bag(9)
    moved = one.take(torch.tensor(order))
    np.testing.assert_allclose(rollout(model, moved), rollout(model, one)[order], atol=1e-6)
    (a,), (b,) = layer_figures(model, one), layer_figures(model, moved)
    np.testing.assert_allclose(b.received, a.received[:, order], atol=1e-6)
    np.testing.assert_allclose(b.row_entropy, a.row_entropy, atol=1e-6)


def test_the_plain_transformer_has_layers_and_a_token() -> None:
    torch.manual_seed(0)
    model = create_model("transformer", in_dim=6, num_classes=2, width=16, num_heads=2, ffn_dim=16).eval()
    figures = layer_figures(model, bag(11))
    assert [f.received.shape for f in figures] == [(2, 12), (2, 12)]
    assert all(f.token for f in figures)
    assert all(f.gate == {} for f in figures)
    assert rollout(model, bag(11)).shape == (11,)


def test_a_bag_of_one_is_uniform() -> None:
    (figures,) = layer_figures(make(), bag(1))
    assert figures.row_entropy.tolist() == [1.0] * 4
    assert figures.sink.tolist() == [1.0] * 4
    assert rollout(make(), bag(1)).tolist() == [1.0]


def test_rows_for_tables_are_plain_numbers() -> None:
    rows = layer_figures(make(num_layers=2), bag(8))[1].head_rows(1)
    assert [(r["layer"], r["head"]) for r in rows] == [(1, h) for h in range(4)]
    assert all(isinstance(v, float) for r in rows for k, v in r.items() if k not in ("layer", "head"))
    assert 0 < rows[0]["gate_mean"] < 1


@pytest.mark.parametrize("name", ["abmil_gated", "mean", "transmil"])
def test_aggregators_without_layers_are_named(name: str) -> None:
    model = create_model(name, in_dim=6, num_classes=2).eval()
    assert not has_layers(model)
    with pytest.raises(ConfigError, match=f"{name} has no self-attention"):
        layer_figures(model, bag(5))


def test_max_pooling_has_no_rollout_and_clusters_have_no_map() -> None:
    with pytest.raises(ConfigError, match="has no rollout"):
        rollout(make(pooling="max"), bag(5))
    with pytest.raises(BagError, match=r"bag 'b' has 9 instances, and the model attends to 4 clusters"):
        layer_figures(make(key_clusters=4), bag(9))


def test_the_model_is_left_as_it_was() -> None:
    model = make().train()
    layer_figures(model, bag(5))
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_every_part_keeps_its_own_mode() -> None:
    model = make().train()
    model.classifier.eval()  # as a frozen head has it
    before = [module.training for module in model.modules()]
    layer_figures(model, bag(5))
    assert [module.training for module in model.modules()] == before


def test_a_model_that_was_moved_in_inference_mode_can_still_be_trained() -> None:
    """Any move of weights goes the same way in torch; one of type needs no second device."""
    model = make()
    with torch.inference_mode(), evaluating(model, torch.float64):  # type: ignore[arg-type]
        assert next(model.parameters()).dtype == torch.float64
    model(bag(5)).logits.sum().backward()  # still in float64: another conversion would hide what the move left
    assert all(p.grad is not None for p in model.classifier.parameters())


def test_a_device_that_is_not_there_leaves_the_mode() -> None:
    model = make().train()
    with pytest.raises(RuntimeError):
        layer_figures(model, bag(5), device="no_such_device")
    assert model.training


def test_blocks_are_linear_in_the_bag_and_not_too_thin() -> None:
    assert rows_of_block(1_000) == 1048
    assert rows_of_block(100_000) == rows_of_block(1_000_000) == 128
    assert rows_of_block(100_000, entries=300_000) == 3
    assert rows_of_block(100_000, entries=1) == 1


class Largest(TorchDispatchMode):
    """The most numbers in any one result."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else [out]:
            if isinstance(item, Tensor):
                Largest.most = max(Largest.most, item.numel())
        return out


@pytest.mark.parametrize("what", [layer_figures, rollout])
def test_nothing_grows_with_the_square_of_the_bag(what: object) -> None:
    model: Aggregator = make()
    most = []
    for n in (500, 2000):
        Largest.most = 0
        with Largest():
            what(model, bag(n), entries=4 * 2000)  # type: ignore[operator]
        most.append(Largest.most)
    assert most[1] <= 4.1 * most[0]
    assert most[1] < 2000 * 2000 / 20
