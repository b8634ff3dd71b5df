"""A plan: memory and time of training and inference, whether they fit, and what would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qgmil.bags.dataset import BagDataset
from qgmil.models.base import Aggregator
from qgmil.models.registry import create_model
from qgmil.planning.available import available_memory, process_memory
from qgmil.planning.batches import Batch, all_sizes, largest_batch
from qgmil.planning.curves import Curve
from qgmil.planning.device import choose_device
from qgmil.planning.memory import Estimate, estimate, lightning_precision
from qgmil.planning.remedies import Remedy, find_remedies
from qgmil.planning.timing import Rates, calibrate
from qgmil.planning.trace import trace_step

#: Bags a step with a manifest, as in training.
BATCH_SIZE = 4
#: Instances of the steps whose arithmetic an epoch's is interpolated from.
ARITHMETIC = (256, 1024, 4096)


@dataclass(frozen=True)
class Phase:
    """Training or inference.

    Args:
        name: "training" or "inference".
        estimate: of the largest batch.
        rates: of a short calibration, or None.
        epoch: seconds over all bags, or None.
        fit, short: remedies if it does not fit.
    """

    name: str
    estimate: Estimate
    rates: Rates | None
    epoch: float | None
    fit: list[Remedy]
    short: list[Remedy]

    @property
    def seconds(self) -> float | None:
        """Of one step on the largest batch."""
        if self.rates is None:
            return None
        return self.rates.seconds(self.estimate.flops, self.estimate.attention_flops)

    def verdict(self, free: int | None) -> str:
        """Whether it fits into so many bytes: "fits", "tight" (where the heap must not waste any), "does not fit"."""
        if free is None:
            return "unknown"
        if self.estimate.tensors > free:
            return "does not fit"
        return "fits" if self.estimate.bytes <= free else "tight"


@dataclass(frozen=True)
class Plan:
    """What to expect.

    Args:
        model: name of the aggregator.
        batch: the largest batch.
        phases: training and inference.
        available: bytes on the device; None: unknown.
        held: bytes of the bags that training keeps in memory.
        process: bytes that the process has before, on CPU.
        notes: how the figures were found.
    """

    model: str
    batch: Batch
    phases: tuple[Phase, ...]
    available: int | None
    held: int
    process: int
    notes: tuple[str, ...]

    @property
    def free(self) -> int | None:
        """What is available beside the bags that are kept in memory."""
        return None if self.available is None else max(0, self.available - self.held)

    @property
    def fits(self) -> bool:
        """Whether training does."""
        return self.phases[0].verdict(self.free) != "does not fit"


def make_plan(
    model_name: str,
    bags: BagDataset | Sequence[int],
    *,
    in_dim: int | None = None,
    num_classes: int | None = None,
    batch_size: int | None = None,
    sample: int | None = None,
    options: Mapping[str, Any] | None = None,
    standardize: bool = True,
    checkpointing: bool = False,
    precision: str = "auto",
    device: str = "auto",
    time: bool = True,
) -> Plan:
    """Plan for the largest bags of a data set, or for a batch of given sizes.

    Args:
        bags: bags, whose width, classes and sizes then count, kept in memory or not; or the sizes of one batch.
        in_dim, num_classes: default to those of the bags, else to 1024 and 2.
        batch_size: bags a step; default 4 as in training. Of given sizes all are one batch.
        sample: most instances a bag in training.
        time: also calibrate on the device.

    Raises:
        ConfigError: an unknown model, option, device or precision.
        ReadError: files whose headers cannot be read.
    """
    device = choose_device(device)
    precision = lightning_precision(precision, device)
    batch, sizes = _sizes(bags, batch_size or BATCH_SIZE)
    if isinstance(bags, BagDataset):
        in_dim, num_classes = in_dim or bags.width, num_classes or max(2, len(bags.classes))
    with torch.random.fork_rng(devices=[]):
        model = create_model(
            model_name,
            in_dim=in_dim or 1024,
            num_classes=num_classes or 2,
            standardize=standardize,
            **dict(options or {}),
        )
    model.checkpointing = checkpointing
    available, process = available_memory(device), process_memory() if device == "cpu" else 0
    held = bags.bytes_on_disk() if isinstance(bags, BagDataset) and bags.keeps_in_memory and device == "cpu" else 0
    free = None if available is None else max(0, available - held)
    asked = _Asked(model, precision, device, free, batch_size or BATCH_SIZE, time)
    phases = []
    for training in (True, False):
        most = sample if training and sample else max(batch.sizes)
        capped = [min(n, most) for n in batch.sizes]
        phases.append(_phase(asked, training, capped, [min(n, most) for n in sizes]))
    return Plan(model_name, batch, tuple(phases), available, held, process, _notes(phases))


@dataclass(frozen=True, eq=False)
class _Asked:
    model: Aggregator
    precision: str
    device: str
    free: int | None
    batch_size: int
    time: bool


def _sizes(bags: BagDataset | Sequence[int], batch_size: int) -> tuple[Batch, list[int]]:
    """The largest batch, and the sizes of all bags (none if only a batch was given)."""
    if not isinstance(bags, BagDataset):
        return Batch.of([""] * len(bags), bags), []
    sizes = all_sizes(bags)
    batch = largest_batch(bags, batch_size)
    assert batch is not None  # all sizes are known
    return batch, sizes


def _phase(asked: _Asked, training: bool, batch: Sequence[int], sizes: Sequence[int]) -> Phase:
    settings: dict[str, Any] = {"training": training, "precision": asked.precision, "device": asked.device}
    found = estimate(asked.model, batch, **settings)
    fit: list[Remedy] = []
    short: list[Remedy] = []
    if asked.free is not None and found.tensors > asked.free:
        option = "sample" if training else "eval_sample"
        fit, short = find_remedies(asked.model, batch, asked.free, sample_option=option, **settings)
    rates, epoch = None, None
    if asked.time:
        rates = calibrate(_copy(asked.model), largest=sum(batch), **settings)
        epoch = _epoch(asked, sizes, rates, settings) if sizes else None
    return Phase("training" if training else "inference", found, rates, epoch, fit, short)


def _copy(model: Aggregator) -> Aggregator:
    config = model.config
    copied = create_model(config["name"], in_dim=model.in_dim, num_classes=model.num_classes, **config["options"])
    copied.checkpointing = model.checkpointing
    return copied


def _epoch(asked: _Asked, sizes: Sequence[int], rates: Rates, settings: dict[str, Any]) -> float:
    """Seconds over all bags; their arithmetic is interpolated in 1, N and N^2."""
    at = sorted({min(n, max(sizes)) for n in ARITHMETIC})
    traces = [trace_step(asked.model, (n,), **settings) for n in at]
    flops, attention = (
        Curve.fit(at, [float(getattr(t, name)) for t in traces]) for name in ("flops", "attention_flops")
    )
    total, attended = (sum(max(0.0, curve(n)) for n in sizes) for curve in (flops, attention))
    return rates.seconds(total, attended, steps=-(-len(sizes) // asked.batch_size))


def _notes(phases: Sequence[Phase]) -> tuple[str, ...]:
    notes = [
        f"{phase.name}: memory is {phase.estimate.method}" for phase in phases if phase.estimate.method != "traced"
    ]
    if phases[0].rates is not None:
        notes.append(f"time is an estimate: {phases[0].rates.basis}; reading the bags is not in it")
    return tuple(notes)
