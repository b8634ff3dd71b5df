"""Predicted against measured peak memory, one fresh process a figure. Prints Markdown, or JSON with --json.

    python benchmarks/planner.py [--instances 1000 4000 10000 30000] [--models qgmil abmil_gated] [--steps 5]

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
from pathlib import Path
from unittest import mock

import torch

import qgmil
from qgmil.planning.available import peak_process_memory, process_memory
from qgmil.planning.device import autocast
from qgmil.planning.heap import MAPPED
from qgmil.planning.memory import peak_memory

IN_DIM, CLASSES = 1024, 2
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


def compare(model: str, instances: int, training: bool, precision: str, steps: int) -> list[dict[str, object]]:
    """Predicted and measured with each allocator."""
    rows: list[dict[str, object]] = []
    for allocator, environment in ALLOCATORS.items():
        with mock.patch.dict(os.environ, environment):
            found = peak_memory(
                model, IN_DIM, CLASSES, (instances,), training=training, precision=precision, device="cpu"
            )
        seen = measured(model, instances, training, precision, steps, environment)
        rows.append(
            {
                "model": model,
                "instances": instances,
                "step": "training" if training else "inference",
                "precision": precision,
                "allocator": allocator,
                "predicted": found.bytes,
                "measured": seen,
                "ratio": found.bytes / seen,
                "method": found.method,
            }
        )
    return rows


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
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    cells = itertools.product(options.models, options.instances, (True, False), options.precisions)
    if not options.json:
        print("| model | instances | step | precision | allocator | predicted MB | measured MB | ratio |")
        print("|---|---:|---|---|---|---:|---:|---:|")
    for model, instances, training, precision in cells:
        for row in compare(model, instances, training, precision, options.steps):
            rows.append(row)
            if not options.json:
                names = ("model", "instances", "step", "precision", "allocator")
                figures = [f"{int(str(row[n])) / 1e6:,.0f}" for n in ("predicted", "measured")]
                print(f"| {' | '.join([*(str(row[n]) for n in names), *figures])} | {row['ratio']:.2f} |", flush=True)
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "steps": options.steps, "rows": rows}, indent=2))
        return
    for allocator in ALLOCATORS:
        ratios = [float(str(row["ratio"])) for row in rows if row["allocator"] == allocator]
        within = sum(1 / 1.2 <= r <= 1.2 for r in ratios)
        worst = max(ratios, key=lambda r: abs(math.log(r)))
        print(f"\n{allocator}: {within} of {len(ratios)} within 20 %, worst {worst:.2f}")


if __name__ == "__main__":
    main()
