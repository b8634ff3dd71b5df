"""Cells in processes of this machine, each a fresh interpreter that does its imports once."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, Self

from qgmil.bags.check.frames import receive, send
from qgmil.bags.check.pool import processors
from qgmil.benchmark.engines import Job, OnEpoch, Row
from qgmil.benchmark.rows import failed_row
from qgmil.errors import RunError

# A fresh interpreter (nothing is inherited, and a user's script is not run again) that finds the same packages.
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from qgmil.benchmark.engines.child import main; main(int(sys.argv[2]))"
)
Frame = dict[str, Any]


def thread_count(workers: int) -> int:
    """Threads of each of so many processes: OMP_NUM_THREADS where it is set, else the cores divided among them."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else max(1, processors() // workers)


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [n.strip() for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n.strip()]
    return names[:count] if len(names) >= count else [str(i) for i in range(count)]


class LocalEngine:
    """Processes of this machine, one cell at a time each.

    One that dies (a crash, no memory left) costs its cell, and another takes its place. Results do not depend on how
    many there are, only on the number of threads of each.

    Args:
        workers: processes; None: one a GPU, or one a core.
        cpu_only: leave GPUs alone.
        shared: cells use several GPUs (or processes) themselves: one cell at a time, which sees them all.
    """

    def __init__(self, workers: int | None = None, *, cpu_only: bool = False, shared: bool = False) -> None:
        devices = [] if cpu_only or shared else gpus()
        self.workers = workers or len(devices) or (1 if shared else processors())
        self.threads = thread_count(self.workers)
        self._devices = [devices[i % len(devices)] if devices else None for i in range(self.workers)]
        self._inbox: queue.SimpleQueue[tuple[_Child, Frame | None]] = queue.SimpleQueue()
        self._children: dict[int, _Child] = {}  # by their place, 0 to workers - 1

    @property
    def name(self) -> str:
        """In words."""
        word = "process" if self.workers == 1 else "processes"
        on = " on GPUs" if self._devices[0] is not None else ""
        return f"{self.workers} {word} of {self.threads} thread{'s' if self.threads > 1 else ''}{on}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_: object) -> None:
        while self._children:
            self._children.popitem()[1].kill()

    def run(self, jobs: Iterator[Job], on_epoch: OnEpoch) -> Iterator[Row]:
        """As `Engine.run`. Processes are started only as there are jobs for them.

        Raises:
            RunError: a process cannot be started at all.
        """
        more = True
        while True:
            for place in range(self.workers):
                child = self._children.get(place)
                if not more or (child is not None and child.job is not None):
                    continue
                job = next(jobs, None)
                more = job is not None
                if job is not None:
                    child = child or self._start(place)
                    child.give(job)
            if not any(child.job is not None for child in self._children.values()):
                return
            row = self._wait(on_epoch)
            if row is not None:
                yield row

    def _start(self, place: int) -> _Child:
        self._children[place] = _Child(self.threads, self._devices[place], self._inbox)
        return self._children[place]

    def _wait(self, on_epoch: OnEpoch) -> Row | None:
        """The row that the next message brings, if it does."""
        child, frame = self._inbox.get()
        if frame is None:
            return self._lost(child)
        assert child.job is not None
        if "epoch" in frame:
            on_epoch(child.job["id"], *frame["epoch"])
        elif "ready" in frame:
            child.ready = True
        else:
            child.job = None
            return dict(frame["row"])
        return None

    def _lost(self, child: _Child) -> Row | None:
        """The row of the cell of a process that died; its place is free for another."""
        how, job = child.ended(), child.job
        if not child.ready:
            raise RunError(f"a process that computes cells could not start ({how})")
        self._children = {place: c for place, c in self._children.items() if c is not child}
        return None if job is None else failed_row(job, f"its process ended ({how})")


class _Child:
    """One process and the job it works on; a job given before it is ready waits in its pipe."""

    def __init__(self, threads: int, device: str | None, inbox: queue.SimpleQueue[tuple[_Child, Frame | None]]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(sys.path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C is for the parent, which ends this one
            env=environment,
        )
        self.ready = False
        self.job: Job | None = None
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    def give(self, job: Job) -> None:
        """Hand it a job. If it is gone, it says so by ending."""
        self.job = job
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            send(self.process.stdin, job)  # type: ignore[arg-type]

    def ended(self) -> str:
        """How it ended by itself, in words."""
        code = self.process.wait()
        words = self.kill()
        if code == -9:  # not by us, or nobody would ask
            return "SIGKILL, most likely for taking all memory"
        name = {s.value: s.name for s in signal.Signals}.get(-code, f"exit code {code}")
        return f"{name}: {words}" if code > 0 and words else name

    def kill(self) -> str:
        """End it at once and wait until it has; returns the last line that it wrote on standard error."""
        self.process.kill()
        self.process.wait()
        words = ""
        if not self._said.closed:
            self._said.seek(0)
            lines = self._said.read().decode(errors="replace").split("\n")
            words = next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]
            self._said.close()
        with contextlib.suppress(OSError):  # what was not yet written to one that is gone
            if self.process.stdin is not None:
                self.process.stdin.close()
        return words

    def _listen(self, inbox: queue.SimpleQueue[tuple[_Child, Frame | None]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            frame: Frame | None = {}
            while frame is not None:
                try:
                    frame = receive(pipe)  # type: ignore[arg-type]
                except Exception:  # not what a healthy child sends
                    frame = None
                inbox.put((self, frame))
