"""What children run in tests: `inspect_file`, except for files whose names ask for trouble."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Any

from qgmil.bags.check.facts import inspect_file


def inspect(task: dict[str, Any]) -> dict[str, Any]:
    """Read the file, or do what its name says."""
    name = Path(task["path"]).stem
    if name == "abort":
        os.abort()
    if name == "segfault":
        ctypes.string_at(0)
    if name == "spins":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        while True:
            pass
    if name == "prints":
        print("a library that talks " * 1000, flush=True)
        os.write(1, b"and writes to its standard output")
    return inspect_file(task)
