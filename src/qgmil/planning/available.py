"""Memory that is still to be had."""

from __future__ import annotations

import os
from pathlib import Path

import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
#: Limits above this are "no limit" (cgroups of version 1 write 2^63 less a page).
NO_LIMIT = 2**60


def available_memory(device: str) -> int | None:
    """Bytes that this process can still get on a device; None where the system does not say.

    On CUDA what the driver has free and what this process holds unused. On Linux the least of: memory that can be had
    without swapping, what is left to each control group above the process (containers, Slurm), and to its own limits
    (ulimit -v). Elsewhere the machine's memory.
    """
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    found = [n for n in (_system(PROC), *_cgroups(PROC, CGROUPS), *_limits(PROC)) if n is not None]
    if found:
        return max(0, min(found))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def process_memory() -> int:
    """Bytes that this process has in memory now: interpreter, libraries, what was computed so far; 0: unknown."""
    return _field(PROC / "self" / "status", "VmRSS") or 0


def peak_process_memory() -> int:
    """Most bytes that this process has had in memory; 0: unknown."""
    return _field(PROC / "self" / "status", "VmHWM") or 0


def _system(proc: Path) -> int | None:
    return _field(proc / "meminfo", "MemAvailable")


def _cgroups(proc: Path, cgroups: Path) -> list[int | None]:
    found: list[int | None] = []
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = cgroups / "memory"
        else:
            continue
        group = root / path.strip("/")
        found += [_left(g, *names) for g in (group, *group.parents) if g.is_relative_to(root)]
    return found


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    """What a group may still take; its file cache is given up for it."""
    most, used = _number(group / limit), _number(group / usage)
    if most is None or used is None or most >= NO_LIMIT:
        return None
    for line in _text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == cache:
            used -= int(value)
    return most - used


def _limits(proc: Path) -> list[int | None]:
    try:
        import resource
    except ImportError:  # Windows
        return []
    found: list[int | None] = []
    for limit, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most, used = resource.getrlimit(limit)[0], _field(proc / "self" / "status", field)
        if most != resource.RLIM_INFINITY and used is not None:
            found.append(most - used)
    return found


def _field(path: Path, name: str) -> int | None:
    for line in _text(path).splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
