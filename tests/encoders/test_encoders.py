"""Encoders: the one in the wheel, ONNX files, folders of transformers, DinoBloom's checkpoints; and every refusal."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from qgmil.encoders.base import HALF, EncoderError, EncoderInfo, pooled
from qgmil.encoders.dinobloom import converted, from_checkpoint
from qgmil.encoders.lite0 import load_trainable
from qgmil.encoders.load import load_encoder
from qgmil.encoders.registry import DEFAULT, ENCODERS, find_encoder, lacking
from qgmil.errors import ConfigError, ReadError


def pictures(count: int = 3, size: int = 224, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    grown = [Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC) for c in coarse]
    return np.stack([np.asarray(g) for g in grown])


@pytest.fixture(scope="module")
def lite0() -> object:
    return load_encoder()


def test_the_default_computes_what_the_plain_network_does(lite0) -> None:  # type: ignore[no-untyped-def]
    """Fused and channels-last, against the network as its package builds it, one picture at a time."""
    network, digest = load_trainable(ENCODERS[DEFAULT])
    assert digest == lite0.weights == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    images = pictures()
    with torch.inference_mode():
        for picture, row in zip(images, lite0.encode(images), strict=True):
            x = (torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
            want = network.network.extract_features(x).mean((2, 3))[0]
            assert row.shape == (1280,)
            torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-5)


def test_a_picture_does_not_depend_on_its_batch(lite0) -> None:  # type: ignore[no-untyped-def]
    images = pictures(5)
    alone = torch.cat([lite0.encode(images[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(lite0.encode(images), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_mixed_precision_stays_close(lite0, precision: str) -> None:  # type: ignore[no-untyped-def]
    """On CPUs "auto" is 32 bits; bfloat16 has a hundredth of noise in its features and no more."""
    images = pictures(4)
    mixed = load_encoder(precision=precision, device="cpu").encode(images)
    cosine = torch.nn.functional.cosine_similarity(mixed, lite0.encode(images))
    assert cosine.min() > (0.98 if precision == "bf16" else 0.999999)
    assert (precision == "bf16") == (not torch.equal(mixed, lite0.encode(images)))


def test_pictures_are_resized_as_asked() -> None:
    image = Image.fromarray(pictures(1, 150)[0])
    for name, how in (("bilinear", Image.Resampling.BILINEAR), ("lanczos", Image.Resampling.LANCZOS)):
        encoder = load_encoder(input_size=96, resize=name)
        np.testing.assert_array_equal(encoder.picture(image), np.asarray(image.resize((96, 96), how)))
        square = Image.fromarray(pictures(1, 96)[0])
        np.testing.assert_array_equal(encoder.picture(square), np.asarray(square))


class Tiny(nn.Module):
    """Two convolutions; a map, or its mean."""

    def __init__(self, maps: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2))
        self.maps = maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layers(x)
        return out if self.maps else out.mean((2, 3))


def write_onnx(path: Path, module: Tiny, batch: int | str = "batch", size: int | str = 32) -> Path:
    """The network by hand, as exporting needs more packages."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    first, _, second = module.layers
    weights = {"w1": first.weight, "b1": first.bias, "w2": second.weight, "b2": second.bias}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["h"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "w2", "b2"], ["m"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    if not module.maps:
        nodes.append(helper.make_node("GlobalAveragePool", ["m"], ["g"]))
        nodes.append(helper.make_node("Flatten", ["g"], ["y"]))
    output = helper.make_tensor_value_info("m" if module.maps else "y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])], [output],
        [numpy_helper.from_array(v.detach().numpy(), n) for n, v in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_files_of_fixed_sizes(tmp_path: Path) -> None:
    path = str(write_onnx(tmp_path / "tiny.onnx", Tiny()))
    with pytest.raises(ConfigError, match=r"tiny\.onnx: takes pictures of 32 pixels, not input_size=48"):
        load_encoder(path, input_size=48)
    assert load_encoder(path, input_size=32).info.input_size == 32
    free = load_encoder(str(write_onnx(tmp_path / "free.onnx", Tiny(), size="edge")), input_size=40)
    assert free.encode(pictures(2, 40)).shape == (2, 16)
    with pytest.raises(EncoderError, match="encoder free: cannot compute"):
        free.encode(pictures(1, 40)[:, :2, :2])  # smaller than its kernels


@pytest.mark.parametrize(("maps", "batch"), [(False, "batch"), (True, "batch"), (False, 1), (False, 2)])
def test_an_onnx_file_gives_what_its_network_gives(tmp_path: Path, maps: bool, batch: int | str) -> None:
    module = Tiny(maps)
    encoder = load_encoder(str(write_onnx(tmp_path / "tiny.onnx", module, batch)))
    assert (encoder.info.name, encoder.info.input_size) == ("tiny", 32)
    images = pictures(3, 32)
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(encoder.info.mean).view(1, 3, 1, 1)) / torch.tensor(encoder.info.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        want = module(x)
    torch.testing.assert_close(encoder.encode(images), want.mean((2, 3)) if maps else want, rtol=1e-4, atol=1e-5)


def test_files_that_are_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ReadError, match=r"bad\.onnx: cannot be read as an ONNX model"):
        load_encoder(str(tmp_path / "bad.onnx"))
    with pytest.raises(ConfigError, match=r"gone\.onnx: no such file; name the ONNX file"):
        load_encoder(str(tmp_path / "gone.onnx"))


def dinov2(width: int = 64, layers: int = 2, swiglu: bool = False):  # type: ignore[no-untyped-def]
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, image_size=56, patch_size=14,
            use_swiglu_ffn=swiglu,
        )
    ).eval()  # fmt: skip
    for parameter in model.parameters():  # nothing at its neutral value, so that a swap shows
        nn.init.normal_(parameter, std=0.2)
    return model


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    model = dinov2()
    model.save_pretrained(tmp_path / "mine")
    encoder = load_encoder(f"hf:{tmp_path / 'mine'}", input_size=56)
    images = pictures(2, 56)
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(encoder.info.mean).view(1, 3, 1, 1)) / torch.tensor(encoder.info.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        want = model(pixel_values=x).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.encode(images), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=r"file\.pth: transformers wants the folder"):
        (tmp_path / "file.pth").write_bytes(b"x")
        load_encoder("phikon_v2", weights=tmp_path / "file.pth")


