"""QG-MIL and ABMIL in plain numpy float64, written from the equations alone (DESIGN.md section 5, qgmil.md).

One bag at a time, no batching, no masking, the full N x N map: slow, and short enough to check by eye. It shares no
code with `qgmil.layers` or `qgmil.models`; weights come in as a dict of the released names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spec:
    """What the weights alone do not say. Widths, blocks, biases and kinds of norm are read from the weights."""

    num_heads: int
    num_kv_heads: int
    gate: str = "headwise"  # "headwise", "elementwise" or "none"
    activation: str = "silu"  # "silu", "gelu" or "relu"
    pooling: str = "attention"  # "attention", "mean", "max" or "cls"
    eps: float = 1e-6  # of every RMSNorm, and of the LayerNorms inside blocks
    # The remaining fields are the readings of the paper that the vectors decided; only test_reference.py changes them.
    outer_layer_eps: float = 1e-5
    tanh_gelu: bool = False
    pool_normed: bool = True
    final_norm: bool = True
    cls_first: bool = True


@dataclass
class Result:
    """Everything the forward pass of one bag of N instances shows (N + 1 rows inside with a class token)."""

    logits: Array  # (C,)
    embedding: Array  # (E,), the input of the classifier
    attention: Array | None  # (N,), weights of the attention pooling
    layer_attention: list[Array] = field(default_factory=list)  # per block (H, n, n), before the gate
    gates: list[Array | None] = field(default_factory=list)  # per block (n, H) or (n, H, d), after the sigmoid


def sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def softmax(x: Array) -> Array:
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def activation(name: str, tanh_gelu: bool = False) -> Callable[[Array], Array]:
    if name == "silu":
        return lambda x: x * sigmoid(x)
    if name == "relu":
        return lambda x: np.maximum(x, 0.0)
    assert name == "gelu", name
    if tanh_gelu:
        return lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))
    return lambda x: 0.5 * x * (1.0 + erf(x / np.sqrt(2.0)))


def linear(w: Mapping[str, Array], name: str, x: Array) -> Array:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def norm(w: Mapping[str, Array], name: str, x: Array, spec: Spec) -> Array:
    """Over the last axis: LayerNorm where the weights have a bias, RMSNorm where they have none."""
    scale = w[f"{name}.weight"]
    if f"{name}.bias" in w:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        eps = spec.eps if name.startswith("layers.") else spec.outer_layer_eps
        return centred / np.sqrt(variance + eps) * scale + w[f"{name}.bias"]
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + spec.eps) * scale


def attention_block(w: Mapping[str, Array], name: str, u: Array, spec: Spec) -> tuple[Array, Array, Array | None]:
    """Gated self-attention of normed instances u (n, E): output (n, E), map (H, n, n), gate.

    q_proj's rows, for each key/value head in turn: the queries of its group, then the gates of its group.
    """
    n, heads, kv_heads = len(u), spec.num_heads, spec.num_kv_heads
    group = heads // kv_heads
    k = linear(w, f"{name}.k_proj", u)
    d = k.shape[1] // kv_heads
    k = k.reshape(n, kv_heads, d)
    v = linear(w, f"{name}.v_proj", u).reshape(n, kv_heads, d)
    gates_of = {"none": 0, "headwise": group, "elementwise": group * d}[spec.gate]
    rows = linear(w, f"{name}.q_proj", u).reshape(n, kv_heads, group * d + gates_of)
    q = rows[:, :, : group * d].reshape(n, heads, d)
    g = rows[:, :, group * d :]
    if f"{name}.q_norm.weight" in w:
        q = norm(w, f"{name}.q_norm", q, spec)
        k = norm(w, f"{name}.k_norm", k, spec)

    out = np.empty((n, heads, d))
    maps = np.empty((heads, n, n))
    for h in range(heads):
        maps[h] = softmax(q[:, h] @ k[:, h // group].T / np.sqrt(d))
        out[:, h] = maps[h] @ v[:, h // group]
    gate = None
    if spec.gate == "headwise":
        gate = sigmoid(g.reshape(n, heads))
        out = out * gate[:, :, None]
    elif spec.gate == "elementwise":
        gate = sigmoid(g.reshape(n, heads, d))
        out = out * gate
    return linear(w, f"{name}.o_proj", out.reshape(n, heads * d)), maps, gate


def feed_forward(w: Mapping[str, Array], name: str, r: Array, spec: Spec) -> Array:
    """SwiGLU (any activation on the gate); a plain two-matrix MLP where there is no gate_proj."""
    act = activation(spec.activation, spec.tanh_gelu)
    up = linear(w, f"{name}.up_proj", r)
    hidden = act(linear(w, f"{name}.gate_proj", r)) * up if f"{name}.gate_proj.weight" in w else act(up)
    return linear(w, f"{name}.down_proj", hidden)


def gated_scores(w: Mapping[str, Array], z: Array, v: str, u: str, last: str) -> Array:
    """w^T (tanh(V z_i) * sigmoid(U z_i)) of every instance (n,)."""
    return linear(w, last, np.tanh(linear(w, v, z)) * sigmoid(linear(w, u, z)))[:, 0]


def pool(w: Mapping[str, Array], h: Array, spec: Spec) -> tuple[Array, Array | None]:
    """Instances (n, E), the class token among them where there is one, to the bag's vector and weights."""
    if spec.pooling == "cls":
        return h[0 if spec.cls_first else -1], None
    if spec.pooling == "mean":
        return h.mean(axis=0), None
    if spec.pooling == "max":
        return h.max(axis=0), None
    z = norm(w, "pooling.norm", h, spec)
    a = softmax(gated_scores(w, z, "pooling.attention_V.0", "pooling.attention_U.0", "pooling.attention_weights"))
    return a @ (z if spec.pool_normed else h), a


