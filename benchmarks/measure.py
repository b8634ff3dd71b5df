"""Time and memory, measured so that two figures can be compared: turns, fresh processes, and the machine's own limit.

Other programs only ever slow a step down, so contenders take turns within one process (A B A B) and the quickest run of
each counts; the median says how noisy the machine was. Memory is a matter of the whole process on a CPU: every figure
comes from a process of its own. A large matrix product measured in the same turns is the limit of the machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import torch

Step = Callable[[], object]
K = TypeVar("K")
T = TypeVar("T")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Edge of the square matrix product that stands for the limit, by device: larger ones are no quicker.
GEMM_EDGE = {"cpu": 2048, "cuda": 8192}


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    found = {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "kind": device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "qgmil": importlib.metadata.version("qgmil"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    if device == "cuda":
        found |= {"cuda": torch.version.cuda, "cpu": cpu}
    return found


def seconds_of(step: Step, device: str) -> float:
    """One run of a step. On CUDA by events, from idle to idle."""
    if device == "cuda":
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def take_turns(
    steps: Mapping[K, Step], device: str, *, rounds: int, budget: float, least: int = 1
) -> dict[K, list[float]]:
    """Seconds of every run of every step; in each round all run once, in order.

    Args:
        rounds: most rounds that count.
        budget: seconds after which no further round starts, once there are `least`. A first round quicker than a tenth
            of this warms up and does not count.
    """
    times: dict[K, list[float]] = {name: [] for name in steps}
    started = time.perf_counter()
    first = True
    while len(next(iter(times.values()))) < rounds:
        spent = time.perf_counter() - started
        if spent > budget and len(next(iter(times.values()))) >= least:
            break
        for name, step in steps.items():
            times[name].append(seconds_of(step, device))
        if first and time.perf_counter() - started < budget / 10:
            times = {name: [] for name in steps}
        first = False
    return times


def gemm(dtype: str, device: str) -> tuple[Step, float]:
    """A large square matrix product, and its floating-point operations."""
    edge = GEMM_EDGE[device]
    a, b = (torch.randn(edge, edge, device=device).to(DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(a)
    return (lambda: torch.mm(a, b, out=out)), 2.0 * edge**3


def summary(times: Sequence[float]) -> dict[str, Any]:
    """The quickest run, the median, and how many there were."""
    return {"seconds": min(times), "median_seconds": statistics.median(times), "runs": len(times)}


def peak_of(step: Step, device: str) -> dict[str, float]:
    """Peak memory of one run in bytes, over what is there before it, and its seconds.

    On CUDA what the allocator handed out; elsewhere the resident memory of this process, whose high-water mark is reset
    first where the system allows it (and is otherwise that of its whole life: a fresh process is all the more needed).
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = seconds_of(step, device)
        return {"peak_bytes": torch.cuda.max_memory_allocated() - before, "seconds": seconds}
    _give_back()
    before = _resident("VmRSS")
    seconds = seconds_of(step, device)
    return {"peak_bytes": max(0, _resident("VmHWM") - before), "seconds": seconds}


def in_fresh_process(function: Callable[..., T], *args: Any) -> T | None:
    """What a function of a module returns in a process that has done nothing yet but import torch; None if it died.

    The process is forked from a server that never computed anything, so that it starts at once and without threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "qgmil.models.qgmil"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *args).result()
        except (BrokenProcessPool, MemoryError):  # the system stops a process that asks for too much
            return None
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None


def out_of_memory(error: Exception) -> bool:
    """Whether torch could not get memory, on either device."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def growth(small: tuple[float, float | None], large: tuple[float, float | None]) -> float | None:
    """Exponent p of ``y ~ x^p`` between two points ``(x, y)``; None where a y is unknown or nothing."""
    (x0, y0), (x1, y1) = small, large
    if not y0 or not y1 or x0 == x1:
        return None
    return math.log(y1 / y0) / math.log(x1 / x0)


def _give_back() -> None:
    """Return freed memory to the system and reset the high-water mark, where that is possible."""
    with contextlib.suppress(OSError, AttributeError):  # another C library, or none of this name
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident(field: str) -> int:
    """VmRSS (now) or VmHWM (most so far) of this process in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024