def test_a_folder_says_how_it_wants_its_pictures(tmp_path: Path) -> None:
    dinov2().save_pretrained(tmp_path / "mine")
    said = {"image_mean": [0.5, 0.6, 0.7], "image_std": [0.1, 0.2, 0.3], "size": {"shortest_edge": 64}}
    said |= {"crop_size": {"height": 56, "width": 56}, "image_processor_type": "BitImageProcessor"}
    (tmp_path / "mine" / "preprocessor_config.json").write_text(json.dumps(said))
    info = load_encoder(f"hf:{tmp_path / 'mine'}").info
    assert (info.mean, info.std, info.input_size) == ((0.5, 0.6, 0.7), (0.1, 0.2, 0.3), 56)


class OriginalBlock(nn.Module):
    """A block under DINOv2's own names, written from the paper's equations: the reference for the conversion."""

    def __init__(self, width: int, hidden: int, swiglu: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        names = (
            {"w12": (width, 2 * hidden), "w3": (hidden, width)}
            if swiglu
            else {"fc1": (width, hidden), "fc2": (hidden, width)}
        )
        self.mlp = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in names.items()})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": nn.Parameter(torch.ones(width))}) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.attn["qkv"](self.norm1(x)).view(b, n, 3, c // 64, 64).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / 8).softmax(-1)
        x = x + self.ls1["gamma"] * self.attn["proj"]((weights @ v).transpose(1, 2).reshape(b, n, c))
        h = self.norm2(x)
        if "w12" in self.mlp:
            gate, up = self.mlp["w12"](h).chunk(2, dim=-1)
            return x + self.ls2["gamma"] * self.mlp["w3"](nn.functional.silu(gate) * up)
        return x + self.ls2["gamma"] * self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](h)))


