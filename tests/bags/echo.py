"""What children run in tests of the pool alone: an echo, which starts quickly."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def echo(task: dict[str, Any]) -> dict[str, Any]:
    """The task and who answered it, after as many seconds as asked; or the death that was asked for."""
    if task.get("raise"):
        raise RuntimeError(task["raise"])
    if "exit" in task:
        os._exit(task["exit"])
    if "signal" in task:
        os.kill(os.getpid(), task["signal"])
    time.sleep(task.get("sleep", 0))
    return {
        **task,
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "session": os.getsid(0),
        "core": _core_limit(),
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0],
    }


def _core_limit() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_CORE)[0]
