"""Processes that fail, for test_parallel.py; it imports little, because each process imports it anew."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from qgmil.errors import BagError


def fails(rank: int, world: int, exchange: Path, how: str) -> None:
    """The second process fails; the first waits for it for ever."""
    if rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise BagError("bag 'b7': broken") if how == "bag" else RuntimeError("something deep")
    torch.distributed.barrier()
