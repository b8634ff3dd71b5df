"""Processes of one machine that work together: how they start, how they end, and what is said if one fails.

They are started anew (spawn) on CPU and GPU alike: a copy (fork) of a process that has used CUDA or threads is broken.
What they have to say goes through files of a folder, never through objects.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from qgmil import errors
from qgmil.errors import QGMILError, RunError
from qgmil.files import write_json

#: What a process runs: `target(rank, world, exchange, *arguments)`, a function of a module.
Target = Callable[..., None]
#: Seconds that the others get to say what happened when one has failed; then they are ended.
GRACE = 2.0
MESSAGES = "messages.jsonl"


def run_processes(
    target: Target,
    world: int,
    arguments: Sequence[Any],
    exchange: Path,
    *,
    device: str = "cpu",
    on_message: Callable[[dict[str, Any]], None] | None = None,
    needs_main: bool = False,
) -> None:
    """Run a function in `world` processes that are one group of torch.distributed, and wait for all of them.

    Args:
        target: gets rank, world, exchange and the arguments.
        world: how many.
        arguments: picklable.
        exchange: an empty folder of this machine, in which they meet.
        device: "cuda" (nccl, one GPU each) or "cpu" (gloo, each with its part of the threads).
        on_message: told of each message of `send`, in order.
        needs_main: import the main script in them, as Python does by itself; it must then guard its own start with
            ``if __name__ == "__main__"``. Otherwise it is left alone: it may have no such guard, or no file.

    Raises:
        QGMILError: as one of them raised it.
        RunError: one of them failed for another reason, or was killed; or this is a worker that may start none.
        KeyboardInterrupt: Ctrl-C; they are ended first. They take no notice of it themselves.
    """
    if multiprocessing.current_process().daemon:
        raise RunError(
            f"a worker of a pool cannot start the {world} processes of devices = {world}: use devices = 1 there"
        )
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // world)
    processes: list[BaseProcess] = []
    heard = _Messages(exchange / MESSAGES, on_message)
    try:
        with _starting(needs_main):
            for rank in range(world):
                given = (target, rank, world, exchange, device, threads, tuple(arguments))
                process: BaseProcess = context.Process(target=_process, args=given, name=f"qgmil-{rank}")
                process.start()
                processes.append(process)
        while any(p.exitcode is None for p in processes) and all(p.exitcode in (0, None) for p in processes):
            wait([p.sentinel for p in processes if p.exitcode is None], timeout=0.1)
            heard.read()
        if any(p.exitcode != 0 for p in processes):
            _raise(processes, exchange)
        heard.read()
    finally:
        for process in processes:
            if process.exitcode is None:
                process.kill()  # what it writes is written whole or not at all
            process.join()


def send(exchange: Path, message: dict[str, Any]) -> None:
    """Send a message to the process that waits; for one of the processes only."""
    with (exchange / MESSAGES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(message) + "\n")


class _Messages:
    """Reads whole lines of a growing file."""

    def __init__(self, path: Path, hook: Callable[[dict[str, Any]], None] | None) -> None:
        self.path, self.hook, self.position = path, hook, 0

    def read(self) -> None:
        if self.hook is None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self.position += len(whole)
        for line in whole.splitlines():
            self.hook(json.loads(line))


@contextlib.contextmanager
def _starting(needs_main: bool) -> Iterator[None]:
    """Children ignore Ctrl-C from their first moment on, log errors only, and see a main script only if needed."""
    main = sys.modules["__main__"]
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    quiet = "TORCH_CPP_LOG_LEVEL" not in os.environ
    if quiet:  # DDP warns of weights that all have gradients as well as of those that do not
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    if not needs_main:
        sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if quiet:
            del os.environ["TORCH_CPP_LOG_LEVEL"]
        if in_main_thread:
            signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def _process(
    target: Target, rank: int, world: int, exchange: Path, device: str, threads: int, arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=[exchange], daemon=True).start()
    try:
        _join(rank, world, exchange, device, threads)
        target(rank, world, exchange, *arguments)
        dist.destroy_process_group()
    except BaseException as error:
        family = next((c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__), None)
        said = {
            "time": time.time(),
            "family": family,
            "message": str(error) if family else f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }
        write_json(exchange / f"error-{rank}.json", said)
        os._exit(1)  # an orderly end would wait for the others


def _join(rank: int, world: int, exchange: Path, device: str, threads: int) -> None:
    # Read by Lightning, which then starts no processes itself; a scheduler's own numbers are about others.
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: needs no name that resolves, and no network
    where = None
    if device == "cuda":
        where = torch.device("cuda", rank)
        torch.cuda.set_device(where)
    else:
        torch.set_num_threads(threads)
    backend = "nccl" if device == "cuda" else "gloo"
    meeting = f"file://{exchange / 'meeting'}"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=world, device_id=where)


def _end_with_parent(exchange: Path) -> None:
    """A parent that was killed could not end its children, nor clean up."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        shutil.rmtree(exchange, ignore_errors=True)
        os._exit(1)


def _raise(processes: Sequence[BaseProcess], exchange: Path) -> None:
    """Raise what the process said that failed first; the others often fail because they have lost it."""
    until = time.monotonic() + GRACE
    while any(p.exitcode is None for p in processes) and time.monotonic() < until:
        wait([p.sentinel for p in processes if p.exitcode is None], timeout=0.1)
    said = {}
    for rank in range(len(processes)):
        path = exchange / f"error-{rank}.json"
        if path.is_file():
            said[rank] = json.loads(path.read_text(encoding="utf-8"))
    for found in sorted(said.values(), key=lambda s: s["time"]):
        kind = getattr(errors, found["family"] or "", None)
        if isinstance(kind, type) and issubclass(kind, QGMILError):
            raise kind(found["message"])
    of = f"of the {len(processes)} processes that train together"
    for rank, process in enumerate(processes):
        code = process.exitcode
        if rank not in said and code not in (0, None):
            assert code is not None
            how = f"was killed by signal {-code}; was there enough memory?" if code < 0 else f"ended with code {code}"
            raise RunError(f"number {rank} {of} {how}")
    rank = min(said, key=lambda r: said[r]["time"])
    error = RunError(f"number {rank} {of} failed: {said[rank]['message'].strip()}")
    error.add_note(said[rank]["traceback"])
    raise error
