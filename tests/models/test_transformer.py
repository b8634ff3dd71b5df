"""The plain transformer is PyTorch's encoder, over packed bags."""

from __future__ import annotations

import pytest
import torch
from small import D, difference, features, small_model
from torch import Tensor, nn

import qgmil
from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.models.transformer import TransformerMIL


def torch_encoder(model: TransformerMIL) -> nn.TransformerEncoder:
    """`torch.nn.TransformerEncoder` with the model's weights."""
    width, heads = model.embed[0].out_features, model.blocks[0].self_attn.num_heads
    hidden = model.blocks[0].mlp[0].out_features
    layer = nn.TransformerEncoderLayer(width, heads, hidden, activation="gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, len(model.blocks), nn.LayerNorm(width), enable_nested_tensor=False)
    state = {f"norm.{key}": value for key, value in model.norm.state_dict().items()}
    renamed = {"mlp.0.": "linear1.", "mlp.3.": "linear2.", "self_attn.o_proj.": "self_attn.out_proj."}
    for i, block in enumerate(model.blocks):
        own = block.state_dict()
        for kind in ("weight", "bias"):
            state[f"layers.{i}.self_attn.in_proj_{kind}"] = torch.cat(
                [own.pop(f"self_attn.{part}_proj.{kind}") for part in "qkv"]
            )
        for key, value in own.items():
            old = next((prefix for prefix in renamed if key.startswith(prefix)), "")
            state[f"layers.{i}.{renamed.get(old, '') + key.removeprefix(old)}"] = value
    encoder.load_state_dict(state, strict=True)
    return encoder.to(model.head.weight.dtype).eval()


def with_token(model: TransformerMIL, x: Tensor) -> Tensor:
    return torch.cat([model.cls_token[0], model.embed(x)])[None]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_equals_torch_encoder(dtype: torch.dtype, tolerance: float, num_layers: int) -> None:
    model = small_model("transformer", num_layers=num_layers).to(dtype)
    encoder, sizes = torch_encoder(model), (1, 7, 30)
    x = features(sum(sizes), D, dtype=dtype).requires_grad_()
    output = model(PackedBags(x, sizes))
    expected = torch.cat([encoder(with_token(model, part))[:, 0] for part in x.split(sizes)])
    assert difference(output.embedding, expected) <= tolerance * max(1.0, float(expected.detach().abs().max()))
    assert difference(output.logits, model.head(expected)) <= tolerance * 10
    weights = torch.randn(3, 32, generator=torch.Generator().manual_seed(1), dtype=dtype)
    ours, theirs = (torch.autograd.grad((weights * e).sum(), x)[0] for e in (output.embedding, expected))
    assert difference(ours, theirs) <= tolerance * 10 * max(1.0, float(theirs.abs().max()))


def test_the_default_sizes_equal_torch_encoder() -> None:
    model = qgmil.create_model("transformer", in_dim=D, num_classes=2).eval()
    x = features(20, D)
    expected = model.head(torch_encoder(model)(with_token(model, x))[:, 0])
    assert difference(model(x).logits, expected) <= 1e-5
    assert (model.blocks[0].self_attn.head_dim, model.blocks[0].mlp[0].out_features, len(model.blocks)) == (64, 2048, 2)


def test_attention_is_the_tokens_row_of_the_last_block() -> None:
    """PyTorch's own weights of the last layer: row 0, mean over heads, without the token itself."""
    model = small_model("transformer").double()
    encoder, sizes = torch_encoder(model), (1, 6, 11)
    x = features(sum(sizes), D, dtype=torch.float64)
    attention = model(PackedBags(x, sizes), return_attention=True).attention
    for part, ours in zip(x.split(sizes), attention.split(sizes), strict=True):
        h = with_token(model, part)
        for layer in encoder.layers[:-1]:
            h = layer(h)
        u = encoder.layers[-1].norm1(h)
        weights = encoder.layers[-1].self_attn(u, u, u, need_weights=True)[1][0, 0, 1:]  # mean over heads
        assert difference(ours, weights / weights.sum()) < 1e-10


def test_a_token_that_looks_at_itself_alone_leaves_finite_attention() -> None:
    model = small_model("transformer")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                p.mul_(100)
    attention = model(features(40, D), return_attention=True).attention
    assert bool(attention.isfinite().all())
    assert abs(float(attention.detach().sum()) - 1) < 1e-5


def test_attention_pooling_is_qgmils() -> None:
    model, sizes = small_model("transformer", pooling="attention").double(), (4, 9)
    x = features(13, D, dtype=torch.float64)
    output = model(PackedBags(x, sizes), return_attention=True)
    assert model.cls_token is None
    encoder = torch_encoder(model)
    for b, (part, ours) in enumerate(zip(x.split(sizes), output.attention.split(sizes), strict=True)):
        z = model.pooling.norm(encoder(model.embed(part)[None])[0])
        scores = model.pooling.attention_weights(model.pooling.attention_V(z) * model.pooling.attention_U(z))[:, 0]
        a = scores.softmax(dim=0)
        assert difference(ours, a) < 1e-10
        assert difference(output.logits[b], model.head(a @ z)) < 1e-10


def test_every_weight_gets_a_gradient_with_attention_pooling() -> None:
    model = small_model("transformer", pooling="attention")
    model(features(3, 9, D)).logits.square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(key.endswith(model.without_gradient) for key in without)


def test_checkpointing_changes_no_number() -> None:
    model, x = small_model("transformer", dropout=0.2).train(), features(2, 30, D)
    found = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        model.zero_grad()
        torch.manual_seed(0)
        output = model(x)
        model.loss(output, torch.tensor([1, 0])).backward()
        found.append([output.logits.detach(), *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_compiled_parts_agree() -> None:
    model, bags = small_model("transformer"), [features(n, D) for n in (2, 9, 30)]
    with torch.no_grad():
        plain = [model(x).logits for x in bags]
        torch._dynamo.reset()
        model.compile_parts(backend="eager")
        again = [model(x).logits for x in bags]
    torch._dynamo.reset()
    assert all(difference(a, b) < 1e-5 for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, r"num_heads=3.*width=32"),
        ({"pooling": "mean"}, "pooling 'mean'"),
        ({"ffn_dim": 0}, "ffn_dim"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        qgmil.create_model("transformer", in_dim=D, num_classes=2, **{"width": 32, **options})
