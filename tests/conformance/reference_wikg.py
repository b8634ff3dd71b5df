"""WiKG (arXiv 2403.07719) in plain numpy float64: loops over all, from the equations alone."""

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
    attention: Array | None  # (N,), of the readout


def affine(w: Mapping[str, Array], name: str, x: Array) -> Array:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def leaky(x: Array) -> Array:
    return np.where(x >= 0, x, 0.01 * x)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def neighbourhood(head: Array, tails: list[Array], k: int, released: bool) -> Array:
    """Equations 2 to 7 for one instance."""
    similarity = np.array([head @ t / np.sqrt(len(head)) for t in tails])
    near = np.argsort(-similarity)[:k]
    p = softmax(similarity[near])
    scores = []
    for weight, j in zip(p, near, strict=True):
        edge = weight * tails[j] + (1.0 - weight) * head
        gate = np.tanh(head + edge)
        if released:  # the sum over two free indices
            scores.append(sum(a * b for a in tails[j] for b in gate))
        else:
            scores.append(float(tails[j] @ gate))
    gathered = np.zeros(len(head))
    for weight, j in zip(softmax(np.array(scores)), near, strict=True):
        gathered = gathered + weight * tails[j]
    return gathered


def wikg(w: Mapping[str, Array], x: Array, topk: int, *, released: bool = False, readout: str = "attention") -> Result:
    """One bag ``(N, D)``."""
    embedded = [leaky(affine(w, "embed.0", row)) for row in x]
    mean = sum(embedded) / len(embedded)
    mixed = [(row + mean) / 2.0 for row in embedded]
    heads = [affine(w, "head_proj", row) for row in mixed]
    tails = [affine(w, "tail_proj", row) for row in mixed]
    updated = []
    for head in heads:
        around = neighbourhood(head, tails, min(topk, len(x)), released)
        both = leaky(affine(w, "sum_proj.0", head + around)) + leaky(affine(w, "product_proj.0", head * around))
        updated.append(both)
    attention = None
    if readout == "attention":
        scores = [affine(w, "attention_weights", leaky(affine(w, "attention_V.0", z)))[0] for z in updated]
        attention = softmax(np.array(scores))
        pooled = sum(a * z for a, z in zip(attention, updated, strict=True))
    else:
        pooled = np.array(updated).mean(axis=0) if readout == "mean" else np.array(updated).max(axis=0)
    centred = pooled - pooled.mean()
    embedding = centred / np.sqrt((centred**2).mean() + 1e-5) * w["norm.weight"] + w["norm.bias"]
    return Result(affine(w, "head", embedding), embedding, attention)
