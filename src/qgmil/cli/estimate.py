"""The memory that training on checked bags would take, for `qgmil check`."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qgmil.bags.problems import Problem

if TYPE_CHECKING:
    from qgmil.bags.check import CheckReport


@dataclass(frozen=True)
class TrainingMemory:
    """What a step of training with default settings takes at most: that on a batch of the largest bags.

    Args:
        model, precision, device: as training would choose them here.
        sizes: instances of each bag of that batch.
        bytes: the estimate.
        available: bytes that the device has; 0: unknown.
    """

    model: str
    precision: str
    device: str
    sizes: tuple[int, ...]
    bytes: int
    available: int

    def __str__(self) -> str:
        have = f" of {self.available / 1e9:,.1f} GB" if self.available else ""
        largest = f"the {len(self.sizes)} largest bags ({sum(self.sizes):,} instances)"
        return f"about {self.bytes / 1e9:,.2f} GB{have} on {self.device}: {self.model}, {self.precision}, {largest}"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "sizes": list(self.sizes)}

    def warning(self) -> Problem | None:
        """That the device has too little, if it has."""
        if not self.available or self.bytes <= self.available:
            return None
        message = (
            f"training takes about {self.bytes / 1e9:,.1f} GB and {self.device} has {self.available / 1e9:,.1f} GB; "
            "train with fewer bags a step (--batch-size) or on fewer instances a bag (--sample)"
        )
        return Problem("memory", None, message)


def training_memory(report: CheckReport) -> TrainingMemory | None:
    """The estimate; None where there is nothing to train on."""
    if report.width is None or len(report.classes) < 2:
        return None
    try:
        planning = importlib.import_module("qgmil.planning.memory")
    except ModuleNotFoundError:
        return None
    from qgmil.training.config import TrainConfig
    from qgmil.training.device import choose_device, choose_precision

    config = TrainConfig.build({})
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device).partition("-")[0]
    sizes = tuple(sorted(report.sizes, reverse=True)[: config.batch_size])
    estimate = planning.peak_memory(
        config.model,
        report.width,
        len(report.classes),
        sizes,
        options=config.options,
        training=True,
        precision=precision,
        device=device,
    )
    return TrainingMemory(config.model, precision, device, sizes, int(estimate.bytes), _memory_of(device))


def _memory_of(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    from qgmil.bags.check.pool import physical_memory

    return physical_memory()
