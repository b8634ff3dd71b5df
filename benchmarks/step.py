"""Time of a QG-MIL training step on this CPU in float32 and under bfloat16 autocast. Prints JSON.

    python benchmarks/step.py [--instances 1360] [--bags 8] [--in-dim 1280]

The two take turns in one process and the quickest step of each counts, because other programs only ever slow a step
down. Read the ratio, not the seconds.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

import qgmil

PRECISIONS = {"float32": False, "bfloat16": True}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=1360)
    parser.add_argument("--bags", type=int, default=8)
    parser.add_argument("--in-dim", type=int, default=1280)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = tuple(len(part) for part in torch.arange(options.instances).tensor_split(options.bags))
    labels = torch.arange(options.bags) % 2
    batch = qgmil.PackedBags(torch.randn(options.instances, options.in_dim), sizes, labels)
    model = qgmil.create_model("qgmil", in_dim=options.in_dim, num_classes=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    best = dict.fromkeys(PRECISIONS, float("inf"))
    for _ in range(options.steps):
        for name, bf16 in PRECISIONS.items():
            started = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = model.loss(model(batch), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            best[name] = min(best[name], time.perf_counter() - started)
    ratio = best["float32"] / best["bfloat16"]
    print(json.dumps({"seconds": best, "bfloat16_times_faster": ratio, "threads": torch.get_num_threads()}, indent=2))


if __name__ == "__main__":
    main()
