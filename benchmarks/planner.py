"""Predicted against measured peak memory, one fresh process a figure. Prints Markdown, or JSON with --json.

    python benchmarks/planner.py [--instances 1000 4000 10000 30000] [--models qgmil abmil_gated] [--steps 5]
    python benchmarks/planner.py --time  # seconds of a step instead

Measured is how much the resident memory of a process grows at most (VmHWM, reset after a small step has loaded the
libraries) over building a model and running some steps: with the C library's allocator as it is, and with large blocks
mapped (MALLOC_MMAP_THRESHOLD_), where a process takes what its tensors take. Linux with glibc only.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import qgmil
from qgmil.planning.available import peak_process_memory, process_memory
from qgmil.planning.device import autocast
from qgmil.planning.heap import MAPPED
from qgmil.planning.memory import estimate, lightning_precision, peak_memory
from qgmil.planning.timing import calibrate, time_step

IN_DIM, CLASSES = 1024, 2
Row = dict[str, Any]
THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
ALLOCATORS = {"as it is": {}, "mapped": {THRESHOLD: str(MAPPED)}}


def child(model: str, instances: int, training: bool, precision: str, steps: int) -> None:
    """Run some steps in this process and print by how many bytes it grew at most."""
    _steps(model, 16, training, precision, 2)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = process_memory()
    _steps(model, instances, training, precision, steps)
    print(peak_process_memory() - before)


def _steps(name: str, instances: int, training: bool, precision: str, steps: int) -> None:
    model = qgmil.create_model(name, in_dim=IN_DIM, num_classes=CLASSES, standardize=True).train(training)
    bags = qgmil.PackedBags(torch.randn(instances, IN_DIM), (instances,), torch.zeros(1, dtype=torch.long))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True) if training else None
    for _ in range(steps):
        with torch.inference_mode(not training), autocast("bf16-mixed" if precision == "bf16" else "32-true", "cpu"):
            output = model(bags)
            loss = model.loss(output, bags.labels)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        del output, loss


def measured(
    model: str, instances: int, training: bool, precision: str, steps: int, environment: dict[str, str]
) -> int:
    """What a fresh process grows by, in bytes."""
    arguments = [model, str(instances), str(int(training)), precision, str(steps)]
    command = [sys.executable, __file__, "--child", *arguments]
    clean = {k: v for k, v in os.environ.items() if k not in (THRESHOLD, "GLIBC_TUNABLES")}
    ended = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    return int(ended.stdout.split()[-1])


def compare_memory(model: str, instances: int, training: bool, precision: str, steps: int) -> Iterator[Row]:
    """Bytes, predicted and measured with each allocator."""
    for allocator, environment in ALLOCATORS.items():
        with mock.patch.dict(os.environ, environment):
            found = peak_memory(
                model, IN_DIM, CLASSES, (instances,), training=training, precision=precision, device="cpu"
            )
        seen = measured(model, instances, training, precision, steps, environment)
        yield {"allocator": allocator, "predicted": found.bytes, "measured": seen, "method": found.method}


def compare_time(model: str, instances: int, training: bool, precision: str) -> Iterator[Row]:
    """Seconds of a step, predicted and then measured, in this process."""
    asked: dict[str, Any] = {
        "training": training,
        "precision": lightning_precision(precision, "cpu"),
        "device": "cpu",
    }
    built = qgmil.create_model(model, in_dim=IN_DIM, num_classes=CLASSES, standardize=True)
    found = estimate(built, (instances,), **asked)
    rates = calibrate(built, largest=instances, **asked)
    predicted = rates.seconds(found.flops, found.attention_flops)
    yield {"predicted": predicted, "measured": time_step(built, instances, **asked), "method": rates.basis}


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--child"]:
        model, instances, training, precision, steps = sys.argv[2:]
        child(model, int(instances), training == "1", precision, int(steps))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, nargs="+", default=[1000, 4000, 10000, 30000])
    parser.add_argument("--models", nargs="+", default=["qgmil", "abmil_gated"])
    parser.add_argument("--precisions", nargs="+", default=["32", "bf16"])
    parser.add_argument("--steps", type=int, default=5, help="of a process whose memory is measured")
    parser.add_argument("--time", action="store_true", help="seconds of a step instead of memory")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[Row] = []
    unit = "s" if options.time else "MB"
    if not options.json:
        print(f"| model | instances | step | precision | allocator | predicted {unit} | measured {unit} | ratio |")
        print("|---|---:|---|---|---|---:|---:|---:|")
    for cell in itertools.product(options.models, options.instances, (True, False), options.precisions):
        names = dict(zip(("model", "instances", "training", "precision"), cell, strict=True))
        for found in compare_time(*cell) if options.time else compare_memory(*cell, options.steps):
            rows.append({**names, **found, "ratio": found["predicted"] / found["measured"]})
            if not options.json:
                print(line(rows[-1], options.time), flush=True)
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "steps": options.steps, "rows": rows}, indent=2))
    else:
        conclude(rows)


def line(row: Row, time: bool) -> str:
    """One row of Markdown."""
    figures = [f"{row[n]:.3f}" if time else f"{row[n] / 1e6:,.0f}" for n in ("predicted", "measured")]
    step = "training" if row["training"] else "inference"
    cells = [row["model"], f"{row['instances']:,}", step, row["precision"], row.get("allocator", "-"), *figures]
    return f"| {' | '.join(cells)} | {row['ratio']:.2f} |"


def conclude(rows: Sequence[Row]) -> None:
    """How many predictions are right to a fifth."""
    for allocator in dict.fromkeys(row.get("allocator", "time") for row in rows):
        ratios = [row["ratio"] for row in rows if row.get("allocator", "time") == allocator]
        within = sum(1 / 1.2 <= r <= 1.2 for r in ratios)
        worst = max(ratios, key=lambda r: abs(math.log(r)))
        print(f"\n{allocator}: {within} of {len(ratios)} within 20 %, worst {worst:.2f}")


if __name__ == "__main__":
    main()