class Original(nn.Module):
    def __init__(self, width: int, layers: int, hidden: int, swiglu: bool, side: int = 4) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 14, 14)})
        self.blocks = nn.ModuleList(OriginalBlock(width, hidden, swiglu) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_dinobloom_checkpoints(tmp_path: Path, swiglu: bool, chunked: bool) -> None:
    """The teacher of a training: heads beside the backbone, blocks by chunk, fused projections."""
    hidden = 344 if swiglu else 512  # what DINOv2 gives a SwiGLU of 4 x 128
    network = Original(128, 3, hidden, swiglu).eval()
    state = network.state_dict()
    if chunked:
        state = {k.replace("blocks.", "blocks.0.", 1) if k.startswith("blocks.") else k: v for k, v in state.items()}
    teacher = {f"backbone.{k}": v for k, v in state.items()}
    teacher |= {"dino_head.mlp.0.weight": torch.zeros(2, 2), "ibot_head.last.weight": torch.zeros(2, 2)}
    torch.save({"teacher": teacher}, tmp_path / "bloom.pth")
    model = from_checkpoint(tmp_path / "bloom.pth").eval()
    x = torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixel_values=x).last_hidden_state[:, 0], network(x), rtol=1e-4, atol=1e-4)


def test_what_is_no_dinobloom_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dinobloom_s: its weights are a file .*DinoBloom-S\.pth.*--weights"):
        load_encoder("dinobloom_s")
    network = Original(128, 1, 512, False)
    torch.save({"teacher": network.state_dict()}, tmp_path / "narrow.pth")
    with pytest.raises(ReadError, match=r"narrow\.pth: is 128 wide, not 384 as dinobloom_s is"):
        load_encoder("dinobloom_s", weights=tmp_path / "narrow.pth")
    with pytest.raises(ReadError, match=r"is no checkpoint of a DINOv2: it has no embeddings\.cls_token"):
        converted(Path("x.pth"), {"head.weight": torch.zeros(2)})
    lacking_one = {k: v for k, v in network.state_dict().items() if k != "blocks.0.norm1.bias"}
    torch.save(lacking_one, tmp_path / "lacking.pth")
    with pytest.raises(
        ReadError, match=r"lacking\.pth: is no checkpoint of a DINOv2: 'encoder\.layer\.0\.norm1\.bias'"
    ):
        from_checkpoint(tmp_path / "lacking.pth")


def test_checkpoints_of_the_default(tmp_path: Path, lite0) -> None:  # type: ignore[no-untyped-def]
    """Weights of one's own are loaded, hashed and used; those of another network are refused by name."""
    network, _ = load_trainable(ENCODERS[DEFAULT])
    state = {k: v.clone() for k, v in network.network.state_dict().items()}
    state |= {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    state["_conv_head.weight"] *= 0.5
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "own.pth")
    own = load_encoder(weights=tmp_path / "own.pth")
    assert own.weights != lite0.weights
    assert not torch.allclose(own.encode(pictures(1)), lite0.encode(pictures(1)))
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(
        ReadError,
        match=r"other\.pth: are not the weights of efficientnet_lite0: it lacks 2\d\d: .*; has besides 1: 'a'",
    ):
        load_encoder(weights=tmp_path / "other.pth")
    torch.save({"a": object()}, tmp_path / "pickle.pth")
    with pytest.raises(ReadError, match=r"pickle\.pth: cannot be read as a checkpoint"):
        load_encoder(weights=tmp_path / "pickle.pth")


def test_names_that_are_none() -> None:
    with pytest.raises(ConfigError, match=r"there is no encoder 'uni2': did you mean uni, uni2_h.*`qgmil encoders`"):
        find_encoder("uni2")
    with pytest.raises(ConfigError, match="resize='area': there are bilinear, bicubic, lanczos"):
        load_encoder(resize="area")
    with pytest.raises(ConfigError, match="input_size=4: an encoder sees at least 8"):
        load_encoder(input_size=4)
    with pytest.raises(ConfigError, match="precision='8'"):
        load_encoder(precision="8")


