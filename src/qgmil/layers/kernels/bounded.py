"""Attention in bfloat16 on CPUs, in blocks of matrix products, for logits that are known to be bounded.

With q and k normalised per head (QG-MIL), Cauchy and Schwarz bound every logit: ``|q . k| / sqrt(d)`` is at most
``max |q| max |k| / sqrt(d)``, which is 8 for heads of 64 whose norms have unit weights. Where the bound is small enough
for ``exp`` of either sign to stay far inside bfloat16's range, softmax needs no running maximum: attention is nothing
but products of blocks, an exponential and sums. Those run near the rate of the machine's matrix products, which
PyTorch's own CPU kernel does not reach in bfloat16. Where the processor multiplies tiles (AMX) its forward pass takes
half the time of ours, and its backward pass still longer: there it makes the outputs, and we the gradients.

Precision: logits and weights of a block are rounded to bfloat16, as autocast rounds them in unfused attention; sums
over blocks accumulate in float32. PyTorch's forward pass keeps the logits in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from qgmil.layers.linear import next_size, with_zeros

#: Largest bound on a logit. Weights stay within e^-40 to e^40 and their sums over 10^6 instances below 10^24: all are
#: normal bfloat16 numbers (10^-38 to 10^38), and so are their reciprocals.
MAX_LOGIT = 40.0

#: Most queries and keys of a block: 8 heads of it fill the second-level cache, and the cost of a call is lost in it.
#: Where the processor multiplies tiles, products gain more from long rows than they lose to the third-level cache.
BLOCK, TILES_BLOCK = 512, 1024

#: Blocks of keys from which on the sums of each block's weights may be rounded to bfloat16, as its outputs are: over
#: so many the rounding (2^-9 at most) averages to less than that of the result. Summing in float32 copies the weights.
ROUNDED_SUMS = 8

#: Blocks of larger bags end at multiples of this.
ALIGNED = 64

#: Most weights made at a time, over groups of heads: the C library gives larger buffers back to the system after every
#: use, and being given them anew costs more than a product.
MOST_WEIGHTS = 4 * 2**20


@cache
def tiles() -> bool:
    """Whether this processor multiplies tiles of bfloat16 (AMX)."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older ones do not say
    return bool(capabilities.get("amx_bf16", False))


def fits(q: Tensor, k: Tensor) -> bool:
    """Whether `bounded_attention` can take these queries and keys ``(T, heads, d)``."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return False
    if isinstance(q, FakeTensor):  # traced for its memory: there are no values to look at
        return True
    with torch.no_grad():
        bound = _largest(q) * _largest(k) / math.sqrt(q.shape[-1])
    return bound <= MAX_LOGIT  # False for NaN


def bounded_attention(q: Tensor, k: Tensor, v: Tensor, sizes: Sequence[int]) -> Tensor:
    """Softmax attention within each bag.

    Args:
        q: queries ``(T, H, d)``, bfloat16, for which `fits` holds.
        k, v: keys and values ``(T, G, d)``; G divides H.
        sizes: instances of each bag.

    Returns:
        ``(T, H, d)``.
    """
    out: Tensor = _Bounded.apply(q, k, v, tuple(sizes))
    return out


def _largest(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).amax())


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...]) -> Tensor:
        q = q * q.shape[-1] ** -0.5
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        total = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        groups = k.shape[1]
        with torch.autocast("cpu", enabled=False):
            for rows in _rows(sizes):
                if tiles():
                    out[rows], total[rows] = _fused_forward(q[rows], k[rows], v[rows])
                    continue
                n = rows.stop - rows.start
                parts = [_filled(_by_group(x[rows], groups)) for x in (q, k, v)]
                o, s = _forward(parts[0], parts[1], parts[2], n)
                out[rows] = _by_row(o[:, : n * q.shape[1] // groups], out[rows].shape)
                total[rows] = _by_row(s[:, : n * q.shape[1] // groups], total[rows].shape)
        ctx.save_for_backward(q, k, v, out, total)
        ctx.sizes = sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, total = ctx.saved_tensors
        groups = k.shape[1]
        scaled = grad / total.unsqueeze(-1)  # float32; the weights below are not normalised
        delta = torch.einsum("thd,thd->th", scaled, out.float())
        scaled = scaled.to(q.dtype)
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        for rows in _rows(ctx.sizes):
            # Zeros in the place of queries or keys change nothing here: their products are zero, or are left out.
            grads = _backward(*(_filled(_by_group(x[rows], groups)) for x in (q, k, v, scaled, delta)))
            for whole, part in zip((dq, dk, dv), grads, strict=True):
                count = whole[rows].shape[0] * whole.shape[1] // groups
                whole[rows] = _by_row(part[:, :count], whole[rows].shape)
        return dq.mul_(q.shape[-1] ** -0.5), dk, dv, None


def _rows(sizes: Sequence[int]) -> Iterator[slice]:
    start = 0
    for n in sizes:
        yield slice(start, start + n)
        start += n


def _by_group(x: Tensor, groups: int) -> Tensor:
    """``(n, H, d) -> (G, n * H / G, d)``: the heads of a group share keys, so their queries are rows of one matrix."""
    x = x.unflatten(1, (groups, -1)).movedim(0, 2)  # (G, H / G, n, d)
    return x.flatten(1, 2).contiguous()


def _by_row(x: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_by_group`, to ``(n, H, d)`` or ``(n, H)``."""
    return x.unflatten(1, (-1, shape[0])).movedim(2, 0).reshape(shape)


