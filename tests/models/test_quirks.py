"""One test for each row of the table of the release's quirks: what it does, and what ours does instead."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from small import C, D, difference, features, small_model

import qgmil
from qgmil.bags.bag import Bag, PackedBags
from qgmil.errors import BagError, ConfigError
from qgmil.testing.scale import LargestTensor

POOLINGS = ("attention", "mean", "max", "cls")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_kv_heads": 2},
        {"gate": "elementwise"},
        {"gate": "none"},
        {"pooling": "cls"},
        {"norm": "layer"},
        {"attention_dropout": 0.1},
        {"head_dim": 5},
        {"num_layers": 2, "dropout": 0.25},
    ],
    ids=str,
)
def test_memory_is_linear(options: dict[str, Any]) -> None:
    """Row 1: attention is always the full N x N map -> linear memory; the map only on explicit request."""
    n = 2_000
    model = small_model(**options).train()
    x = features(n, D).requires_grad_()
    with LargestTensor() as largest:
        model(x, return_attention=True).logits.sum().backward()
    assert largest.elements < n * n // 4, largest.culprit
    with LargestTensor() as full:
        small_model(**options).layer_attention(x.detach()[:500])
    assert full.elements >= 500 * 500  # the instrument sees a map where there is one


def test_peak_memory_of_a_large_slide() -> None:
    """Row 1, in bytes: 20,000 instances and 8 heads would need 12.8 GB for the map alone."""
    code = """
        import resource, sys
        import torch, qgmil
        def peak():  # bytes; VmHWM because ru_maxrss of a child can start from its parent's
            try:
                line = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
                return int(line.split()[1]) * 1024
            except OSError:
                return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        torch.set_num_threads(1)
        model = qgmil.create_model("qgmil", in_dim=32, num_classes=2, width=64, num_heads=8, ffn_dim=128).eval()
        x = torch.randn(20_000, 32)
        with torch.no_grad():
            model(x[:100])
            before = peak()
            assert model(x).logits.isfinite().all()
        print(peak() - before)
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    grown = int(subprocess.run(run, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert grown < 200e6, f"{grown / 1e6:.0f} MB"  # a single head's map is 1,600 MB


def test_the_full_map_is_explicit_and_small() -> None:
    """Row 1: asking for the map of a large bag is an error that names it, unless the limit is raised."""
    model = small_model()
    big = Bag(features(65, D), bag_id="slide-7")
    with pytest.raises(BagError, match="slide-7"):
        model.layer_attention(big, max_instances=64)
    assert model.layer_attention(big, max_instances=65)[0][0].attention.shape == (4, 65, 65)
    with pytest.raises(BagError, match="4097"):
        model.layer_attention(features(4097, D))


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_light_keeps_its_released_sizes() -> None:
    """Row 2: `light` has 4 heads of 128 from the default width 512, and a feed-forward of 2048 -> exactly kept."""
    light = shapes(qgmil.create_model("qgmil_light", in_dim=1024, num_classes=1))
    assert light["layers.0.self_attn.k_proj.weight"] == (4 * 128, 256)
    assert light["layers.0.self_attn.q_proj.weight"] == (4 * 128 + 4, 256)
    assert light["layers.0.self_attn.q_norm.weight"] == (128,)
    assert light["layers.0.mlp.gate_proj.weight"] == (2048, 256)


@pytest.mark.parametrize(
    ("name", "width", "head_dim"), [("qgmil_light", 128, 32), ("qgmil_light", 512, 128), ("qgmil", 64, 8)]
)
def test_a_given_width_derives_the_head_and_says_so(
    name: str, width: int, head_dim: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Row 2: a width given by the user derives head_dim = width / heads, in the log."""
    with caplog.at_level(logging.INFO, logger="qgmil"):
        model = qgmil.create_model(name, in_dim=D, num_classes=C, width=width)
    assert shapes(model)["layers.0.self_attn.q_norm.weight"] == (head_dim,)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("qgmil")]
    assert any("head_dim" in line and str(width) in line and str(head_dim) in line for line in said), said


def test_a_given_head_dim_is_kept_and_an_impossible_one_is_refused() -> None:
    """Row 2: head_dim is what the user says; where it must be derived, the heads must divide the width."""
    model = qgmil.create_model("qgmil", in_dim=D, num_classes=C, width=64, head_dim=24)
    assert shapes(model)["layers.0.self_attn.q_norm.weight"] == (24,)
    with pytest.raises(ConfigError, match=r"width.*num_heads|num_heads.*width"):
        qgmil.create_model("qgmil", in_dim=D, num_classes=C, width=65)


def test_light_is_256_wide() -> None:
    """Row 3: the factory's default embed_dim=512 overrides `light`'s 256 -> 256 wide, 512 only if asked."""
    light = qgmil.create_model("qgmil_light", in_dim=D, num_classes=C)
    assert light(features(3, D)).embedding.shape == (1, 256)
    wide = qgmil.create_model("qgmil_light", in_dim=D, num_classes=C, width=512)
    assert wide(features(3, D)).embedding.shape == (1, 512)


def test_layernorm_has_a_true_one_factor_variant() -> None:
    """Row 4: the `layernorm` preset also drops QK norm -> kept; norm="layer" alone changes only the norm."""
    preset = shapes(small_model("qgmil_layernorm"))
    assert "layers.0.input_layernorm.bias" in preset
    assert not any("q_norm" in name or "k_norm" in name for name in preset)
    for qk_norm, bias in ((None, True), ("layer", True), ("rms", False)):
        one_factor = shapes(small_model(norm="layer", qk_norm=qk_norm))
        assert one_factor["layers.0.self_attn.q_norm.weight"] == (8,)
        assert ("layers.0.self_attn.q_norm.bias" in one_factor) == bias
        assert ("layers.0.self_attn.k_norm.bias" in one_factor) == bias
    assert shapes(small_model(norm="layer", qk_norm="none")) == preset


@pytest.mark.parametrize("sizes", [{}, {"width": 64, "ffn_dim": 100}, {"width": 256, "num_layers": 3}], ids=str)
def test_plain_mlp_matches_parameters_exactly(sizes: dict[str, int]) -> None:
    """Row 5: no variant without SwiGLU -> a plain two-matrix MLP with exactly as many parameters."""
    swiglu = qgmil.create_model("qgmil", in_dim=D, num_classes=C, **sizes)
    plain = qgmil.create_model("qgmil", in_dim=D, num_classes=C, mlp="plain", **sizes)
    assert plain.num_parameters() == swiglu.num_parameters()
    mine = shapes(plain)
    assert not any("gate_proj" in name for name in mine)
    ffn_dim = sizes.get("ffn_dim", 2048)
    assert mine["layers.0.mlp.up_proj.weight"][0] * 2 == 3 * ffn_dim
    other = {k: v for k, v in shapes(swiglu).items() if ".mlp." not in k}
    assert {k: v for k, v in mine.items() if ".mlp." not in k} == other


def test_an_unmatchable_plain_mlp_is_refused() -> None:
    """Row 5: with an odd ffn_dim there is no exact match; it is said, not rounded."""
    with pytest.raises(ConfigError, match="7"):
        small_model(mlp="plain", ffn_dim=7)


def test_plain_mlp_cannot_be_exported_silently() -> None:
    """Row 5: the release cannot hold what it does not have."""
    for options in ({"mlp": "plain"}, {"norm": "layer", "qk_norm": "rms"}):
        with pytest.raises(ConfigError):
            small_model(**options).to_released()


@pytest.mark.parametrize("name", qgmil.list_models())
def test_any_mask_type_is_accepted(name: str) -> None:
    """Row 6: a bool mask raises -> accepted, with the same result as int and float."""
    model, x = small_model(name), features(2, 6, D)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0]])
    expected = model(x, mask.bool()).logits
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.float32, torch.float64, torch.float16):
        assert torch.equal(model(x, mask.to(dtype)).logits, expected), dtype


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_honours_the_mask(pooling: str) -> None:
    """Row 7: max, cls and misspelt pooling ignore the mask -> honoured everywhere."""
    model = small_model(pooling=pooling).double()
    x = features(2, 9, D, dtype=torch.float64)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 4:] = False
    padded = x.clone()
    padded[1, 4:] = 1e3
    alone = model(x[1, :4]).logits[0]
    assert difference(model(padded, mask).logits[1], alone) < 1e-10
    assert difference(model(padded).logits[1], alone) > 1e-3  # without the mask it does matter


@pytest.mark.parametrize(
    ("option", "wrong", "valid"),
    [
        ("pooling", "atention", POOLINGS),
        ("activation", "sillu", ("silu", "gelu", "relu")),
        ("gate", "head", ("headwise", "elementwise", "none")),
        ("norm", "rmsnorm", ("rms", "layer")),
        ("qk_norm", "batch", ("rms", "layer", "none")),
        ("mlp", "glu", ("swiglu", "plain")),
    ],
)
def test_unknown_choices_are_errors_that_list_the_valid_ones(option: str, wrong: str, valid: tuple[str, ...]) -> None:
    """Rows 7 and 9: misspelt pooling means mean and a misspelt activation SiLU -> errors with the choices."""
    with pytest.raises(ConfigError) as error:
        small_model(**{option: wrong})
    assert wrong in str(error.value)
    assert all(choice in str(error.value) for choice in valid)


@pytest.mark.parametrize("name", qgmil.list_models())
def test_padding_is_never_read(name: str) -> None:
    """Row 8: NaN in padding reaches the logits -> padding is never read, forward or backward."""
    model = small_model(name)
    x = features(2, 6, D)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 0, 0]]).bool()
    expected = model(x, mask)
    for junk in (float("nan"), float("inf"), 3e38):
        dirty = x.masked_fill(~mask[..., None], junk).requires_grad_()
        output = model(dirty, mask, return_attention=True)
        assert torch.equal(output.logits, expected.logits)
        assert torch.equal(output.embedding, expected.embedding)
        model.zero_grad()
        output.logits.square().sum().backward()
        assert (dirty.grad is None) == (name in ("bag_size", "majority"))  # they see no feature
        if dirty.grad is not None:
            assert bool(dirty.grad.isfinite().all())
            assert not dirty.grad[~mask].any()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        if output.attention is not None:
            assert bool(output.attention.isfinite().all())
            assert not output.attention[~mask].any()


@pytest.mark.parametrize("name", qgmil.list_models())
def test_an_empty_bag_is_an_error_that_names_it(name: str) -> None:
    """Row 8: an all-masked bag gives NaN -> an error with the bag's name or place."""
    model = small_model(name)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(BagError, match=r"bag.*1"):
        model(features(3, 4, D), mask)
    with pytest.raises(BagError, match="smear-9"):
        model(PackedBags(features(4, D), (4, 0), bag_ids=("smear-8", "smear-9")))
    with pytest.raises(BagError, match="empty"):
        model(features(0, D))
    with pytest.raises(BagError, match="empty"):
        model(features(2, 0, D))
    with pytest.raises(BagError):
        model([])
    with pytest.raises(BagError, match="empty"):
        model(torch.nested.nested_tensor([features(2, D), features(0, D)], layout=torch.jagged))


@pytest.mark.parametrize(
    "option",
    [
        *("mlp_ratio", "rope_theta", "rope_scaling", "use_sliding_window", "sliding_window", "max_window_layers"),
        *("use_positional_encoding", "max_position_embeddings", "_attn_implementation", "use_cls_token"),
        *("embed_dim", "hidden_size", "num_attention_heads", "use_flash", "drop_out"),
    ],
)
def test_dead_and_unknown_options_are_refused(option: str) -> None:
    """Row 9: `mlp_ratio`, RoPE, sliding window and sdpa switches do nothing -> they do not exist."""
    with pytest.raises(ConfigError, match=option) as error:
        small_model(**{option: 1})
    assert "num_heads" in str(error.value) and "pooling" in str(error.value)  # the options that exist


def test_released_configurations_that_lie_are_refused() -> None:
    """Rows 7 and 9, on import: cls pooling without a token, a token nobody pools, fields nobody knows."""
    state, config = small_model().to_released(), small_model().released_config()
    for wrong in ({"pooling": "cls"}, {"use_cls_token": True}, {"pooling": "typo"}, {"hidden_act": "typo"}, {"x": 1}):
        with pytest.raises(ConfigError):
            qgmil.load_released("qgmil", state, {**config, **wrong})
    for dead in ({"mlp_ratio": 2.0}, {"rope_theta": 1.0}):
        qgmil.load_released("qgmil", state, {**config, **dead})


@pytest.mark.parametrize("gate", ["headwise", "elementwise", "none"])
@pytest.mark.parametrize("pooling", ["attention", "cls"])
def test_layer_attention_reports_the_gate(gate: str, pooling: str) -> None:
    """Row 10: returned layer attention is before the gate -> both are reported: attention, and what passes."""
    model = small_model(gate=gate, pooling=pooling, num_layers=2, num_kv_heads=2).double()
    x = features(2, 7, D, dtype=torch.float64)
    mask = torch.tensor([[1] * 7, [1, 0, 1, 1, 0, 0, 1]])
    extra = int(pooling == "cls")
    layers = model.layer_attention(x, mask)
    assert len(layers) == 2
    for layer in layers:
        assert len(layer) == 2
        for bag, n in zip(layer, (7 + extra, 4 + extra), strict=True):
            assert bag.attention.shape == bag.gated.shape == (4, n, n)
            assert difference(bag.attention.sum(-1), torch.ones(4, n)) < 1e-12
            if gate == "none":
                assert bag.gate is None
                assert torch.equal(bag.gated, bag.attention)
                continue
            assert bag.gate.shape == ((n, 4) if gate == "headwise" else (n, 4, 8))
            assert bool(((bag.gate > 0) & (bag.gate < 1)).all())
            opened = bag.gate if gate == "headwise" else bag.gate.mean(-1)
            assert difference(bag.gated.sum(-1), opened.T) < 1e-12
            assert bool((bag.gated < bag.attention).all())


def test_a_closed_gate_lets_nothing_through() -> None:
    """Row 10: the map is the same with a closed gate, what passes is not."""
    model = small_model(bias=True).double()
    x = features(5, D, dtype=torch.float64)
    before = model.layer_attention(x)[0][0]
    with torch.no_grad():  # with a key/value head for each head, its rows are 8 of query and then 1 of gate
        model.get_parameter("layers.0.self_attn.q_proj.bias").view(4, 9)[:, 8] = -100.0
    after = model.layer_attention(x)[0][0]
    assert difference(after.attention, before.attention) < 1e-12
    assert float(after.gated.detach().max()) < 1e-20 < float(before.gated.detach().max())


def test_float64_stays_float64() -> None:
    """Row 11: float32 forced inside norm and softmax -> at least float32: gradcheck in float64 passes."""
    model = small_model(width=8, num_heads=2, ffn_dim=8).double()
    x = features(4, D, dtype=torch.float64).requires_grad_()
    output = model(x, return_attention=True)
    assert output.logits.dtype == output.attention.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda v: model(v).logits, (x,))
