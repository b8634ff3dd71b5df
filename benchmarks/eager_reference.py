"""QG-MIL as a padded batch with the whole attention map: what the speed figures are measured against.

The arithmetic is that of section 5 of docs/design.md, written down literally: dense bags ``(B, N, D)`` with a mask, a
score for every pair of instances, padding included, softmax over it in float32, every norm and activation as separate
operations. No packing, no fused kernel. It takes a model's weights by name and must give its logits and gradients
(tests/benchmarks/test_eager_reference.py); then its time and memory are those of the same computation done plainly.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qgmil.bags.bag import PackedBags
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput
from qgmil.models.registry import model_options

Weights = dict[str, Tensor]


class EagerQGMIL(nn.Module):
    """A padded copy of a QG-MIL model; its parameters have the same names, with underscores for dots.

    Args:
        model: made by ``create_model("qgmil...")``, with attention pooling, SwiGLU and SiLU; weights are copied.

    Raises:
        NotImplementedError: an option that this reference does not have.
    """

    def __init__(self, model: Aggregator) -> None:
        super().__init__()
        self.options: dict[str, Any] = model_options(model.name) | model.options
        fixed = {"pooling": "attention", "mlp": "swiglu", "activation": "silu", "attention_dropout": 0.0}
        for option, value in fixed.items():
            if self.options[option] != value:
                raise NotImplementedError(f"the eager reference has {option}={value!r} only")
        if model.standardize is not None:
            raise NotImplementedError("the eager reference does not standardise features")
        for name, value in model.state_dict().items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(value.detach().clone()))

    def gradients(self) -> dict[str, Tensor | None]:
        """Gradients by parameter."""
        return {name: weight.grad for name, weight in self.named_parameters()}

    def forward(self, x: Tensor, mask: Tensor) -> BagOutput:
        """Dense bags ``(B, N, D)`` and their mask ``(B, N)`` (True = an instance) -> logits ``(B, C)``."""
        h = self._dropout(self._outer_norm(self._linear(x, "input_proj_0"), "input_proj_1"))
        for i in range(self.options["num_layers"]):
            block = f"layers_{i}"
            h = h + self._dropout(
                self._attention(self._norm(h, f"{block}_input_layernorm"), mask, f"{block}_self_attn")
            )
            h = h + self._dropout(self._swiglu(self._norm(h, f"{block}_post_attention_layernorm"), f"{block}_mlp"))
        z = self._outer_norm(self._outer_norm(h, "final_norm"), "pooling_norm")
        hidden = torch.tanh(self._linear(z, "pooling_attention_V_0"))
        hidden = hidden * torch.sigmoid(self._linear(z, "pooling_attention_U_0"))
        scores = self._linear(hidden, "pooling_attention_weights").squeeze(-1)  # (B, N)
        attention = _wide(scores).masked_fill(~mask, -math.inf).softmax(dim=-1)
        embedding = (attention.unsqueeze(-1) * z).sum(dim=1)
        with torch.autocast(x.device.type, enabled=False):  # the head stays in its own precision, as the model's
            hidden = self._dropout(torch.relu(self._linear(_wide(embedding), "classifier_0")))
            logits = self._linear(hidden, "classifier_3")
        return BagOutput(logits, embedding, attention)

    def _attention(self, u: Tensor, mask: Tensor, name: str) -> Tensor:
        """Gated self-attention ``(B, N, dim)``, with its map ``(B, H, N, N)``."""
        batch, length, _ = u.shape
        heads = self.options["num_heads"]
        groups = self.options["num_kv_heads"] or heads
        per_group = heads // groups
        k = self._linear(u, f"{name}_k_proj").view(batch, length, groups, -1)
        v = self._linear(u, f"{name}_v_proj").view(batch, length, groups, -1)
        d = k.shape[-1]
        # Rows of the query projection: for each key head, the queries of its group, then their gates.
        mixed = self._linear(u, f"{name}_q_proj").view(batch, length, groups, -1)
        q = mixed[..., : per_group * d].reshape(batch, length, heads, d)
        gate = mixed[..., per_group * d :].reshape(batch, length, heads, -1)
        if self._qk_norm != "none":
            q, k = self._norm(q, f"{name}_q_norm", self._qk_norm), self._norm(k, f"{name}_k_norm", self._qk_norm)
        k, v = k.repeat_interleave(per_group, dim=2), v.repeat_interleave(per_group, dim=2)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, N, d)
        scores = _wide(q @ k.transpose(-1, -2)) / math.sqrt(d)
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
        out = (scores.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2)  # (B, N, H, d)
        if gate.shape[-1]:
            out = out * torch.sigmoid(gate)
        return self._linear(out.reshape(batch, length, heads * d), f"{name}_o_proj")

    def _swiglu(self, x: Tensor, name: str) -> Tensor:
        gate = self._linear(x, f"{name}_gate_proj")
        return self._linear(gate * torch.sigmoid(gate) * self._linear(x, f"{name}_up_proj"), f"{name}_down_proj")

    @property
    def _qk_norm(self) -> str:
        kind = self.options["qk_norm"]
        return self.options["norm"] if kind is None else kind

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.get_parameter(f"{name}_weight"), getattr(self, f"{name}_bias", None))

    def _outer_norm(self, x: Tensor, name: str) -> Tensor:
        """Outside the blocks LayerNorm has PyTorch's default eps, as in the release."""
        return self._norm(x, name, eps=1e-5 if self.options["norm"] == "layer" else None)

    def _norm(self, x: Tensor, name: str, kind: str | None = None, eps: float | None = None) -> Tensor:
        """RMS or layer norm over the last dimension, in at least float32."""
        wide, weight = _wide(x), self.get_parameter(f"{name}_weight")
        eps = self.options["eps"] if eps is None else eps
        if (kind or self.options["norm"]) == "rms":
            return (wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps) * weight).to(x.dtype)
        centred = wide - wide.mean(dim=-1, keepdim=True)
        scaled = centred * torch.rsqrt(centred.pow(2).mean(dim=-1, keepdim=True) + eps)
        return (scaled * weight + self.get_parameter(f"{name}_bias")).to(x.dtype)

    def _dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.options["dropout"], self.training)


def pad(bags: PackedBags) -> tuple[Tensor, Tensor]:
    """Packed bags as a dense batch ``(B, N, D)``, zeros behind the shorter bags, and its mask ``(B, N)``."""
    dense = nn.utils.rnn.pad_sequence(list(bags.unpack(bags.features)), batch_first=True)
    sizes = torch.tensor(bags.sizes, device=dense.device)
    return dense, torch.arange(dense.shape[1], device=dense.device) < sizes[:, None]


def _wide(x: Tensor) -> Tensor:
    """In at least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