def test_a_gated_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub answers to strangers, without the hub."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("401 Client Error: Access to model MahmoodLab/UNI is restricted")

    timm = types.ModuleType("timm")
    timm.create_model = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    with pytest.raises(
        ConfigError,
        match=r"encoder uni: cannot be loaded.*401.*request access at https://huggingface\.co/MahmoodLab/UNI.*HF_TOKEN",
    ):
        load_encoder("uni")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module, extra in (
        ("uni", "timm", "timm"),
        ("phikon", "transformers", "transformers"),
        (DEFAULT, "efficientnet_lite_pytorch", "encoder"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=rf"qgmil\[{extra}\]"):
            load_encoder(name)
    with pytest.raises(ConfigError, match="conch needs the package of its owners"):
        load_encoder("conch")


def test_conch_gives_features_before_the_projection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Against a stand-in for its package, which cannot be had here: what is asked of it, and with which arguments."""
    asked = []

    class Stand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def encode_image(self, x: torch.Tensor, proj_contrast: bool, normalize: bool) -> torch.Tensor:
            assert (proj_contrast, normalize) == (False, False)
            return x.mean((2, 3)).repeat(1, 171)[:, :512] * self.scale

    def create(name: str, source: str):  # type: ignore[no-untyped-def]
        asked.append((name, source))
        return Stand(), None

    module = types.ModuleType("conch.open_clip_custom")
    module.create_model_from_pretrained = create  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "conch", types.ModuleType("conch"))
    monkeypatch.setitem(sys.modules, "conch.open_clip_custom", module)
    assert load_encoder("conch").encode(pictures(2, 448)).shape == (2, 512)
    (tmp_path / "c.bin").write_bytes(b"weights")
    load_encoder("conch", weights=tmp_path / "c.bin")
    assert asked == [("conch_ViT-B-16", "hf_hub:MahmoodLab/conch"), ("conch_ViT-B-16", str(tmp_path / "c.bin"))]


def test_pooling_of_tokens() -> None:
    tokens = torch.arange(2 * 6 * 3.0).view(2, 6, 3)
    torch.testing.assert_close(pooled(tokens, "cls", 1), tokens[:, 0])
    both = pooled(tokens, "cls+mean", 3)  # a class token and two registers
    torch.testing.assert_close(both, torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], 1))
    torch.testing.assert_close(pooled(tokens[:, 0], "pooled", 1), tokens[:, 0])


def test_an_encoder_that_gives_something_else_is_refused() -> None:
    from dataclasses import replace

    encoder = load_encoder(input_size=32)
    wide = replace(encoder, info=replace(encoder.info, width=7))
    with pytest.raises(ConfigError, match=r"gave features of shape \(2, 1280\), not \(2, 7\)"):
        wide.encode(pictures(2, 32))
    nan = replace(encoder, run=lambda x: encoder.run(x) * float("nan"))
    with pytest.raises(ConfigError, match="not finite; try --precision 32"):
        nan.encode(pictures(2, 32))


def test_every_encoder_says_what_it_is() -> None:
    for info in ENCODERS.values():
        assert info.licence and info.width and info.input_size % 2 == 0
        assert isinstance(lacking(info), tuple)
        assert isinstance(info, EncoderInfo)
    assert ENCODERS[DEFAULT].mean == HALF
    assert not lacking(ENCODERS[DEFAULT])


timm_here = pytest.mark.skipif(bool(lacking(ENCODERS["uni"])), reason="timm and torchvision are not installed")


@timm_here
def test_models_of_timm_by_name_and_by_checkpoint(tmp_path: Path) -> None:
    import timm

    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0).eval()
    torch.save(network.state_dict(), tmp_path / "own.pth")
    encoder = load_encoder("timm:vit_tiny_patch16_224", weights=tmp_path / "own.pth")
    assert (encoder.info.mean, encoder.info.input_size) == (HALF, 224)  # as timm says of this one
    images = pictures(2)
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(encoder.info.mean).view(1, 3, 1, 1)) / torch.tensor(encoder.info.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.encode(images), network(x), rtol=1e-4, atol=1e-4)


@timm_here
@pytest.mark.parametrize("name", [n for n, i in ENCODERS.items() if i.family == "timm" and "architecture" in i.options])
def test_local_checkpoints_of_the_large_ones(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The architectures of the table exist in timm, with the width and tokens that are said; here with two blocks."""
    import timm

    info = ENCODERS[name]
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda n, **o: make(n, **{**o, "depth": 2}))
    from qgmil.encoders.vit import _layer

    options = {k: _layer(v) for k, v in info.options.items() if k != "architecture"}
    network = timm.create_model(info.options["architecture"], **{"num_classes": 0, **options})
    torch.save(network.state_dict(), tmp_path / "w.pth")
    encoder = load_encoder(name, weights=tmp_path / "w.pth")
    assert encoder.encode(pictures(1)).shape == (1, info.width)
    if info.pooling == "cls+mean":
        assert network.num_prefix_tokens == info.prefix
