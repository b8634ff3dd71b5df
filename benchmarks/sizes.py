"""What does a bag cost whose size was not met before? Bags of a cohort all differ, and batches of them even more.

    python benchmarks/sizes.py [--models qgmil abmil_gated] [--instances 130 600 2000]

Training steps (forward, backward, AdamW) in one process: on bags of the same size, then on as many of new sizes near,
then on those again; medians. Plain is the same model with `torch.nn.Linear`'s own products and attention by PyTorch,
which is what a model without our layers would do. Memory is what the process has grown by over the new sizes.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
from cyclopts import Parameter, run
from measure import in_fresh_process, machine
from rich.console import Console
from rich.table import Table

from qgmil import PackedBags, create_model
from qgmil.layers import linear, segments
from qgmil.layers.kernels import bounded
from qgmil.planning.available import process_memory
from qgmil.training.device import autocast, choose_precision

IN_DIM, SPREAD = 1024, 60
Many = Parameter(consume_multiple=True, negative=())


@contextmanager
def plain() -> Iterator[None]:
    """Without sizes in common, and without our attention."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(linear, "next_size", lambda rows, most=None: rows))
        stack.enter_context(mock.patch.object(bounded, "next_size", lambda rows, most=None: rows))
        stack.enter_context(mock.patch.object(segments, "fits", lambda q, k: False))
        yield


def steps(model: str, precision: str, instances: int, ours: bool, count: int) -> dict[str, float]:
    """Median seconds of a step on a known size, on new ones and on those again, and bytes over the new ones."""
    torch.manual_seed(0)
    made = create_model(model, in_dim=IN_DIM, num_classes=2).train()
    optimizer = torch.optim.AdamW(made.parameters(), fused=True)

    def step(n: int) -> float:
        bags = PackedBags(torch.randn(n, IN_DIM), (n,), torch.zeros(1, dtype=torch.long))
        started = time.perf_counter()
        with autocast(choose_precision(precision, "cpu"), "cpu"):
            loss = made.loss(made(bags), bags.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - started

    sizes = [instances + i for i in random.Random(0).sample(range(1, SPREAD + 1), count)]
    with ExitStack() if ours else plain():
        for _ in range(2):
            step(instances)
        known = [step(instances) for _ in range(count)]
        before = process_memory()
        new = [step(n) for n in sizes]
        grown = process_memory() - before
        again = [step(n) for n in sizes]
    found = {"known": known, "new": new, "again": again}
    return {**{name: statistics.median(seconds) for name, seconds in found.items()}, "grown": float(grown)}


def sizes(
    *,
    models: Annotated[tuple[str, ...], Many] = ("qgmil", "abmil_gated"),
    instances: Annotated[tuple[int, ...], Many] = (130, 600, 2000),
    count: int = 20,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """Measure and print.

    Parameters
    ----------
    models
        Aggregators.
    instances
        Known size; the new ones are up to 60 larger.
    count
        Steps of each kind.
    json_file
        Write the figures here as well.
    """
    rows: list[dict[str, Any]] = []
    for model in models:
        for n in instances:
            for precision, ours in (("bf16", False), ("bf16", True), ("32", True)):
                found = in_fresh_process(steps, model, precision, n, ours, count)
                if found is None:
                    raise SystemExit(f"{model}, {n:,} instances: the process died, probably for want of memory")
                how = "float32" if precision == "32" else "bfloat16" if ours else "bfloat16, plain"
                rows.append({"model": model, "instances": n, "how": how, **found})
    console = Console(highlight=False)
    console.print(json.dumps(machine("cpu")), markup=False, soft_wrap=True)
    table = Table("model", "instances", "arithmetic", "known ms", "new ms", "again ms", "grown MB")
    for row in rows:
        seconds = (f"{1e3 * row[name]:.1f}" for name in ("known", "new", "again"))
        table.add_row(row["model"], f"{row['instances']:,}", row["how"], *seconds, f"{row['grown'] / 1e6:.0f}")
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": machine("cpu"), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    run(sizes)
