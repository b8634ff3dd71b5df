"""RRT-MIL in numpy, float64, one bag, written from the paper's equations (2402.17228): EPEG on the full score maps.

Padding as released: zeros behind the normed instances, not masked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def layer_norm(w: Mapping[str, Array], name: str, x: Array) -> Array:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def self_attention(w: Mapping[str, Array], name: str, x: Array, heads: int) -> Array:
    """One sequence x (n, E)."""
    n, width = x.shape
    d = width // heads
    rows = x @ w[f"{name}.qkv.weight"].T + w[f"{name}.qkv.bias"]
    out = np.empty((n, width))
    for h in range(heads):
        q, k, v = (rows[:, part * width + h * d : part * width + (h + 1) * d] for part in range(3))
        scores = q @ k.T / math.sqrt(d)
        if f"{name}.epeg.weight" in w:
            kernel = w[f"{name}.epeg.weight"][h, 0, :, 0]
            reach = len(kernel) // 2
            position = np.zeros_like(scores)
            for i in range(n):
                for t in range(-reach, reach + 1):
                    if 0 <= i + t < n:
                        position[i] += kernel[reach + t] * scores[i + t]
            scores = scores + position
        out[:, h * d : (h + 1) * d] = softmax(scores) @ v
    return out @ w[f"{name}.proj.0.weight"].T + w[f"{name}.proj.0.bias"]


def regions_of(n: int, region_num: int, min_instances: int) -> tuple[int, list[list[int]]]:
    """Positions of the square, and those of each region in reading order."""
    side = math.ceil(math.sqrt(n))
    if n < min_instances:
        while side % 2:
            side += 1
        per_side = 1
    else:
        while side % region_num:
            side += 1
        per_side = region_num
    size = side // per_side
    regions = []
    for top in range(0, side, size):
        for left in range(0, side, size):
            regions.append([(top + r) * side + left + c for r in range(size) for c in range(size)])
    return side * side, regions


def within(w: Mapping[str, Array], name: str, x: Array, heads: int, regions: list[list[int]]) -> Array:
    out = np.empty_like(x)
    for region in regions:
        out[region] = self_attention(w, f"{name}.attn", x[region], heads)
    return out


def across(w: Mapping[str, Array], name: str, x: Array, heads: int, regions: list[list[int]]) -> Array:
    phi = w[f"{name}.phi"]
    count = phi.shape[1]
    scores = [x[region] @ phi for region in regions]  # each (P, k)
    means = np.stack([softmax(s, axis=0).T @ x[region] for s, region in zip(scores, regions, strict=True)])  # (R, k, E)
    seen = np.stack([self_attention(w, f"{name}.attn", means[:, r], heads) for r in range(count)], axis=1)
    out = np.zeros_like(x)
    for number, (s, region) in enumerate(zip(scores, regions, strict=True)):
        combine = softmax(s, axis=1)
        for p, position in enumerate(region):
            for r in range(count):
                low, high = s[:, r].min(), s[:, r].max()
                out[position] += combine[p, r] * (s[p, r] - low) / (high - low + 1e-8) * seen[number, r]
    return out


def rrt(
    w: Mapping[str, Array], x: Array, *, heads: int, region_num: int, min_instances: int, shortcut: bool = False
) -> tuple[Array, Array, Array]:
    """Logits (C,), bag vector (E,) and instance weights (n,) of one bag x (n, D)."""
    n = len(x)
    before = np.maximum(x @ w["embed.0.weight"].T + w["embed.0.bias"], 0)
    h = before
    total, regions = regions_of(n, region_num, min_instances)
    layers = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("layers."))
    for i in range(layers):
        normed = np.zeros((total, h.shape[1]))
        normed[:n] = layer_norm(w, f"layers.{i}.norm", h)
        attend = across if i == layers - 1 else within
        h = h + attend(w, f"layers.{i}.attn", normed, heads, regions)[:n]
    z = layer_norm(w, "norm", h + before if shortcut else h)
    scores = np.tanh(z @ w["attention_V.0.weight"].T) @ w["attention_weights.weight"][0]
    attention = softmax(scores)
    embedding = attention @ z
    return w["head.weight"] @ embedding + w["head.bias"], embedding, attention
