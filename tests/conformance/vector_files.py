"""The recorded vectors of the releases: weights, inputs and outputs of one model a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reference_numpy import Spec
from safetensors import safe_open
from torch import Tensor

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
QGMIL = sorted((VECTORS / "qgmil").glob("*.safetensors"))
ABMIL = sorted((VECTORS / "baselines").glob("abmil*.safetensors"))
TOLERANCE = 1e-5  # max absolute difference, float32


@dataclass(frozen=True)
class Vector:
    """One file."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    tensors: dict[str, Tensor]

    @property
    def x(self) -> Tensor:
        return self.tensors["x"]

    @property
    def mask(self) -> Tensor | None:
        return self.tensors.get("mask")

    @property
    def valid(self) -> Tensor:
        """(B, N) bool: all true where the file has no mask."""
        return torch.ones(self.x.shape[:2], dtype=torch.bool) if self.mask is None else self.mask > 0

    @property
    def gate(self) -> str:
        if self.config["headwise_attn_output_gate"]:
            return "headwise"
        return "elementwise" if self.config["elementwise_attn_output_gate"] else "none"

    @property
    def spec(self) -> Spec:
        """The reference's description of this file's model."""
        return Spec(
            num_heads=self.config["num_attention_heads"],
            num_kv_heads=self.config["num_key_value_heads"],
            gate=self.gate,
            activation=self.config["hidden_act"],
            pooling=self.config["pooling"],
            eps=self.config["rms_norm_eps"],
        )

    def layer_attention(self, layer: int, bag: int) -> Tensor:
        """(H, n, n) of the valid rows and columns; row and column 0 are the class token where there is one."""
        valid = self.valid[bag]
        if self.config["use_cls_token"]:
            valid = torch.cat([valid.new_ones(1), valid])
        return self.tensors[f"layer_attention/{layer}"][bag][:, valid][:, :, valid]


def read(path: Path) -> Vector:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        config = json.loads(file.metadata()["config"])
    state = {name.removeprefix("state/"): tensors.pop(name) for name in list(tensors) if name.startswith("state/")}
    return Vector(config, state, tensors)


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Max absolute difference of two tensors of one shape."""
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    return float((a.detach().double() - b.detach().double()).abs().max())
