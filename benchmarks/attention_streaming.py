"""Time and memory of the figures inside the transformer, for growing bags: no map is ever held.

    python benchmarks/attention_streaming.py                      # 1,000 to 100,000 instances, width 512, 8 heads
    python benchmarks/attention_streaming.py 1000 10000 --json-to out.json

Each size runs in a process of its own; memory is its peak over what it has once the model and the features are there.
The exponent is that of growth in N, from one size to the next: 2 in time, 1 in memory, is what the definitions ask for.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

from cyclopts import run

SIZES = (1_000, 10_000, 30_000, 100_000)
WIDTH = 1_024


def streaming(*sizes: int, what: str = "figures", json_to: Path | None = None, child: bool = False) -> None:
    """Measure.

    Parameters
    ----------
    sizes
        Instances of the bags.
    what
        figures (of every layer and head), or rollout.
    json_to
        Also write the figures here.
    child
        Measure one size in this process and print it as JSON.
    """
    if child:
        print(json.dumps(measure(sizes[0], what)))
        return
    rows = []
    for n in sizes or SIZES:
        command = [sys.executable, __file__, str(n), "--what", what, "--child"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(
            {**json.loads(answer.stdout.splitlines()[-1]), **_growth(rows[-1] if rows else None, answer.stdout)}
        )
        row = rows[-1]
        grows = "" if "time_exponent" not in row else f"  N^{row['time_exponent']:.2f} N^{row['memory_exponent']:.2f}"
        print(f"{n:>9,} instances  {row['seconds']:9.2f} s  {row['peak_mb']:8.0f} MB{grows}", flush=True)
    if json_to is not None:
        json_to.write_text(json.dumps(rows, indent=2) + "\n")


def measure(n: int, what: str) -> dict[str, float]:
    """Seconds and peak megabytes over the features and the model."""
    import torch

    from qgmil import create_model
    from qgmil.attention.inside import layer_figures, rollout
    from qgmil.bags.bag import Bag

    torch.manual_seed(0)
    model = create_model("qgmil", in_dim=WIDTH, num_classes=2).eval()
    bag = Bag(torch.randn(n, WIDTH), bag_id="slide")
    function = {"figures": layer_figures, "rollout": rollout}[what]
    function(model, bag.take(torch.arange(min(n, 500))))  # libraries are loaded, threads started
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    function(model, bag)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"instances": n, "seconds": round(seconds, 3), "peak_mb": round((peak - before) / 1024, 1)}


def _growth(before: dict[str, float] | None, printed: str) -> dict[str, float]:
    if before is None:
        return {}
    now = json.loads(printed.splitlines()[-1])
    larger = math.log(now["instances"] / before["instances"])
    names = {"time_exponent": "seconds", "memory_exponent": "peak_mb"}
    return {k: math.log(max(now[v], 1e-9) / max(before[v], 1e-9)) / larger for k, v in names.items()}


if __name__ == "__main__":
    run(streaming)