def _filled(x: Tensor) -> Tensor:
    """``(G, m, ...)`` with zeros up to one of few sizes, for PyTorch compiles products for every size that it meets."""
    return with_zeros(x, next_size(x.shape[1], ALIGNED) - x.shape[1], dim=1)


def _fused_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs ``(n, H, d)`` and sums of the weights ``(n, H)`` by PyTorch's kernel, from scaled q ``(n, H, d)``."""
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (k, v))
    heads_first = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    # The operator beneath scaled_dot_product_attention, for that one keeps the sums to itself.
    out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads_first, scale=1.0)
    return out[0].transpose(0, 1), logsumexp[0].transpose(0, 1).exp()


def _forward(q: Tensor, k: Tensor, v: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Outputs ``(G, m, d)`` in float32 and sums of the weights ``(G, m)``, from scaled q ``(G, m, d)``, k and v.

    Keys and values from n on are zeros, and count for nothing.
    """
    groups, queries, d = q.shape
    columns, rows = min(_block(), k.shape[1]), min(_block(), queries)
    keys = k.transpose(1, 2).split(columns, dim=2)
    values = v.split(columns, dim=1)
    out = q.new_zeros((groups, queries, d), dtype=torch.float32)
    total = q.new_zeros((groups, queries, 1), dtype=torch.float32)
    space = _Space(q, rows, columns)
    wide = None if len(keys) >= ROUNDED_SUMS else torch.float32
    for start in range(0, queries, rows):
        block = q[:, start : start + rows]
        o, s = out[:, start : start + rows], total[:, start : start + rows]
        product = space.product(block.shape[1])
        for j, (kj, vj) in enumerate(zip(keys, values, strict=True)):
            weights = torch.bmm(block, kj, out=space.weights(block.shape[1], kj.shape[2])).exp_()
            s.add_(weights[..., : max(0, n - j * columns)].sum(-1, keepdim=True, dtype=wide))
            o.add_(torch.bmm(weights, vj, out=product))
    return out.div_(total), total.squeeze(-1)


def _backward(q: Tensor, k: Tensor, v: Tensor, g: Tensor, delta: Tensor) -> tuple[Tensor, ...]:
    """Gradients of scaled q, of k and of v, in float32 where blocks were added.

    Args:
        q, k, v: as in `_forward`.
        g: gradient of the output over the sum of the weights ``(G, m, d)``.
        delta: its products with the output ``(G, m)``, float32.
    """
    columns, rows = min(_block(), q.shape[1]), min(_block(), k.shape[1])
    step = max(1, MOST_WEIGHTS // (rows * columns))
    backward = _backward_of_one if (columns, rows) == (q.shape[1], k.shape[1]) else _backward_by_blocks
    if step >= q.shape[0]:
        return backward(q, k, v, g, delta)
    parts = zip(*(x.split(step) for x in (q, k, v, g, delta)), strict=True)
    return tuple(torch.cat(grads) for grads in zip(*(backward(*part) for part in parts), strict=True))


def _backward_of_one(q: Tensor, k: Tensor, v: Tensor, g: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_backward` of a single block."""
    weights = torch.bmm(k, q.transpose(1, 2)).exp_()
    slope = torch.bmm(v, g.transpose(1, 2)).sub_(delta.to(v.dtype).unsqueeze(1)).mul_(weights)
    return torch.bmm(slope.transpose(1, 2), k), torch.bmm(slope, q), torch.bmm(weights, g)


def _backward_by_blocks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_backward` block by block.

    Weights are made transposed, keys by queries, and so is the gradient of q: then no product has a transposed block of
    weights on its left, which would be copied first.
    """
    # Two more channels subtract delta within the product, in two parts so that it keeps its digits.
    high = delta.to(q.dtype)
    g_delta = torch.cat([g, torch.stack([high, (delta - high).to(q.dtype)], dim=-1)], dim=-1)
    v_minus = torch.cat([v, v.new_full((*v.shape[:2], 2), -1.0)], dim=-1)
    columns, rows = min(_block(), q.shape[1]), min(_block(), k.shape[1])
    q_turned = _turned(q, columns)
    dq = [torch.zeros_like(x, dtype=torch.float32) for x in q_turned]
    queries = (_split(q, columns), q_turned, _split(g, columns), _turned(g_delta, columns), dq)
    space, slopes = (_Space(q, rows, columns) for _ in range(2))
    dk, dv = [], []
    for kj, kj_t, vj in zip(_split(k, rows), _turned(k, rows), _split(v_minus, rows), strict=True):
        n = kj.shape[1]
        dk.append(torch.zeros_like(kj, dtype=torch.float32))
        dv.append(torch.zeros_like(kj, dtype=torch.float32))
        for qi, qi_t, gi, gi_t, dqi in zip(*queries, strict=True):
            m = qi.shape[1]
            weights = torch.bmm(kj, qi_t, out=space.weights(n, m)).exp_()
            slope = torch.bmm(vj, gi_t, out=slopes.weights(n, m)).mul_(weights)
            dv[-1].add_(torch.bmm(weights, gi, out=space.product(n)))
            dk[-1].add_(torch.bmm(slope, qi, out=space.product(n)))
            dqi.add_(torch.bmm(kj_t, slope, out=space.product(m).view(dqi.shape)))
    return torch.cat(dq, dim=2).transpose(1, 2), torch.cat(dk, dim=1), torch.cat(dv, dim=1)


def _block() -> int:
    return TILES_BLOCK if tiles() else BLOCK


def _split(x: Tensor, rows: int) -> list[Tensor]:
    """Blocks of rows of ``(G, n, d)``, each in one piece: products copy what is not, every time."""
    return [part.contiguous() for part in x.split(rows, dim=1)]


def _turned(x: Tensor, rows: int) -> list[Tensor]:
    """The same blocks, transposed."""
    return [part.transpose(1, 2).contiguous() for part in x.split(rows, dim=1)]


class _Space:
    """Memory for one block of weights and one of products, used again for every block."""

    def __init__(self, like: Tensor, rows: int, columns: int) -> None:
        self.groups, _, self.d = like.shape
        self.flat = like.new_empty(self.groups * rows * columns)
        self.small = like.new_empty(self.groups * max(rows, columns) * self.d)
        self.shaped: dict[tuple[str, int, int], Tensor] = {}  # few, and making a view takes as long as a small product

    def weights(self, rows: int, columns: int) -> Tensor:
        return self._view("weights", self.flat, rows, columns)

    def product(self, rows: int) -> Tensor:
        return self._view("product", self.small, rows, self.d)

    def _view(self, name: str, flat: Tensor, rows: int, columns: int) -> Tensor:
        key = (name, rows, columns)
        if key not in self.shaped:
            self.shaped[key] = flat[: self.groups * rows * columns].view(self.groups, rows, columns)
        return self.shaped[key]
