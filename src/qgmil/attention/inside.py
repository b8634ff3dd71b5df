"""Inside the transformer: what every layer and head attends to, exactly, without ever holding a map.

Blocks of queries meet all keys, one block after the other (`entries` weights at a time): memory grows with the number
of instances, not with its square. Definitions for one bag of n rows, head h, weights A (each row sums to 1):

- row entropy: mean over rows of ``-sum_j A_ij ln A_ij / ln n``; 1 is uniform (and n = 1, by convention);
- received mass: ``r_j = (1/n) sum_i A_ij``, a distribution over rows; its sink is ``n max_j r_j``, 1 where uniform;
- largest QK logit: ``max_ij q_i k_j / sqrt(d)``, after the norm of q and k where there is one;
- the gate, ``sigmoid(g)``, over rows (and channels where the gate is elementwise).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qgmil.attention.concentration import concentration
from qgmil.bags.bag import Bag
from qgmil.bags.dataset import collate
from qgmil.errors import BagError, ConfigError
from qgmil.layers.attention import GatedSelfAttention
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput

#: Attention weights held at once: 4 MB in float32, which stay in the caches between the passes over them; but at least
#: so many rows, as thinner blocks spend their time on reading all keys anew (51 MB for 100,000 instances).
ENTRIES, ROWS = 2**20, 128
GATE_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, eq=False)
class Layer:
    """Queries, keys and gate of one layer on one bag of n rows (instances, and a class token first where there is one).

    Args:
        q: ``(n, H, d)``, normed.
        k: ``(n, G, d)``, normed; G divides H.
        gate: ``(n, H, 1)`` or ``(n, H, d)`` after the sigmoid; None without a gate.
        token: whether row 0 is a class token.
    """

    q: Tensor
    k: Tensor
    gate: Tensor | None
    token: bool

    @property
    def heads(self) -> int:
        """Number of query heads H."""
        return self.q.shape[1]

    def blocks(self, entries: int | None = None) -> Iterator[Block]:
        """The map, head by head, some rows at a time (`rows_of_block`)."""
        n, group = self.q.shape[0], self.heads // self.k.shape[1]
        rows = rows_of_block(n, entries)
        for head in range(self.heads):
            queries = self.q[:, head] / math.sqrt(self.q.shape[-1])
            keys = self.k[:, head // group].contiguous()
            for start in range(0, n, rows):
                at = slice(start, min(start + rows, n))
                logits = queries[at] @ keys.T
                largest = logits.amax(dim=-1)
                weights = logits.sub_(largest[:, None]).exp_()
                yield Block(head, at, weights, weights.sum(dim=-1), largest, queries[at], keys)


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows of the map of one head: the weights are ``weights / total[:, None]``, left undivided to save a pass.

    Args:
        head: its number.
        rows: which rows.
        weights: ``(rows, n)``, exp(logit - largest).
        total: ``(rows,)``, their sums.
        largest: ``(rows,)``, the largest logit of each row.
        queries: ``(rows, d)``, over sqrt(d).
        keys: ``(n, d)``.
    """

    head: int
    rows: slice
    weights: Tensor
    total: Tensor
    largest: Tensor
    queries: Tensor
    keys: Tensor


@dataclass(frozen=True, eq=False)
class LayerFigures:
    """What one layer attends to on one bag; arrays over its H heads.

    Args:
        row_entropy: ``(H,)``, normalised, 1 = uniform.
        max_logit: ``(H,)``.
        received: ``(H, n)``, mass that each row receives, summing to 1; a class token is row 0.
        gate: ``{name: (H,)}`` with mean, sd, quantiles, and the shares below 0.1 and above 0.9; empty without a gate.
        token: whether row 0 is a class token.
    """

    row_entropy: NDArray[np.float64]
    max_logit: NDArray[np.float64]
    received: NDArray[np.float64]
    gate: dict[str, NDArray[np.float64]]
    token: bool

    @property
    def sink(self) -> NDArray[np.float64]:
        """``(H,)``: ``n max_j r_j``; 1 where every row receives the same."""
        return self.received.shape[1] * self.received.max(axis=1)

    def head_rows(self, layer: int) -> list[dict[str, Any]]:
        """One flat mapping a head, for tables: the figures above and the concentration of received mass."""
        rows = []
        for h in range(len(self.row_entropy)):
            mass = concentration(self.received[h])
            rows.append(
                {
                    "layer": layer,
                    "head": h,
                    "row_entropy": float(self.row_entropy[h]),
                    "max_logit": float(self.max_logit[h]),
                    "sink": float(self.sink[h]),
                    "received_top_10pct": mass["top_10pct"],
                    "received_entropy": mass["entropy"],
                    "received_gini": mass["gini"],
                }
                | {f"gate_{name}": float(values[h]) for name, values in self.gate.items()}
            )
        return rows


