"""Peak memory of training or predicting, for any aggregator, before it runs.

The step is traced at its real size on fake tensors (`trace`), so that there is no formula for each model: what an
aggregator allocates, keeps for its backward pass and frees is what counts. On CPU the C library's heap is played on top
(`heap`). Two things are beyond tracing: steps of very many operations (attention in blocks on a bag of 100,000) are
traced at smaller sizes and extrapolated, and models that fake tensors cannot follow are measured at small sizes
instead; `Estimate.method` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qgmil.errors import ConfigError, QGMILError
from qgmil.layers.kernels.bounded import ALIGNED
from qgmil.layers.linear import next_size
from qgmil.models.base import Aggregator
from qgmil.models.registry import create_model
from qgmil.planning.available import process_memory
from qgmil.planning.curves import Curve
from qgmil.planning.device import choose_device, choose_precision
from qgmil.planning.heap import PAGE, Heap, fixed_threshold, is_glibc
from qgmil.planning.trace import Trace, trace_step

#: Most operations of a trace, a few seconds of work, and batches that are traced whatever it takes: models may have
#: other ways for large bags than for small ones.
MOST_OPERATIONS, LEAST_TOP = 8_000, 12_288
#: Parts of the largest batch that can be traced, from whose memory that of larger ones is extrapolated.
PARTS = (1.0, 0.7)
#: Instances from which on a model's blocks are large enough that the heap holds none of them.
ALL_MAPPED = 16_384
#: Instances of batches that are computed for real where fake tensors cannot follow.
MEASURED = (512, 1024, 2048)
#: Allocations for which small objects outlive the tensor beside them on the heap, in prediction; in training a share of
#: those of a step, within bounds; steps until the heap has its shape. They are what comes nearest to measured processes
#: (benchmarks/planner.py).
LIFE_PREDICTION, LIFE_TRAINING, SHARE, STEPS = 5, (10, 50), 25, 5


@dataclass(frozen=True)
class Estimate:
    """What one step takes.

    Args:
        bytes: peak memory over that of the process before: on CPU resident memory, on CUDA that of tensors.
        tensors: peak of the tensors and of what operations take beside them; the rest of `bytes` is memory that the
            heap cannot give back.
        parameters, optimizer, features: bytes of the weights and buffers, of AdamW's two moments, of the batch.
        activations: the rest of `tensors`: intermediate results, gradients.
        flops: of matrix products and attention, in one step.
        attention_flops: those of attention alone.
        process: bytes of the process before the step (interpreter, libraries, data in memory), measured here.
        method: how the figures were found.
        sizes, training, precision, device: what they are for.
    """

    bytes: int
    tensors: int
    parameters: int
    optimizer: int
    features: int
    activations: int
    flops: int
    attention_flops: int
    process: int
    method: str
    sizes: tuple[int, ...]
    training: bool
    precision: str
    device: str

    @property
    def instances(self) -> int:
        """Of the whole batch."""
        return sum(self.sizes)


def peak_memory(
    model_name: str,
    in_dim: int,
    num_classes: int,
    sizes: Sequence[int],
    *,
    options: Mapping[str, Any] | None = None,
    training: bool = True,
    precision: str = "auto",
    device: str = "auto",
    checkpointing: bool = False,
    standardize: bool = True,
) -> Estimate:
    """Peak memory of one step on one batch.

    Args:
        model_name: one of `list_models()`.
        in_dim: features of an instance.
        num_classes: classes.
        sizes: instances of each bag of the batch.
        options: the model's own.
        training: a training step with AdamW; else a prediction.
        precision: "auto", "32", "bf16" or "16".
        device: "auto", "cpu", "cuda" or "mps".
        checkpointing: recompute blocks in the backward pass.
        standardize: features are standardised inside the model, as training does unless told otherwise.

    Raises:
        ConfigError: an unknown model, option, device or precision, or sizes below 1.
    """
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"cannot plan for bags of {tuple(sizes)} instances: give at least one bag of at least 1")
    with torch.random.fork_rng(devices=[]):
        model = create_model(
            model_name, in_dim=in_dim, num_classes=num_classes, standardize=standardize, **dict(options or {})
        )
    model.checkpointing = checkpointing
    device = choose_device(device)
    return estimate(model, sizes, training=training, precision=lightning_precision(precision, device), device=device)


def lightning_precision(name: str, device: str) -> str:
    """`choose_precision` that also takes what it gives.

    Raises:
        ConfigError: neither.
    """
    short = name.partition("-")[0]
    if short not in ("auto", "32", "bf16", "16"):
        raise ConfigError(f"unknown precision {name!r}: choose one of auto, 32, bf16, 16")
    return choose_precision(short, device)


def estimate(model: Aggregator, sizes: Sequence[int], *, training: bool, precision: str, device: str) -> Estimate:
    """As `peak_memory`, for a model that is there (not compiled); `precision` is Lightning's name."""
    asked = _Asked(model, tuple(sizes), training, precision, device)
    process = process_memory()
    found = _trace(asked)
    top, trace = found.parts[0]
    total = sum(asked.sizes)
    tensors = found.at(total, found.parts, "peak") + trace.compiled
    lost = _resident(trace, device) - trace.peak
    resident = tensors + round(lost * max(1.0, min(total, ALL_MAPPED) / top))
    flops, attention = (found.at(total, found.all, name) for name in ("flops", "attention_flops"))
    parameters = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) * trace.training
    features = 4 * total * model.in_dim
    return Estimate(
        bytes=resident,
        tensors=tensors,
        parameters=parameters,
        optimizer=moments,
        features=features,
        activations=max(0, tensors - parameters - moments - features),
        flops=flops,
        attention_flops=min(attention, flops),
        process=process,
        method=found.method,
        sizes=asked.sizes,
        training=training,
        precision=precision,
        device=device,
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    model: Aggregator
    sizes: tuple[int, ...]
    training: bool
    precision: str
    device: str

    def trace(self, instances: int | None = None, *, fake: bool = True) -> tuple[int, Trace]:
        """Trace the batch, or one of the same proportions; gives its instances as well."""
        sizes = self.sizes if instances is None else scaled(self.sizes, instances)
        found = trace_step(
            self.model, sizes, training=self.training, precision=self.precision, device=self.device, fake=fake
        )
        return sum(sizes), found


def scaled(sizes: Sequence[int], instances: int) -> tuple[int, ...]:
    """Sizes in the same proportions that add up to about so many instances.

    Large ones are sizes that products come in (`next_size`), for what is filled up would be extrapolated with the rest.
    """
    total = sum(sizes)
    wanted = [n * instances / total for n in sizes]
    if min(wanted) < 10 * ALIGNED:
        return tuple(max(1, round(n)) for n in wanted)
    found = [ALIGNED * round(n / ALIGNED) for n in wanted]
    found[found.index(max(found))] += next_size(sum(found)) - sum(found)
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Traces:
    """Instances and traces, the largest first, and how they were made; `probes` are too small for their memory."""

    parts: list[tuple[int, Trace]]
    method: str
    probes: tuple[tuple[int, Trace], ...] = ()

    @property
    def all(self) -> list[tuple[int, Trace]]:
        return [*self.parts, *self.probes]

    @staticmethod
    def at(total: int, parts: list[tuple[int, Trace]], name: str) -> int:
        """A figure of a trace at the full size: that of the trace there, or extrapolated."""
        if parts[0][0] == total:
            return int(getattr(parts[0][1], name))
        return round(Curve.fit([n for n, _ in parts], [getattr(trace, name) for _, trace in parts])(total))


def _trace(asked: _Asked) -> _Traces:
    total = sum(asked.sizes)
    try:
        if total <= LEAST_TOP:
            return _Traces([asked.trace()], "traced")
        probes = asked.trace(LEAST_TOP // 6), asked.trace(LEAST_TOP // 3)
        most = _largest_traceable(*probes)
        if most >= total:
            return _Traces([asked.trace()], "traced")
        parts = [asked.trace(round(part * most)) for part in PARTS]
    except QGMILError:
        raise
    except Exception:  # an operation that fake tensors do not have, or values that they do not
        parts = [asked.trace(n, fake=False) for n in sorted({min(n, total) for n in MEASURED}, reverse=True)]
        at = ", ".join(f"{n:,}" for n, _ in reversed(parts))
        return _Traces(parts, f"measured at {at} instances and extrapolated: the model cannot be traced")
    at = " and ".join(f"{n:,}" for n, _ in reversed(parts))
    return _Traces(parts, f"traced at {at} instances and extrapolated: a step has very many operations", probes)


def _largest_traceable(small: tuple[int, Trace], large: tuple[int, Trace]) -> float:
    """Instances whose trace stays below the limit, by how operations grow between two small batches."""
    (n0, first), (n1, second) = small, large
    growth = math.log(max(1.01, second.operations / first.operations)) / math.log(n1 / n0)
    return max(LEAST_TOP, n1 * (MOST_OPERATIONS / second.operations) ** (1 / growth))


def _resident(trace: Trace, device: str) -> int:
    """Peak resident memory: that of the tensors, and on CPU what the heap makes of it."""
    if device != "cpu" or not is_glibc():
        return trace.peak
    life = LIFE_PREDICTION
    if trace.training:
        least, most = LIFE_TRAINING
        life = max(least, min(most, sum(nbytes >= PAGE for _, nbytes in trace.events) // SHARE))
    heap = Heap(life, fixed_threshold())
    heap.play(trace.steps(STEPS))
    return heap.peak
