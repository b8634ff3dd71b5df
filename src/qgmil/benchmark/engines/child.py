"""The process that computes cells: one job after the other from its input, each answered with a row.

It never outlives the process that started it: when its input ends, so does it, in the middle of a cell if need be.
"""

from __future__ import annotations

import os
import queue
import threading
from typing import Any

from qgmil.bags.check.child import limit
from qgmil.bags.check.frames import receive, send


def main(threads: int) -> None:
    """Answer jobs on standard input until it ends.

    Args:
        threads: of PyTorch.
    """
    source, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    limit(0)  # no core dumps, and the first to go when memory ends
    os.dup2(2, 1)  # what a library prints is not mixed with the answers
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        while (job := receive(source)) is not None:
            jobs.put(job)
        os._exit(1)  # the parent is gone; the cell resumes at its checkpoint

    threading.Thread(target=listen, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    from qgmil.benchmark.worker import run_job

    send(answers, {"ready": True})
    while True:
        job = jobs.get()

        def on_epoch(done: int, most: int, scores: dict[str, float | None]) -> None:
            send(answers, {"epoch": [done, most, scores]})

        send(answers, {"row": run_job(job, on_epoch)})
