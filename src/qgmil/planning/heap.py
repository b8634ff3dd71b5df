"""What a C library's heap makes of a tape: resident memory, which is more than the tensors take."""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import os
import platform
import re
from collections.abc import Iterable

from qgmil.planning.tape import FREED, Event

PAGE = 4096
FIRST_THRESHOLD = 128 * 1024
LAST_THRESHOLD = 32 * 1024**2
TOP_PAD = 128 * 1024
#: `mallopt`'s name for the threshold, and the one that `map_large_blocks` sets.
M_MMAP_THRESHOLD, MAPPED = -3, 1024**2
#: Bytes that aligned memory is asked for beyond its size, and that small objects then occupy.
SLACK = 96


class Heap:
    """glibc's malloc, in what matters for tensors.

    Blocks above a threshold are mapped from the system and go back to it. The threshold starts at 128 KB and grows to
    the largest mapped block that was freed, at most 32 MB. Smaller blocks come from one heap, best fit first; it
    shrinks only at its end. Each is asked for with some slack to align it, and small objects (nodes of the graph,
    tensors themselves) settle in the slack: while they live there, a freed block cannot be joined with its neighbour,
    nor serve again a request of its own size. This is why a process holds up to half as much again as its tensors take.

    Args:
        life: allocations for which small objects outlive the block before them, on average.
        threshold: fixed by the environment; None: it grows.
    """

    def __init__(self, life: int, threshold: int | None = None) -> None:
        self.life, self.fixed = life, threshold is not None
        self.threshold = FIRST_THRESHOLD if threshold is None else threshold
        self.trim = TOP_PAD
        self.peak = 0
        self._mapped = self._top = self._end = self._touched = self._clock = 0
        self._free_at: dict[int, int] = {}  # address -> bytes
        self._free_end: dict[int, int] = {}  # end -> address
        self._by_size: list[tuple[int, int]] = []  # bytes, address
        self._used: dict[int, tuple[int | None, int]] = {}  # key -> address (None: mapped), bytes
        self._small: list[tuple[int, int]] = []  # when it dies, address
        self._oldest = 0

    def play(self, events: Iterable[Event]) -> None:
        """Allocate and free as the tape did. Blocks below a page are small objects themselves."""
        for key, nbytes in events:
            if nbytes >= PAGE:
                self._allocate(key, nbytes)
            elif nbytes == FREED and key in self._used:
                self._free(key)

    def _allocate(self, key: int, nbytes: int) -> None:
        self._clock += 1
        while self._oldest < len(self._small) and self._small[self._oldest][0] <= self._clock:
            self._release(self._small[self._oldest][1], SLACK)
            self._oldest += 1
        size = -(-nbytes // 16) * 16
        need = size + SLACK
        at = bisect.bisect_left(self._by_size, (need, 0))
        if at < len(self._by_size):
            found, address = self._by_size[at]
            self._take(address)
            if found > need:
                self._put(address + need, found - need)
        elif self._end - self._top >= need or need < self.threshold:
            address = self._top
            self._top += need
            self._end = max(self._end, -(-(self._top + TOP_PAD) // PAGE) * PAGE if self._top > self._end else 0)
            self._touched = max(self._touched, self._top)
        else:
            size = -(-nbytes // PAGE) * PAGE
            self._used[key] = (None, size)
            self._mapped += size
            self.peak = max(self.peak, self._touched + self._mapped)
            return
        self._used[key] = (address, size)
        self.peak = max(self.peak, self._touched + self._mapped)

    def _free(self, key: int) -> None:
        address, size = self._used.pop(key)
        if address is not None:
            self._release(address, size)
            self._small.append((self._clock + self.life, address + size))
            return
        self._mapped -= size
        if not self.fixed and self.threshold < size <= LAST_THRESHOLD:
            self.threshold, self.trim = size, 2 * size

    def _release(self, address: int, size: int) -> None:
        before = self._free_end.get(address)
        if before is not None:
            size += self._take(before)
            address = before
        if address + size in self._free_at:
            size += self._take(address + size)
        if address + size < self._top:
            self._put(address, size)
            return
        self._top = address
        if self._end - self._top >= self.trim:
            self._end = self._top + TOP_PAD
            self._touched = min(self._touched, self._end)

    def _put(self, address: int, size: int) -> None:
        self._free_at[address], self._free_end[address + size] = size, address
        bisect.insort(self._by_size, (size, address))

    def _take(self, address: int) -> int:
        size = self._free_at.pop(address)
        del self._free_end[address + size]
        self._by_size.pop(bisect.bisect_left(self._by_size, (size, address)))
        return size


def map_large_blocks() -> bool:
    """Have every larger block of this process mapped from now on, so that it takes what its tensors take and no more.

    Such blocks are zeroed by the system each time, which costs some time at medium sizes (a fifth at 4,000 instances):
    done only where memory is scarce. Returns whether it was possible: with glibc, unless the environment has decided.
    """
    if not is_glibc() or fixed_threshold() is not None:
        return False
    with contextlib.suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED))
    return False


def is_glibc() -> bool:
    """Whether memory of this process comes from the allocator that `Heap` imitates."""
    return platform.libc_ver()[0] == "glibc" and not re.search("malloc", os.environ.get("LD_PRELOAD", ""))


def fixed_threshold() -> int | None:
    """The threshold that the environment sets (MALLOC_MMAP_THRESHOLD_ or GLIBC_TUNABLES), or None."""
    tuned = re.search(r"glibc\.malloc\.mmap_threshold=(\w+)", os.environ.get("GLIBC_TUNABLES", ""))
    value = tuned[1] if tuned else os.environ.get("MALLOC_MMAP_THRESHOLD_", "")
    try:
        return int(value, 0)
    except ValueError:
        return None
