"""Linear layers whose matrix products come in few sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

#: Sizes between a number of rows and twice as many, and the rows up to which each number is a size of its own.
SIZES, LEAST = 16, 16


class Linear(nn.Linear):
    """`torch.nn.Linear` for instances: in bfloat16 on CPUs it works on rows in one of few numbers.

    PyTorch compiles a bfloat16 product for every shape that it meets, and keeps it. Bags differ in size and batches
    even more, so that without this most steps of an epoch compile all their products (which takes as long as, for small
    bags several times as long as computing them), and a process grows by some 10 MB with every size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(T, in_features) -> (T, out_features)``, or any number of leading axes."""
        return in_few_sizes(super().forward, input) if input.ndim == 2 else super().forward(input)


def in_few_sizes(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function that works row by row, applied to x ``(T, dim)`` with rows of zeros behind it where that pays."""
    more = filled(x)
    return function(more) if more.shape[0] == x.shape[0] else function(more)[: x.shape[0]]


def filled(x: Tensor) -> Tensor:
    """x ``(T, ...)`` in the dtype of products; where that is bfloat16 on a CPU, with zeros behind it to `next_size`."""
    x = compute_dtype(x)
    if torch.compiler.is_compiling() or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return x
    return with_zeros(x, next_size(x.shape[0]) - x.shape[0], dim=0)


def with_zeros(x: Tensor, extra: int, dim: int) -> Tensor:
    """x with so many zeros behind it along `dim`: as `torch.nn.functional.pad`, which fills all of the result first."""
    if not extra:
        return x
    shape = (*x.shape[:dim], extra, *x.shape[dim + 1 :])
    return torch.cat((x, x.new_zeros(shape)), dim=dim)


def next_size(rows: int, most: int | None = None) -> int:
    """The smallest size that is no smaller: multiples of a sixteenth of a power of two, or of `most` at most."""
    if rows <= LEAST:
        return rows
    unit = max(LEAST, 2 ** (rows - 1).bit_length() // (2 * SIZES))
    unit = unit if most is None else min(unit, most)
    return -(-rows // unit) * unit


def compute_dtype(x: Tensor) -> Tensor:
    """`x` in the dtype in which autocast computes matrix products, if it is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
