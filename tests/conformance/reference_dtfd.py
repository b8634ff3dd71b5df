"""DTFD-MIL (arXiv 2203.12081) in plain numpy float64: loops over instances, from the equations alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Result:
    """Of one bag of N instances in M pseudo-bags."""

    logits: Array  # (C,)
    embedding: Array  # (E,)
    attention: Array  # (N,)
    pseudo_logits: Array  # (M, C)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + np.exp(-x)) if x >= 0 else np.exp(x) / (1.0 + np.exp(x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def gated_attention(w: Mapping[str, Array], tier: str, vectors: list[Array]) -> Array:
    """``softmax_k(w^T (tanh(V h_k) * sigmoid(U h_k)))``."""
    scores = []
    for h in vectors:
        value = np.tanh(w[f"{tier}.attention_V.0.weight"] @ h + w[f"{tier}.attention_V.0.bias"])
        before = w[f"{tier}.attention_U.0.weight"] @ h + w[f"{tier}.attention_U.0.bias"]
        gate = np.array([sigmoid(x) for x in before])
        scores.append(float(w[f"{tier}.attention_weights.weight"][0] @ (value * gate)))
    return softmax(np.array(scores))


def probabilities(w: Mapping[str, Array], vectors: list[Array], attention: Array) -> Array:
    """Derived instance probabilities ``(n, C)``: softmax of the class activations of ``n a_k h_k``; sigmoid of one."""
    found = []
    for h, a in zip(vectors, attention, strict=True):
        activation = w["pseudo_head.weight"] @ (len(vectors) * a * h)
        found.append(softmax(activation) if len(activation) > 1 else np.array([sigmoid(float(activation[0]))]))
    return np.array(found)


def dtfd(w: Mapping[str, Array], x: Array, pseudo_bags: int, distillation: str) -> Result:
    """One bag ``(N, D)``; instance i is in pseudo-bag i modulo their number."""
    count = min(pseudo_bags, len(x))
    embedded = [np.maximum(w["embed.0.weight"] @ row, 0.0) for row in x]
    handed: list[Array] = []  # to the second tier
    origins: list[dict[int, float]] = []  # instances behind each, and their shares
    pseudo_logits = []
    for m in range(count):
        members = [i for i in range(len(x)) if i % count == m]
        vectors = [embedded[i] for i in members]
        a = gated_attention(w, "pseudo_score", vectors)
        pooled = np.zeros(len(vectors[0]))
        for weight, h in zip(a, vectors, strict=True):
            pooled = pooled + weight * h
        logits = w["pseudo_head.weight"] @ pooled + w["pseudo_head.bias"]
        pseudo_logits.append(logits)
        if distillation == "afs":
            handed.append(pooled)
            origins.append({i: float(weight) for i, weight in zip(members, a, strict=True)})
            continue
        positive = len(logits) - 1 if len(logits) <= 2 else int(logits.argmax())
        p = probabilities(w, vectors, a)[:, positive]
        chosen = {"maxs": [p.argmax()], "maxmins": [p.argmax(), p.argmin()], "mas": [a.argmax()]}[distillation]
        for k in chosen:
            handed.append(vectors[int(k)])
            origins.append({members[int(k)]: 1.0})
    weights = gated_attention(w, "score", handed)
    embedding = np.zeros(len(handed[0]))
    attention = np.zeros(len(x))
    for weight, vector, origin in zip(weights, handed, origins, strict=True):
        embedding = embedding + weight * vector
        for i, share in origin.items():
            attention[i] += weight * share
    return Result(w["head.weight"] @ embedding + w["head.bias"], embedding, attention, np.array(pseudo_logits))


def cross_entropy(logits: Array, label: int) -> float:
    if len(logits) == 1:
        logits = np.array([0.0, float(logits[0])])
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])


def loss(result: Result, label: int) -> float:
    """Of the bag and its pseudo-bags, which carry its label."""
    first = sum(cross_entropy(logits, label) for logits in result.pseudo_logits) / len(result.pseudo_logits)
    return first + cross_entropy(result.logits, label)
