"""What makes a step fit: sampling, smaller batches, recomputing, bfloat16; each traced before it is offered."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qgmil.bags.hints import flag
from qgmil.models.base import Aggregator
from qgmil.planning.curves import Curve
from qgmil.planning.memory import Estimate, estimate

#: Fewest instances that a sample is worth offering for.
LEAST_SAMPLE = 256
#: What fits does so with this share to spare.
SPARE = 0.05
#: Something that saves less than this share saves nothing.
WORTH = 0.03


@dataclass(frozen=True)
class Option:
    """An option with its value, as it is typed."""

    name: str
    value: str | int | bool

    @property
    def typed(self) -> str:
        """For the command line."""
        return flag(self.name) if self.value is True else f"{flag(self.name)} {self.value}"

    def __str__(self) -> str:
        return f"{self.typed} ({self.name}={self.value!r} in Python)"


@dataclass(frozen=True)
class Remedy:
    """Options that need less memory, and how much they need.

    Args:
        options: by name, e.g. ``{"sample": 20000}``.
        estimate: of the step with them.
    """

    options: dict[str, str | int | bool]
    estimate: Estimate

    @property
    def bytes(self) -> int:
        """Predicted peak of the tensors: where memory is scarce, the heap wastes none (`map_large_blocks`)."""
        return self.estimate.tensors

    def __str__(self) -> str:
        return " with ".join(str(Option(name, value)) for name, value in self.options.items())

    @property
    def typed(self) -> str:
        """For the command line."""
        return " ".join(Option(name, value).typed for name, value in self.options.items())


def find_remedies(
    model: Aggregator,
    sizes: Sequence[int],
    budget: int,
    *,
    training: bool,
    precision: str,
    device: str,
    sample_option: str | None = "sample",
) -> tuple[list[Remedy], list[Remedy]]:
    """What fits into a budget of bytes, alone or all together, and what helps but does not fit.

    Args:
        model: not compiled; stays as it is.
        sizes: of the batch that does not fit.
        sample_option: name of the option that draws at most so many instances of each bag.

    Returns:
        Remedies that fit, those that lose least first, and singles that save memory without fitting.
    """
    budget = int(budget * (1 - SPARE))
    settings: dict[str, Any] = {"training": training, "device": device}
    before = estimate(model, sizes, precision=precision, **settings)
    fit: list[Remedy] = []
    short: list[Remedy] = []
    options: dict[str, str | int | bool] = {}
    for name, value in _candidates(model, sizes, training, precision, device):
        alone = _with(model, sizes, {name: value}, precision, **settings)
        if alone.tensors > before.tensors * (1 - WORTH):
            continue
        options[name] = value
        (fit if alone.tensors <= budget else short).append(Remedy({name: value}, alone))
    if len(options) > 1 and not fit:
        together = _with(model, sizes, options, precision, **settings)
        (fit if together.tensors <= budget else short).append(Remedy(options, together))
    if sample_option is not None:
        sampled = largest_sample(model, sizes, budget, precision=precision, **settings)
        if sampled is not None:
            fit.append(Remedy({sample_option: max(sampled.sizes)}, sampled))
    return fit, short


def _candidates(
    model: Aggregator, sizes: Sequence[int], training: bool, precision: str, device: str
) -> Iterator[tuple[str, str | int | bool]]:
    if precision == "32-true":
        yield "precision", "bf16"
    if training and not model.checkpointing:
        yield "checkpointing", True
    if len(sizes) > 1:
        yield "batch_size", 1


def _with(
    model: Aggregator,
    sizes: Sequence[int],
    options: dict[str, str | int | bool],
    precision: str,
    *,
    training: bool,
    device: str,
) -> Estimate:
    if "checkpointing" in options:
        model = copy.copy(model)  # shares the weights
        model.checkpointing = True
    if "batch_size" in options:
        sizes = (max(sizes),)
    if "precision" in options:
        precision = "bf16-mixed"
    return estimate(model, sizes, training=training, precision=precision, device=device)


def largest_sample(
    model: Aggregator, sizes: Sequence[int], budget: int, *, training: bool, precision: str, device: str
) -> Estimate | None:
    """The estimate with the largest sample of every bag that fits (`max(sizes)` of it is that sample), or None.

    Memory is traced at three samples and the largest is found by bisection in between; a trace then confirms it.
    """

    def at(k: int) -> Estimate:
        capped = tuple(min(n, k) for n in sizes)
        return estimate(model, capped, training=training, precision=precision, device=device)

    low, high = LEAST_SAMPLE, max(sizes)
    if high <= low:
        return None
    seen = {k: at(k) for k in (low, (low + min(high, 16 * low)) // 2, min(high, 16 * low))}
    while max(seen) < high and seen[max(seen)].tensors <= budget:
        k = min(high, 4 * max(seen))
        seen[k] = at(k)
    for _ in range(4):
        fitting = [k for k in seen if seen[k].tensors <= budget]
        if not fitting:
            return None
        low = max(fitting)
        above = [k for k in seen if k > low]
        if not above:
            return seen[low]
        best = _bisect(Curve.fit(list(seen), [e.tensors for e in seen.values()]), budget, low, min(above))
        if best <= low * 1.02:
            break
        seen[best] = at(best)
    return seen[max(k for k in seen if seen[k].tensors <= budget)]


def _bisect(curve: Curve, budget: int, low: int, high: int) -> int:
    """The largest whole number from low to below high, rounded to two digits, whose value is within the budget."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if curve(middle) <= budget else (low, middle)
    step = 10 ** max(0, len(str(low)) - 2)
    return low // step * step
