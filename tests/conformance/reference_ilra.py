"""ILRA-MIL (Xiang and Zhang, ICLR 2023) in plain numpy float64: loops over queries, from the equations alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Result:
    """Of one bag of N instances."""

    logits: Array  # (C,)
    embedding: Array  # (E,)
    attention: Array  # (N,), of the pooling, mean over its heads


def affine(w: Mapping[str, Array], name: str, x: Array) -> Array:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def layer_norm(w: Mapping[str, Array], name: str, x: Array) -> Array:
    """Over a vector; none where there are no weights for one."""
    if f"{name}.weight" not in w:
        return x
    centred = x - x.mean()
    return centred / np.sqrt((centred**2).mean() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def cross_attention(
    w: Mapping[str, Array], name: str, queries: list[Array], instances: list[Array], heads: int
) -> tuple[list[Array], Array]:
    """New queries, and the weights ``(queries, heads, instances)``."""
    keys, values = [], []
    for x in instances:
        keys.append(affine(w, f"{name}.k_proj", affine(w, f"{name}.embed_k_proj", x)))
        values.append(affine(w, f"{name}.v_proj", affine(w, f"{name}.embed_v_proj", x)))
    results, maps = [], np.zeros((len(queries), heads, len(instances)))
    for i, query in enumerate(queries):
        stream = affine(w, f"{name}.embed_q_proj", query)
        q = affine(w, f"{name}.q_proj", stream)
        width = len(q) // heads
        attended = np.zeros(len(q))
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = np.array([q[part] @ k[part] / np.sqrt(width) for k in keys])
            e = np.exp(scores - scores.max())
            maps[i, head] = e / e.sum()
            for weight, v in zip(maps[i, head], values, strict=True):
                attended[part] += weight * v[part]
        o = layer_norm(w, f"{name}.attention_norm", stream + affine(w, f"{name}.out_proj", attended))
        o = layer_norm(w, f"{name}.ffn_norm", o + np.maximum(affine(w, f"{name}.ffn", o), 0.0))
        if f"{name}.gate.0.weight" in w:
            gate = affine(w, f"{name}.gate.0", query)
            o = o * gate / (1.0 + np.exp(-gate))
        results.append(o)
    return results, maps


def ilra(w: Mapping[str, Array], x: Array, layers: int, heads: int) -> Result:
    """One bag ``(N, D)``."""
    instances = list(x)
    for i in range(layers):
        latents, _ = cross_attention(w, f"blocks.{i}.forth", list(w[f"blocks.{i}.latents"]), instances, heads)
        instances, _ = cross_attention(w, f"blocks.{i}.back", instances, latents, heads)
    pooled, maps = cross_attention(w, "pooling.attention", list(w["pooling.query"]), instances, heads)
    return Result(affine(w, "head", pooled[0]), pooled[0], maps[0].mean(axis=0))
