"""The part of one process in a training that several work on together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from qgmil.errors import ConfigError
from qgmil.training.config import FitConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Which bags of each joint batch are this process's, and how much its mean loss counts.

    The bags of a joint batch are dealt out in turn. Gradients are averaged over processes, so that the mean loss of a
    process with k of the n bags of a step is multiplied by ``k world / n``: the average is then the gradient of the
    mean loss of all n. A process without a bag works on the first of the batch and counts it with 0.

    Args:
        rank: of this process, from 0.
        world: number of processes.
        bags: training bags of an epoch.
        batch_size: bags of a joint batch.
    """

    rank: int = 0
    world: int = 1
    bags: int = 0
    batch_size: int = 1

    def of(self, batch: list[T]) -> list[T]:
        """This process's part of a joint batch; its first item for a process that would have none."""
        return batch[self.rank :: self.world] or batch[:1]

    def weight(self, step: int, size: int) -> tuple[int, float]:
        """Of this process's `size` bags in a step of an epoch those that count, and the factor on its mean loss."""
        if self.world == 1:
            return size, 1.0
        joint = min(self.batch_size, self.bags - step * self.batch_size)
        own = len(range(self.rank, joint, self.world))
        return own, own * self.world / joint

    def seed(self, seed: int) -> int:
        """The seed of this process; that of the first is the one given."""
        return (seed + self.rank * 982_451_653) % 2**63

    def sum(self, values: list[float], device: torch.device) -> list[float]:
        """The sums of values over all processes, the same everywhere."""
        total = torch.tensor(values, dtype=torch.float64, device=device)
        if self.world > 1:
            dist.all_reduce(total)
        return total.tolist()

    def first(self, values: Mapping[str, float | None], device: torch.device) -> dict[str, float | None]:
        """The values of the first process, everywhere. What is None there is None, except that NaN stays NaN."""
        if self.world == 1:
            return dict(values)
        known = [[float("nan") if v is None else float(v), float(v is None)] for v in values.values()]
        sent = torch.tensor(known, dtype=torch.float64, device=device)
        dist.broadcast(sent, src=0)
        return {k: None if none else v for k, (v, none) in zip(values, sent.tolist(), strict=True)}


#: Of a process that trains alone.
ALL = Share()


def count_processes(config: FitConfig, device: str) -> int:
    """How many processes train one model: as many as devices are asked for; "auto" is all GPUs that get a bag.

    Raises:
        ConfigError: more than there are, or than a step has bags.
    """
    there = torch.cuda.device_count() if device == "cuda" else 1
    if config.devices == "auto":
        return max(1, min(there, config.batch_size))
    if config.devices > 1 and device != "cpu" and config.devices > there:
        raise ConfigError(f"devices = {config.devices}, but {device} has {there} here: choose at most that, or auto")
    if config.devices > config.batch_size:
        raise ConfigError(
            f"devices = {config.devices} with batch_size = {config.batch_size}: a step has fewer bags than devices, so "
            f"that some would never get one; choose a batch size of at least {config.devices}, or fewer devices"
        )
    return config.devices


def share_of_memory(config: FitConfig, device: str) -> int:
    """Bags of a step that one memory has to take: GPUs have their own, processes on the CPU have one together."""
    return math.ceil(config.batch_size / (count_processes(config, device) if device == "cuda" else 1))
