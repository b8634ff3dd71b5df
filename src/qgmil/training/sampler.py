"""Order and sampling of training bags: a function of (seed, epoch) alone, so that resuming repeats nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from qgmil.bags.bag import Bag, PackedBags
from qgmil.bags.dataset import BagDataset, collate, sample_instances
from qgmil.errors import QGMILError
from qgmil.training.share import ALL, Share


class EpochSampler(Sampler[tuple[int, int]]):
    """Shuffled ``(epoch, index)`` pairs.

    The epoch travels with the index to the loader's worker processes, where instance sampling needs it; Lightning
    calls `set_epoch` before each epoch.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        for index in torch.randperm(self.length, generator=generator).tolist():
            yield self.epoch, index


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch of one run."""
    return (seed * 1_000_003 + epoch * 7_919 + 17) % 2**63


class _Sampled(Dataset[Any]):
    """Bags by ``(epoch, index)``, with at most `k` instances.

    An error that a user caused comes back as a value and is raised where the batch is used (`raise_errors`): raised in
    a worker process, its message would arrive wrapped in a traceback.
    """

    def __init__(self, bags: BagDataset, k: int | None, seed: int) -> None:
        self.bags, self.k, self.seed = bags, k, seed

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, key: tuple[int, int]) -> Bag | QGMILError:
        epoch, index = key
        try:
            bag = self.bags[index]
        except QGMILError as error:
            return error
        return bag if self.k is None else sample_instances(bag, self.k, seed=self.seed, epoch=epoch)


class _Announced(Sampler[tuple[int, int]]):
    """An order whose every bag is announced a batch early: the disk works while the batch before is computed on.

    Only the bags of a store make use of it; the order stays as it is.
    """

    def __init__(self, order: EpochSampler | list[tuple[int, int]], bags: _Sampled, batch_size: int) -> None:
        self.order, self.bags, self.ahead = order, bags, batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        if isinstance(self.order, EpochSampler):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        waiting: deque[tuple[int, int]] = deque()
        for key in self.order:
            self.bags.bags.will_need([key[1]], rows=self.bags.k)
            waiting.append(key)
            if len(waiting) > self.ahead:
                yield waiting.popleft()
        yield from waiting


class _Shared(Sampler[list[tuple[int, int]]]):
    """The joint batches of an order, of each the part of one process; announced as by `_Announced`."""

    def __init__(self, order: EpochSampler, bags: _Sampled, batch_size: int, share: Share) -> None:
        self.sampler, self.bags, self.batch_size, self.share = order, bags, batch_size, share  # set_epoch: by Lightning

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        keys = list(self.sampler)
        starts = range(0, len(keys), self.batch_size)
        parts = [self.share.of(keys[start : start + self.batch_size]) for start in starts]
        for part, following in zip(parts, [*parts[1:], []], strict=True):
            self.bags.bags.will_need([index for _, index in following], rows=self.bags.k)
            yield part


class _Collate:
    """Picklable collation by packing."""

    def __init__(self, class_index: dict[str, int] | None) -> None:
        self.class_index = class_index

    def __call__(self, found: Sequence[Bag | QGMILError]) -> PackedBags | QGMILError:
        bags = []
        for bag in found:
            if isinstance(bag, QGMILError):
                return bag
            bags.append(bag)
        try:
            return collate(bags, self.class_index)
        except QGMILError as error:
            return error


def raise_errors(batch: PackedBags | QGMILError) -> PackedBags:
    """A batch as a loader gave it, or the error that took its place."""
    if isinstance(batch, QGMILError):
        raise batch
    return batch


def train_loader(
    bags: BagDataset,
    classes: Sequence[str],
    *,
    seed: int,
    sample: int | None = None,
    share: Share = ALL,
    **loading: Any,
) -> DataLoader[Any]:
    """Shuffled, packed training batches; `loading` is batch_size, workers and pin_memory.

    With a share, of each batch the bags of one process: order and instances are those of one process alone.
    """
    return _loader(_Sampled(bags, sample, seed), EpochSampler(len(bags), seed), classes, share=share, **loading)


def eval_loader(
    bags: BagDataset, classes: Sequence[str] | None, *, seed: int = 0, sample: int | None = None, **loading: Any
) -> DataLoader[Any]:
    """Packed batches in order; all instances unless `sample` says otherwise (always the same ones)."""
    in_order = [(0, i) for i in range(len(bags))]
    return _loader(_Sampled(bags, sample, seed), in_order, classes, **loading)


def _loader(
    bags: _Sampled,
    order: EpochSampler | list[tuple[int, int]],
    classes: Sequence[str] | None,
    *,
    batch_size: int,
    workers: int = 0,
    pin_memory: bool = False,
    share: Share = ALL,
) -> DataLoader[Any]:
    batches: dict[str, Any] = {"batch_size": batch_size, "sampler": _Announced(order, bags, batch_size)}
    if share.world > 1 and isinstance(order, EpochSampler):
        batches = {"batch_sampler": _Shared(order, bags, batch_size, share)}
    return DataLoader(
        bags,
        **batches,
        collate_fn=_Collate(None if classes is None else {c: i for i, c in enumerate(classes)}),
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # the loader's own draws must not shift the model's dropout
        pin_memory=pin_memory,
    )