def rows_of_block(n: int, entries: int | None = None) -> int:
    """Rows of the map of n instances that are held at once: `entries` weights, or None for what is fastest."""
    return max(1, (max(ENTRIES, ROWS * n) if entries is None else entries) // n)


def has_layers(model: Aggregator) -> bool:
    """Whether the aggregator attends within the bag in a way that these figures are defined for."""
    return any(isinstance(module, GatedSelfAttention) for module in model.modules())


@torch.inference_mode()
def layers_of(model: Aggregator, bag: Bag, *, device: str = "cpu") -> tuple[list[Layer], BagOutput]:
    """Queries, keys and gates of every layer on one bag, in order, and the prediction. Memory O(layers x N x width).

    Raises:
        ConfigError: an aggregator without self-attention over the bag (it is named).
        BagError: a bag larger than the model's key_clusters: there are no weights of every pair.
    """
    if not has_layers(model):
        raise ConfigError(
            f"{model.name} has no self-attention whose weights over the bag's instances are defined: this is for "
            "QG-MIL and the transformer"
        )
    found: list[Layer] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, GatedSelfAttention)
        u, sizes = args
        if module.key_clusters is not None and max(sizes) > module.key_clusters:
            raise BagError(
                f"bag {bag.bag_id!r} has {len(bag)} instances, and the model attends to {module.key_clusters} clusters "
                "of them: there are no weights of every pair"
            )
        q, k, _, gate = module.project(u)
        q, k = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (q, k))
        found.append(Layer(q, k, None if gate is None else gate.sigmoid(), len(u) == len(bag) + 1))

    with evaluating(model, device), _hooked(model, keep):
        out = model(collate([bag]).to(device), return_attention=model.has_attention)
    return found, out


def layer_figures(
    model: Aggregator, bag: Bag, *, device: str = "cpu", entries: int | None = None
) -> list[LayerFigures]:
    """The figures of every layer and head on one bag.

    Args:
        entries: attention weights held at once (at least a row); None: `rows_of_block` chooses.

    Raises:
        ConfigError, BagError: as `layers_of`.
    """
    layers, _ = layers_of(model, bag, device=device)
    return [_figures(layer, entries) for layer in layers]


@torch.inference_mode()
def _figures(layer: Layer, entries: int | None = None) -> LayerFigures:
    n, heads, _ = layer.q.shape
    received = torch.zeros(heads, n, dtype=torch.float64, device=layer.q.device)
    entropy = torch.zeros(heads, dtype=torch.float64, device=layer.q.device)
    largest = torch.full((heads,), -torch.inf, dtype=torch.float64, device=layer.q.device)
    for block in layer.blocks(entries):
        received[block.head] += (1 / block.total) @ block.weights
        # -sum_j A_ij ln A_ij = lse_i - sum_j A_ij s_ij, and that sum is q_i (A K)_i: the logits need not be kept
        mean_logit = (block.queries * (block.weights @ block.keys)).sum(dim=-1) / block.total
        entropy[block.head] += (block.total.log() + block.largest - mean_logit).double().sum()
        largest[block.head] = torch.maximum(largest[block.head], block.largest.max().double())
    received /= received.sum(dim=1, keepdim=True)
    normalised = entropy / n / math.log(n) if n > 1 else torch.ones_like(entropy)
    return LayerFigures(
        row_entropy=normalised.clamp(0, 1).cpu().numpy(),
        max_logit=largest.cpu().numpy(),
        received=received.cpu().numpy(),
        gate=_gate_figures(layer.gate),
        token=layer.token,
    )


