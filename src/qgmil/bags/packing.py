"""The door of every aggregator: packed, dense with a mask, single or nested input becomes `PackedBags`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qgmil.bags.bag import Bag, PackedBags
from qgmil.errors import BagError

BagsLike = PackedBags | Bag | Sequence[Bag] | Sequence[Tensor] | Tensor


@dataclass(frozen=True)
class Layout:
    """How the caller's bags were laid out, so that per-instance results go back the same way."""

    valid: Tensor | None = None  # bool: (B, N) or (N,) for dense input; for nested input with holes (S,), its values
    jagged: tuple[Tensor, Tensor | None] | None = None  # offsets and lengths of nested input

    def restore(self, rows: Tensor) -> Tensor:
        """Per-instance values ``(T, ...)`` in the caller's layout; zero at padding and in holes."""
        if self.valid is not None:
            full = rows.new_zeros((*self.valid.shape, *rows.shape[1:]))
            rows = full.masked_scatter(self.valid.reshape(*self.valid.shape, *[1] * (rows.ndim - 1)), rows)
        if self.jagged is not None:
            offsets, lengths = self.jagged
            return torch.nested.nested_tensor_from_jagged(rows, offsets=offsets, lengths=lengths)
        return rows


def pack(bags: BagsLike, mask: Tensor | None = None) -> tuple[PackedBags, Layout]:
    """Turn any accepted input into packed bags.

    Args:
        bags: `PackedBags`, a `Bag` or several, a dense tensor ``(B, N, D)``, one bag ``(N, D)`` or a list of such, or
            a nested jagged tensor (with holes too, as `torch.nested.narrow` makes them).
        mask: for dense input, ``(B, N)`` or, for one bag, ``(N,)`` of bool, int or float; nonzero means valid. What
            lies at invalid positions, even NaN, is never read.

    Raises:
        BagError: an empty bag, a mask that does not fit, a mask for input that needs none, or a nested tensor that
            is not jagged along its instances.
    """
    if isinstance(bags, Tensor):
        if not bags.is_floating_point():
            raise BagError(f"features are {bags.dtype}; convert them to a floating-point type")
        if bags.is_nested:
            _no_mask(mask, "a nested tensor")
            return _pack_nested(bags)
        if bags.ndim == 2 and mask is not None and mask.ndim == 1:
            packed, layout = _pack_dense(bags[None], mask[None])
            assert layout.valid is not None
            return packed, Layout(layout.valid[0])
        if bags.ndim == 2:
            _no_mask(mask, "one bag (N, D)")
            return PackedBags(bags, (bags.shape[0],)), Layout()
        if bags.ndim == 3:
            return _pack_dense(bags, mask)
        raise BagError(f"features must be (N, D) or (B, N, D), got shape {tuple(bags.shape)}")
    _no_mask(mask, "packed bags")
    if isinstance(bags, PackedBags):
        return bags, Layout()
    several: Sequence[Bag | Tensor] = [bags] if isinstance(bags, Bag) else bags
    each = [b if isinstance(b, Bag) else Bag(b, bag_id=str(i)) for i, b in enumerate(several)]
    return PackedBags.from_bags(each), Layout()


def _no_mask(mask: Tensor | None, what: str) -> None:
    if mask is not None:
        raise BagError(f"a mask belongs to dense input: (B, N) for (B, N, D), (N,) for one bag (N, D); {what} has none")


def _pack_nested(nested: Tensor) -> tuple[PackedBags, Layout]:
    if nested.layout != torch.jagged:
        raise BagError(
            "a nested tensor must be jagged: make it with torch.nested.nested_tensor(bags, layout=torch.jagged), "
            "or give a list of Bag"
        )
    if nested.ndim != 3 or nested._ragged_idx != 1:  # type: ignore[attr-defined]
        raise BagError("a nested tensor must be (B, instances, D), jagged along the instances")
    values, offsets = nested.values(), nested.offsets()  # type: ignore[attr-defined]
    lengths: Tensor | None = nested.lengths()  # type: ignore[attr-defined]
    if lengths is None:
        return PackedBags(values, tuple(offsets.diff().tolist())), Layout(jagged=(offsets, None))
    # With holes, bag b is rows offsets[b] to offsets[b] + lengths[b] of the values, and the rows between are nobody's.
    starts, at = offsets[:-1].contiguous(), torch.arange(values.shape[0], device=values.device)
    bag = torch.searchsorted(starts, at, right=True) - 1
    valid = (bag >= 0) & (at < (starts + lengths)[bag])
    return PackedBags(values[valid], tuple(lengths.tolist())), Layout(valid, (offsets, lengths))


def _pack_dense(dense: Tensor, mask: Tensor | None) -> tuple[PackedBags, Layout]:
    batch, length, width = dense.shape
    if mask is None:
        valid = torch.ones(batch, length, dtype=torch.bool, device=dense.device)
        return PackedBags(dense.reshape(-1, width), (length,) * batch), Layout(valid)
    if tuple(mask.shape) != (batch, length):
        raise BagError(f"the mask has shape {tuple(mask.shape)} but the features are (B, N, D) = {tuple(dense.shape)}")
    valid = mask.to(dense.device) != 0
    sizes = tuple(valid.sum(dim=1).tolist())
    for i, size in enumerate(sizes):
        if size == 0:
            raise BagError(f"bag {i} of the batch is empty: its mask has no valid instance")
    return PackedBags(dense[valid], sizes), Layout(valid)
