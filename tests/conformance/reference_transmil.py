"""TransMIL in numpy, float64, one bag, written from the papers: no landmark is skipped and every map is made in full.

Weights carry the release's names. Equations: Xiong 2021 (2102.03902) for the attention, Shao 2021 (2106.00908) for the
rest; padding as in the implementation that the release uses (zeros in front, not masked).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def pseudo_inverses(maps: Array, iterations: int) -> Array:
    """(H, m, m): the start is divided by the largest row sum and the largest column sum over all heads."""
    m = maps.shape[1]
    largest = max(np.abs(a).sum(axis=1).max() for a in maps) * max(np.abs(a).sum(axis=0).max() for a in maps)
    found = []
    for a in maps:
        z = a.T / largest
        for _ in range(iterations):
            inner = 7 * np.eye(m) - a @ z
            middle = 15 * np.eye(m) - a @ z @ inner
            z = 0.25 * z @ (13 * np.eye(m) - a @ z @ middle)
        found.append(z)
    return np.stack(found)


def nystrom(w: Mapping[str, Array], name: str, x: Array, m: int, iterations: int) -> tuple[Array, Array]:
    """x (n, E): output (n, E) and the approximated map (H, n, padding + n)."""
    kernels = w[f"{name}.res_conv.weight"]  # (H, 1, 33, 1)
    heads, reach = kernels.shape[0], kernels.shape[2] // 2
    n, width = x.shape
    d = width // heads
    pad = (m - n % m) % m
    padded = np.concatenate([np.zeros((pad, width)), x])
    total, run = len(padded), len(padded) // m
    rows = padded @ w[f"{name}.to_qkv.weight"].T
    q, k, v = (rows[:, i * width : (i + 1) * width].reshape(total, heads, d).transpose(1, 0, 2) for i in range(3))
    q = q / np.sqrt(d)
    q_marks = np.stack([q[:, i * run : (i + 1) * run].sum(axis=1) / run for i in range(m)], axis=1)
    k_marks = np.stack([k[:, i * run : (i + 1) * run].sum(axis=1) / run for i in range(m)], axis=1)
    inverse = pseudo_inverses(np.stack([softmax(q_marks[h] @ k_marks[h].T) for h in range(heads)]), iterations)
    maps = np.empty((heads, total, total))
    out = np.empty((total, heads, d))
    for h in range(heads):
        maps[h] = softmax(q[h] @ k_marks[h].T) @ inverse[h] @ softmax(q_marks[h] @ k[h].T)
        out[:, h] = maps[h] @ v[h]
        for i in range(total):
            for t in range(-reach, reach + 1):
                if 0 <= i + t < total:
                    out[i, h] += kernels[h, 0, reach + t, 0] * v[h, i + t]
    flat = out.reshape(total, width) @ w[f"{name}.to_out.0.weight"].T + w[f"{name}.to_out.0.bias"]
    return flat[pad:], maps[:, pad:]


def convolve(image: Array, kernel: Array, bias: Array) -> Array:
    """Depthwise, image (S, S, E), kernel (E, 1, K, K), zeros outside."""
    side, reach = image.shape[0], kernel.shape[-1] // 2
    out = np.zeros_like(image) + bias
    for r in range(side):
        for c in range(side):
            for a in range(-reach, reach + 1):
                for b in range(-reach, reach + 1):
                    if 0 <= r + a < side and 0 <= c + b < side:
                        out[r, c] += kernel[:, 0, reach + a, reach + b] * image[r + a, c + b]
    return out


def transmil(w: Mapping[str, Array], x: Array, m: int, iterations: int = 6) -> tuple[Array, Array, Array]:
    """Logits (C,), bag vector (E,) and instance weights (n,) of one bag x (n, D)."""
    n = len(x)
    side = next(s for s in range(1, n + 1) if s * s >= n)
    h = np.maximum(x @ w["_fc1.0.weight"].T + w["_fc1.0.bias"], 0)
    origin = list(range(n)) + list(range(side * side - n))
    h = np.concatenate([w["cls_token"].reshape(1, -1), h[origin]])
    update, _ = nystrom(w, "layer1.attn", layer_norm(h, w["layer1.norm.weight"], w["layer1.norm.bias"]), m, iterations)
    h = h + update
    image = h[1:].reshape(side, side, -1)
    mixed = image.copy()
    for part in ("proj", "proj1", "proj2"):
        mixed += convolve(image, w[f"pos_layer.{part}.weight"], w[f"pos_layer.{part}.bias"])
    h = np.concatenate([h[:1], mixed.reshape(side * side, -1)])
    u = layer_norm(h, w["layer2.norm.weight"], w["layer2.norm.bias"])
    update, maps = nystrom(w, "layer2.attn", u, m, iterations)
    embedding = layer_norm((h + update)[0], w["norm.weight"], w["norm.bias"])

    row = maps[:, 0].mean(axis=0)
    row = row[len(row) - side * side :]  # without the zeros in front and the token
    weights = np.zeros(n)
    for position, instance in enumerate(origin):
        weights[instance] += row[position]
    weights = np.maximum(weights, 0)
    attention = weights / weights.sum() if weights.sum() > 0 else np.full(n, 1 / n)
    return w["_fc2.weight"] @ embedding + w["_fc2.bias"], embedding, attention
