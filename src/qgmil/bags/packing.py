"""The door of every aggregator: packed, dense with a mask, single or nested input becomes `PackedBags`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qgmil.bags.bag import Bag, PackedBags
from qgmil.errors import BagError

BagsLike = PackedBags | Bag | Sequence[Bag] | Tensor


@dataclass(frozen=True)
class Layout:
    """How the caller's bags were laid out, so that per-instance results go back the same way."""

    kind: Literal["packed", "dense", "nested"]
    valid: Tensor | None = None  # (B, N) bool, for dense input

    def restore(self, rows: Tensor, bags: PackedBags) -> Tensor:
        """Per-instance values ``(T, ...)`` in the caller's layout; zero where a dense input is padding."""
        if self.kind == "dense":
            assert self.valid is not None
            dense = rows.new_zeros((*self.valid.shape, *rows.shape[1:]))
            return dense.masked_scatter(self.valid.reshape(*self.valid.shape, *[1] * (rows.ndim - 1)), rows)
        if self.kind == "nested":
            return torch.nested.nested_tensor_from_jagged(rows, offsets=bags.offsets.long())
        return rows


def pack(bags: BagsLike, mask: Tensor | None = None) -> tuple[PackedBags, Layout]:
    """Turn any accepted input into packed bags.

    Args:
        bags: `PackedBags`, a `Bag` or several, a dense tensor ``(B, N, D)``, one bag ``(N, D)``, or a nested
            jagged tensor.
        mask: for dense input, ``(B, N)`` of bool, int or float; nonzero means valid. What lies at invalid
            positions, even NaN, is never read.

    Raises:
        BagError: an empty bag, a mask that does not fit, or a mask for input that needs none.
    """
    if isinstance(bags, Tensor):
        if bags.is_nested:
            _no_mask(mask, "a nested tensor")
            values, offsets = bags.values(), bags.offsets()  # type: ignore[attr-defined]
            return PackedBags(values, tuple(offsets.diff().tolist())), Layout("nested")
        if not bags.is_floating_point():
            raise BagError(f"features are {bags.dtype}; convert them to a floating-point type")
        if bags.ndim == 2 and mask is not None and mask.ndim == 1:
            packed, _ = _pack_dense(bags[None], mask[None])
            return packed, Layout("packed")
        if bags.ndim == 2:
            _no_mask(mask, "one bag (N, D)")
            return PackedBags(bags, (bags.shape[0],)), Layout("packed")
        if bags.ndim == 3:
            return _pack_dense(bags, mask)
        raise BagError(f"features must be (N, D) or (B, N, D), got shape {tuple(bags.shape)}")
    _no_mask(mask, "packed bags")
    if isinstance(bags, PackedBags):
        return bags, Layout("packed")
    return PackedBags.from_bags([bags] if isinstance(bags, Bag) else list(bags)), Layout("packed")


def _no_mask(mask: Tensor | None, what: str) -> None:
    if mask is not None:
        raise BagError(f"a mask belongs to dense input (B, N, D); {what} has no padding")


def _pack_dense(dense: Tensor, mask: Tensor | None) -> tuple[PackedBags, Layout]:
    batch, length, width = dense.shape
    if mask is None:
        valid = torch.ones(batch, length, dtype=torch.bool, device=dense.device)
        return PackedBags(dense.reshape(-1, width), (length,) * batch), Layout("dense", valid)
    if tuple(mask.shape) != (batch, length):
        raise BagError(f"the mask has shape {tuple(mask.shape)} but the features are (B, N, D) = {tuple(dense.shape)}")
    valid = mask.to(dense.device) != 0
    sizes = tuple(valid.sum(dim=1).tolist())
    for i, size in enumerate(sizes):
        if size == 0:
            raise BagError(f"bag {i} of the batch is empty: its mask has no valid instance")
    return PackedBags(dense[valid], sizes), Layout("dense", valid)