def qgmil(weights: Mapping[str, Array], x: Array, spec: Spec) -> Result:
    """The forward pass of one bag x (N, D) in evaluation mode."""
    w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    h = norm(w, "input_proj.1", linear(w, "input_proj.0", np.asarray(x, dtype=np.float64)), spec)
    if spec.pooling == "cls":
        token = w["cls_token"].reshape(1, -1)
        h = np.concatenate([token, h] if spec.cls_first else [h, token])
    maps, gates = [], []
    blocks = sorted({int(m[1]) for m in (re.match(r"layers\.(\d+)\.", name) for name in w) if m})
    for i in blocks:
        update, attention, gate = attention_block(
            w, f"layers.{i}.self_attn", norm(w, f"layers.{i}.input_layernorm", h, spec), spec
        )
        h = h + update
        h = h + feed_forward(w, f"layers.{i}.mlp", norm(w, f"layers.{i}.post_attention_layernorm", h, spec), spec)
        maps.append(attention)
        gates.append(gate)
    if spec.final_norm:
        h = norm(w, "final_norm", h, spec)
    embedding, attention = pool(w, h, spec)
    logits = linear(w, "classifier.3", np.maximum(linear(w, "classifier.0", embedding), 0.0))
    return Result(logits, embedding, attention, maps, gates)


def abmil(weights: Mapping[str, Array], x: Array) -> Result:
    """Attention MIL of Ilse et al.; gated where the weights have attention_U."""
    w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    h = np.maximum(linear(w, "feature_extractor_part2.0", np.asarray(x, dtype=np.float64)), 0.0)
    if "attention_U.0.weight" in w:
        scores = gated_scores(w, h, "attention_V.0", "attention_U.0", "attention_w")
    else:
        scores = linear(w, "attention.2", np.tanh(linear(w, "attention.0", h)))[:, 0]
    a = softmax(scores)
    embedding = a @ h
    return Result(linear(w, "classifier.0", embedding), embedding, a)