def _gate_figures(gate: Tensor | None) -> dict[str, NDArray[np.float64]]:
    if gate is None:
        return {}
    values = gate.double().transpose(0, 1).flatten(1)  # (H, n * channels)
    held = values.cpu().numpy()
    figures = {"mean": held.mean(axis=1), "sd": held.std(axis=1)}
    quantiles = np.quantile(held, GATE_QUANTILES, axis=1)
    figures |= {f"q{round(100 * q):02d}": row for q, row in zip(GATE_QUANTILES, quantiles, strict=True)}
    return figures | {"below_0.1": (held < 0.1).mean(axis=1), "above_0.9": (held > 0.9).mean(axis=1)}


@torch.inference_mode()
def rollout(model: Aggregator, bag: Bag, *, device: str = "cpu", entries: int | None = None) -> NDArray[np.float64]:
    """The bag vector's weights followed back through the blocks to the instances that went in: ``(N,)``, sum 1.

    After Abnar and Zuidema (2020, arXiv 2005.00928), with the gate: it begins with the weights a of the pooling over
    the last block's rows (a class token: all weight on the token; mean pooling: uniform). Block by block, last first,

        ``a <- (a + a^T mean_h(g_h A_h)) / sum``,

    where row i of A_h is scaled by instance i's gate (its channel mean where the gate is elementwise; 1 without one),
    and the first a is the residual branch. The feed-forward mixes no instances and is passed over, as are value and
    output projections: the result says where information can come from, not what it does. A class token's own weight
    is dropped at the end and the rest divided by its sum.

    Raises:
        ConfigError: no self-attention (see `layers_of`), or a pooling without weights (max).
        BagError: as `layers_of`.
    """
    layers, out = layers_of(model, bag, device=device)
    a = _reader(model, layers[-1], out)
    for layer in reversed(layers):
        opened = torch.ones(layer.q.shape[:2], device=a.device) if layer.gate is None else layer.gate.mean(dim=-1)
        flow = torch.zeros_like(a)
        for block in layer.blocks(entries):
            share = a[block.rows] * opened[block.rows, block.head] / layer.heads / block.total
            flow += share.to(block.weights.dtype) @ block.weights
        a = a + flow
        a = a / a.sum()
    if layers[0].token:
        a = a[1:] / a[1:].sum()
    return a.cpu().numpy()


def _reader(model: Aggregator, last: Layer, out: BagOutput) -> Tensor:
    """Weights ``(n,)`` float64 with which the bag vector reads the last block's rows."""
    n = last.q.shape[0]
    if last.token:
        return torch.nn.functional.one_hot(torch.tensor(0), n).double().to(last.q.device)
    if out.attention is not None:
        return out.attention.double() / out.attention.double().sum()
    if getattr(model, "pooling_kind", None) == "mean":
        return torch.full((n,), 1 / n, dtype=torch.float64, device=last.q.device)
    raise ConfigError(f"{model.name} with this pooling takes no weighted mean of the instances: it has no rollout")


@contextmanager
def _hooked(model: Aggregator, keep: Any) -> Iterator[None]:
    handles = [m.register_forward_pre_hook(keep) for m in model.modules() if isinstance(m, GatedSelfAttention)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: Aggregator, device: str) -> Iterator[None]:
    """The model in evaluation mode on a device, and back as it was: each part in its own mode, able to train."""
    modes, before = [(module, module.training) for module in model.modules()], next(model.parameters()).device
    try:
        model.eval()
        _move(model, device)
        yield
    finally:
        for module, training in modes:
            module.training = training
        _move(model, before)


def _move(model: Aggregator, device: str | torch.device) -> None:
    """Weights that are moved in inference mode are inference tensors ever after: nothing could be trained on them."""
    with torch.inference_mode(False):
        model.to(device)
