"""RRT-MIL beyond the contract: the grid, EPEG without score maps, zeros, bags of any size and memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small import D, difference, features, small_model
from torch import Tensor

import qgmil
from qgmil.errors import ConfigError
from qgmil.layers.regions import CrossRegionAttention, Grid, SequenceAttention


@given(n=st.integers(1, 3000), region_num=st.integers(1, 12), least=st.integers(1, 600))
def test_the_grid_holds_the_bag_and_divides(n: int, region_num: int, least: int) -> None:
    grid = Grid.of(n, region_num, least)
    assert grid.side**2 >= n
    assert grid.side % grid.region == 0
    if n < least:
        assert grid.region == grid.side and grid.side % 2 == 0
        assert grid.side == 2 or (grid.side - 2) ** 2 < n
    else:
        assert grid.side == region_num * grid.region
        assert (grid.side - region_num) ** 2 < n
    x = torch.arange(1.0, n + 1)[:, None]
    regions = grid.split(x)
    assert regions.shape == ((grid.side // grid.region) ** 2, grid.region**2, 1)
    assert float(regions.sum()) == float(x.sum())
    assert torch.equal(grid.join(regions, n), x)


def test_regions_are_squares_in_reading_order() -> None:
    regions = Grid.of(16, 2, 1).split(torch.arange(16.0)[:, None])[..., 0]
    assert regions.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_epeg_on_the_queries_is_epeg_on_the_scores() -> None:
    torch.manual_seed(0)
    layer, x = SequenceAttention(8, 2, kernel=5).double().eval(), torch.randn(3, 7, 8, dtype=torch.float64)
    q, k, v = layer.qkv(x).view(3, 7, 3, 2, 4).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(2, 3) / 2
    scores = scores + F.conv2d(scores, layer.epeg.weight, torch.tensor([7.0, -3.0]).double(), padding=(2, 0), groups=2)
    out = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)  # the bias changes nothing
    assert difference(layer(x), layer.proj(out)) < 1e-12


def test_single_positions_get_nothing_from_cross_attention() -> None:
    """Why small bags are one region: with a region for each instance, minmax leaves exact zeros."""
    torch.manual_seed(0)
    layer, x = CrossRegionAttention(8, 2, 3, 0.0).eval(), torch.randn(64, 8)
    assert not layer(x, Grid.of(64, 8, 1)).any()
    assert layer(x, Grid.of(64, 8, 256)).abs().min() > 0


def test_released_padding_rule_is_an_option() -> None:
    model, x = small_model("rrt"), features(64, D)
    assert model.min_instances == 256
    released = small_model("rrt", min_instances=1)
    assert difference(model(x).logits, released(x).logits) > 1e-3
    x = features(300, D)
    assert torch.equal(model(x).logits, released(x).logits)


def test_order_matters() -> None:
    model, x = small_model("rrt").double(), features(9, D, dtype=torch.float64)
    assert difference(model(x).logits, model(x.flip(0)).logits) > 1e-4


def test_without_re_embedding_it_is_attention_pooling() -> None:
    """With silent projections both layers add nothing."""
    model, x = small_model("rrt").double(), features(30, D, dtype=torch.float64)
    with torch.no_grad():
        for layer in model.layers:
            layer.attn.attn.proj[0].weight.zero_()
            layer.attn.attn.proj[0].bias.zero_()
    z = model.norm(model.embed(x))
    a = model.attention_weights(model.attention_V(z))[:, 0].softmax(dim=0)
    output = model(x, return_attention=True)
    assert difference(output.attention, a) < 1e-12
    assert difference(output.logits[0], model.head(a @ z)) < 1e-12


def test_memory_grows_linearly_though_regions_grow() -> None:
    model = small_model("rrt", region_num=2)

    def saved(n: int) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            model(features(n, D))
        return sum(sizes.values())

    assert saved(4096) < 4.2 * saved(1024)


def test_checkpointing_changes_no_number() -> None:
    model, x = small_model("rrt", dropout=0.2).train(), features(2, 30, D)
    found = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        model.zero_grad()
        torch.manual_seed(0)
        output = model(x)
        model.loss(output, torch.tensor([1, 0])).backward()
        found.append([output.logits.detach(), *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, r"num_heads=3.*width=32"),
        ({"epeg_kernel": 4}, "odd.*4"),
        ({"region_num": 0}, "region_num"),
        ({"min_instances": 0}, "min_instances"),
        ({"shortcut": 1}, "shortcut"),
        ({"projection_dropout": 1.0}, "projection_dropout"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        qgmil.create_model("rrt", in_dim=D, num_classes=2, **{"width": 32, **options})
