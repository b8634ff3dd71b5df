"""The process that reads untrusted files: one task after the other, each answered, until its input ends.

A file that crashes its library takes down this process and nothing else. It can neither take all memory (on Linux
its address space is limited, and it is the first that the kernel kills) nor outlive the check by more than one file.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qgmil.bags.check.frames import receive, send

Function = Callable[[dict[str, Any]], dict[str, Any]]
READY = {"ready": True}
GRACE = 5  # seconds that the parent has to end a file that hangs, before the alarm does


def main(function: str, seconds: float, memory: int) -> None:
    """Answer the tasks on standard input with `function` ("module:name").

    Args:
        function: takes and returns a dictionary of JSON values and arrays.
        seconds: the time that one task may take.
        memory: bytes of address space beyond what the imports need; 0 sets no limit.
    """
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is not mixed with the answers
    module, name = function.split(":")
    answer: Function = getattr(importlib.import_module(module), name)
    limit(memory)
    send(answers, READY)
    while (task := receive(tasks)) is not None:
        _alarm(int(seconds) + GRACE)
        result = answer(task)
        _alarm(0)
        send(answers, result)


def limit(memory: int) -> None:
    """Bound the address space, where the system does so (Linux), leave no core dumps, and go first when memory ends."""
    if sys.platform != "linux":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if memory:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = pages * resource.getpagesize() + memory
        if hard == resource.RLIM_INFINITY or wanted < hard:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def _alarm(seconds: int) -> None:
    """Have the system end this process after that time (0: never), even inside a library that never returns."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)
