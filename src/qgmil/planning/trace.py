"""A training step or a prediction of any aggregator, traced: its memory and its arithmetic."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qgmil.bags.bag import PackedBags
from qgmil.models.base import Aggregator
from qgmil.planning.device import autocast
from qgmil.planning.tape import COMPILED_BYTES, FREED, Event, Tape

#: Moments of AdamW, in the dtype of the parameters.
MOMENTS = 2


@dataclass(frozen=True, eq=False)
class Trace:
    """What a step does, once the optimiser has its moments and the gradients of the step before are still there.

    Args:
        before: blocks that are there before the step: parameters, buffers, gradients, moments, features.
        events: blocks of the step itself, in order.
        follows: gradients at the end of the step by those at its begin (keys of blocks).
        flops: of matrix products and attention, recomputation included.
        attention_flops: those of attention alone (and of batched matrix products).
        operations: how many there were.
        training: with loss and backward pass.
        compiled: bytes that stay in the process of the products that were compiled for this batch.
    """

    before: tuple[Event, ...]
    events: tuple[Event, ...]
    follows: dict[int, int]
    flops: int
    attention_flops: int
    operations: int
    training: bool
    compiled: int = 0

    @property
    def peak(self) -> int:
        """Most bytes of tensors at any time."""
        sizes = dict(self.before)
        now = most = sum(sizes.values())
        for key, nbytes in self.events:
            if nbytes == FREED:
                now -= sizes.pop(key, 0)
            else:
                sizes[key] = nbytes
                now += nbytes
                most = max(most, now)
        return most

    def steps(self, count: int) -> Iterator[Event]:
        """The tape of several steps in a row: each frees the gradients of the one before."""
        yield from self.before
        shift = 1 + max((key for key, _ in (*self.before, *self.events)), default=0)
        names = {key: key for key, _ in self.before}
        for step in range(count):
            alive = set(names.values())
            for key, nbytes in self.events:
                name = names.get(key, key + step * shift)
                alive.discard(name) if nbytes == FREED else alive.add(name)
                yield name, nbytes
            kept = {names[key] for key in names} | {new + step * shift for new in self.follows.values()}
            yield from ((name, FREED) for name in alive - kept)
            names |= {old: new + step * shift for old, new in self.follows.items()}


def trace_step(
    model: Aggregator,
    sizes: Sequence[int],
    *,
    training: bool,
    precision: str,
    device: str,
    fake: bool = True,
) -> Trace:
    """Trace one step on a batch; the model stays as it is.

    Args:
        model: not compiled.
        sizes: instances of each bag of the batch; features are float32.
        training: forward, loss and backward with AdamW around it, if the model has anything to train; else a prediction
            in inference mode.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        fake: without memory or computing; else for real.

    Raises:
        Exception: whatever an operation raises that fake tensors cannot follow.
    """
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    shapes = FakeTensorMode()
    tape = Tape(fake=fake, device=device, sizes=tuple(sizes))
    if not fake:
        with torch.random.fork_rng():
            return _run(copy.deepcopy(model).to(device), training, precision, device, tape)
    with FakeCopyMode(shapes):
        model = copy.deepcopy(model)
    with shapes, _without_collector():
        _move(model, device)
        return _run(model, training, precision, device, tape)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Thousands of small fake tensors set Python's cyclic collector going, which takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _move(model: nn.Module, device: str) -> None:
    """`model.to(device)` for fake weights."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.device.type != device:
                module._parameters[name] = nn.Parameter(torch.empty_like(weight, device=device), weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type != device:
                module._buffers[name] = torch.empty_like(buffer, device=device)


def _run(model: Aggregator, training: bool, precision: str, device: str, tape: Tape) -> Trace:
    model.train(training)
    training = training and any(p.requires_grad for p in model.parameters())
    sizes = tape.sizes
    features = torch.zeros(sum(sizes), model.in_dim, device=device)
    labels = torch.zeros(len(sizes), dtype=torch.long, device=device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    kept: list[Tensor] = [*model.parameters(), *model.buffers(), features, labels]
    gradients: list[int] = []
    if training:
        kept += [torch.empty_like(p) for p in parameters for _ in range(MOMENTS)]
        for p in parameters:
            p.grad = torch.empty_like(p)
    for tensor in kept:
        tape.keep(tensor)
    if training:
        gradients = [tape.keep(p.grad) for p in parameters if p.grad is not None]
    before = tuple(tape.events)
    tape.events.clear()
    with tape:
        with autocast(precision, device), contextlib.nullcontext() if training else torch.inference_mode():
            output = model(PackedBags(features, sizes, labels))
            loss = model.loss(output, labels) if training else None
        if loss is not None:
            for p in parameters:
                p.grad = None
            loss.backward()
    follows = {}
    if training:
        follows = {old: tape.keep(p.grad) for old, p in zip(gradients, parameters, strict=True) if p.grad is not None}
    events = tuple(tape.events)
    compiled = COMPILED_BYTES * len(tape.compiled)
    return Trace(before, events, follows, tape.flops, tape.attention_flops, tape.operations, training, compiled)
