"""Time of a step, from a short calibration on the device it will run on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from qgmil.bags.bag import PackedBags
from qgmil.models.base import Aggregator
from qgmil.planning.device import autocast
from qgmil.planning.trace import trace_step

#: Instances of the steps that are timed, by kind of device; seconds of a step after which no larger one is, and of the
#: first run of a step (which does not count) after which there is only one more; bytes that no later step may take.
INSTANCES = {"cpu": (128, 768, 2048, 5120)}
INSTANCES_ELSEWHERE = (256, 4096, 16384)
ENOUGH, MOST_BYTES = 1.0, 2 * 1024**3
#: Times that an operation of attention takes of one of a matrix product: bounds within which small steps, of which
#: attention is a small part, are believed.
SLOWER = (1.0, 0.5, 0.7, 1.4, 2.0, 2.8, 4.0)


@dataclass(frozen=True)
class Rates:
    """What a step costs: ``seconds = steps * overhead + rest / rate + attention / attention_rate``.

    Args:
        overhead: seconds of a step that do not depend on its size.
        seconds_per_flop: of matrix products, everything else that grows with the instances included.
        seconds_per_attention_flop: of attention.
        at: instances of the steps that were timed.
        device, threads: where.
    """

    overhead: float
    seconds_per_flop: float
    seconds_per_attention_flop: float
    at: tuple[int, ...]
    device: str
    threads: int

    def seconds(self, flops: float, attention_flops: float, steps: int = 1) -> float:
        """Of so many steps with so much arithmetic in all."""
        rest = (flops - attention_flops) * self.seconds_per_flop
        return steps * self.overhead + rest + attention_flops * self.seconds_per_attention_flop

    @property
    def basis(self) -> str:
        """How the figures were found."""
        where = f"cpu, {self.threads} threads" if self.device == "cpu" else self.device
        return f"steps of {', '.join(f'{n:,}' for n in self.at)} instances timed here ({where}), scaled by arithmetic"

    @classmethod
    def fit(cls, rows: Sequence[tuple[int, int, int, float]], device: str) -> Self:
        """From (instances, flops, attention flops, seconds) of some steps; relative errors count."""
        from scipy.optimize import nnls

        table = np.array([(1.0, flops - attention, attention) for _, flops, attention, _ in rows])
        seconds = np.array([s for *_, s in rows])
        best: tuple[float, float, float, float] | None = None
        for slower in SLOWER:
            columns = np.stack([table[:, 0], table[:, 1] + slower * table[:, 2]], axis=1)
            scale = np.maximum(columns.max(axis=0), 1.0)
            (overhead, rate), error = nnls(columns / scale / seconds[:, None], np.ones(len(rows)))
            if best is None or error < best[0] - 1e-9:
                best = (float(error), float(overhead / scale[0]), float(rate / scale[1]), slower)
        assert best is not None
        _, overhead, rate, slower = best
        return cls(overhead, rate, slower * rate, tuple(n for n, *_ in rows), device, torch.get_num_threads())


def calibrate(model: Aggregator, *, largest: int, training: bool, precision: str, device: str) -> Rates:
    """Time some small steps of a model for real; some seconds, ten where a processor is slow.

    Args:
        model: is trained a little if `training`: give one that is not needed afterwards.
        largest: instances of the batch to plan for; no larger step is timed.
    """
    rows: list[tuple[int, int, int, float]] = []
    model = model.to(device).train(training)
    at = {min(n, largest) for n in INSTANCES.get(device, INSTANCES_ELSEWHERE)}
    for n in sorted(at if len(at) > 1 else {max(1, largest // 8), *at}):
        trace = trace_step(model, (n,), training=training, precision=precision, device=device)
        if trace.peak > MOST_BYTES and len(rows) > 1:
            break
        seconds = time_step(model, n, training=training, precision=precision, device=device)
        rows.append((n, trace.flops, trace.attention_flops, seconds))
        if seconds > ENOUGH and len(rows) > 1:
            break
    return Rates.fit(rows, device)


def time_step(model: Aggregator, instances: int, *, training: bool, precision: str, device: str) -> float:
    """The quicker of two steps, after one that does not count: other programs only ever slow a step down."""
    bags = PackedBags(torch.randn(instances, model.in_dim, device=device), (instances,))
    labels = torch.zeros(1, dtype=torch.long, device=device)
    learns = training and any(p.requires_grad for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6) if learns else None
    seconds: list[float] = []
    while len(seconds) < (2 if seconds and seconds[0] > ENOUGH else 3):
        _wait(device)
        started = time.perf_counter()
        _step(model, bags, labels, precision, device, optimizer)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _step(
    model: Aggregator,
    bags: PackedBags,
    labels: Tensor,
    precision: str,
    device: str,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    with torch.inference_mode(optimizer is None), autocast(precision, device):
        output = model(bags)
        loss = model.loss(output, labels)
    if optimizer is not None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
