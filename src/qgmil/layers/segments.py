"""Softmax attention within each bag of a packed batch: one function, several backends, memory linear in instances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from qgmil.errors import ConfigError
from qgmil.layers.kernels.bounded import bounded_attention, fits

#: Entries of the attention map that a block of queries aims at, and the least rows of one.
BLOCK_ENTRIES, BLOCK_ROWS = 2**19, 32


@torch.compiler.disable  # a compiled graph would be made anew for every bag size
def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, sizes: Sequence[int], dropout: float = 0.0, *, backend: str | None = None
) -> Tensor:
    """Softmax attention within each bag, never across bags.

    Args:
        q: queries ``(T, H, d)``.
        k: keys ``(T, G, d)``; G divides H (grouped-query attention, 2305.13245): head h uses key h // (H / G).
        v: values ``(T, G, d)``.
        sizes: instances of each bag.
        dropout: probability of dropping an attention weight.
        backend: one of `BACKENDS`; None chooses by device, dtype and shape (`choose_backend`).

    Returns:
        ``(T, H, d)``.

    Raises:
        ConfigError: an unknown backend.
    """
    name = choose_backend(q, k, dropout) if backend is None else backend
    if name not in BACKENDS:
        raise ConfigError(f"unknown attention backend {name!r}: choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name](q, k, v, tuple(sizes), dropout)


def choose_backend(q: Tensor, k: Tensor, dropout: float = 0.0) -> str:
    """The fastest backend that can take these queries and keys."""
    if q.device.type == "cuda":
        half = q.dtype in (torch.float16, torch.bfloat16)
        return "varlen" if half and dropout == 0.0 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256 else "sdpa"
    if dropout > 0.0:
        return "blockwise"  # fused kernels with dropout exist for CUDA alone
    return "bounded" if fits(q, k) else "sdpa"


def attention_blocks(q: Tensor, k: Tensor, entries: int = BLOCK_ENTRIES) -> Iterator[tuple[int, Tensor]]:
    """The attention map of one bag in blocks of its rows, for statistics that need every weight.

    Args:
        q: queries ``(n, H, d)`` of one bag.
        k: keys ``(n, G, d)``.
        entries: weights that a block aims at; memory is that much and never n x n.

    Yields:
        The first row of a block and its weights ``(H, rows, n)``, each row summing to 1, in at least float32.
    """
    keys = _expand(k, q.shape[1]).permute(1, 2, 0)  # (H, d, n)
    start = 0
    for block in q.transpose(0, 1).split(_rows_of_block(q.shape[1], k.shape[0], entries), dim=1):
        scores = block @ keys / math.sqrt(q.shape[-1])
        yield start, _widened(scores).softmax(dim=-1)
        start += block.shape[1]


def _eager(q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...], dropout: float) -> Tensor:
    """The definition, map and all: quadratic in memory, for reference."""

    def attend(qh: Tensor, kh: Tensor, vh: Tensor) -> Tensor:
        weights = _widened(qh @ kh.transpose(1, 2) / math.sqrt(qh.shape[-1])).softmax(dim=-1)
        return F.dropout(weights, dropout).to(vh.dtype) @ vh

    return _each_bag(attend, q, k, v, sizes)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...], dropout: float) -> Tensor:
    """PyTorch's fused attention, bag by bag.

    On CUDA its kernels want heads of a multiple of 8 channels, and what does not fit takes a quadratic path: such heads
    are padded with zeros, which change neither products nor results.
    """
    width = q.shape[-1]
    if q.device.type == "cuda" and width % 8:
        q, k, v = (F.pad(x, (0, -width % 8)) for x in (q, k, v))

    def attend(qh: Tensor, kh: Tensor, vh: Tensor) -> Tensor:
        qh, kh, vh = (x.unsqueeze(0) for x in (qh, kh, vh))
        return F.scaled_dot_product_attention(qh, kh, vh, dropout_p=dropout, scale=width**-0.5).squeeze(0)

    return _each_bag(attend, q, k, v, sizes)[..., :width]


def _blockwise(q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...], dropout: float) -> Tensor:
    """Blocks of queries one after the other, recomputed in the backward pass: linear memory whatever the kernel."""

    def attend(qh: Tensor, kh: Tensor, vh: Tensor) -> Tensor:
        blocks = [
            checkpoint(F.scaled_dot_product_attention, block, kh, vh, dropout_p=dropout, use_reentrant=False)
            for block in qh.split(_rows_of_block(qh.shape[0], kh.shape[1]), dim=1)
        ]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    return _each_bag(attend, q, k, v, sizes)


def _varlen(q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...], dropout: float) -> Tensor:
    """PyTorch's variable-length flash attention: all bags in one kernel. CUDA, float16 or bfloat16, no dropout."""
    if dropout:
        raise ConfigError("the attention backend 'varlen' has no dropout: leave the choice of backend to us")
    from torch.nn.attention.varlen import varlen_attn

    offsets = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32).to(q.device, non_blocking=True)
    k, v = _expand(k, q.shape[1]), _expand(v, q.shape[1])
    longest = max(sizes)
    return varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), offsets, offsets, longest, longest)  # type: ignore[return-value]


def _bounded(q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...], dropout: float) -> Tensor:
    if dropout or not fits(q, k):
        raise ConfigError(
            "the attention backend 'bounded' is for bfloat16 on CPU with bounded logits and no dropout: leave the "
            "choice of backend to us"
        )
    return bounded_attention(q, k, v, sizes)


Attend = Callable[[Tensor, Tensor, Tensor, tuple[int, ...], float], Tensor]
BACKENDS: dict[str, Attend] = {
    "eager": _eager,
    "sdpa": _sdpa,
    "blockwise": _blockwise,
    "bounded": _bounded,
    "varlen": _varlen,
}


def _each_bag(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...]
) -> Tensor:
    """Attend bag by bag; `attend` maps ``(H, n, d)`` queries, keys and values to ``(H, n, d)``."""
    # Expanding keys keeps the fused kernels, whose memory is linear; their own grouped path may not be.
    k, v = _expand(k, q.shape[1]), _expand(v, q.shape[1])
    bags = zip(*(x.split(sizes) for x in (q, k, v)), strict=True)
    parts = [attend(*(x.transpose(0, 1) for x in bag)).transpose(0, 1) for bag in bags]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _expand(x: Tensor, heads: int) -> Tensor:
    """Keys or values ``(n, G, d)`` repeated for the query heads of their group: ``(n, H, d)``."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _rows_of_block(heads: int, keys: int, entries: int = BLOCK_ENTRIES) -> int:
    return max(BLOCK_ROWS, entries // (heads * keys))


def _widened(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
