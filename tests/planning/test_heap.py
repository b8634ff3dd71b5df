"""The imitation of glibc's heap, against what its manual says."""

from __future__ import annotations

import pytest

from qgmil.planning.heap import FIRST_THRESHOLD, SLACK, TOP_PAD, Heap, fixed_threshold
from qgmil.planning.tape import FREED

MB = 1024**2


def played(*events: tuple[int, int], threshold: int | None = None, life: int = 0) -> Heap:
    heap = Heap(life, threshold)
    heap.play(events)
    return heap


def test_large_blocks_are_mapped_and_given_back() -> None:
    heap = played((1, 8 * MB), (1, FREED), (2, 16 * MB), (2, FREED), threshold=MB)
    assert heap.peak == 16 * MB


def test_the_threshold_grows_to_what_was_freed_and_no_further_than_32_mb() -> None:
    assert played((1, 8 * MB)).threshold == FIRST_THRESHOLD
    assert played((1, 8 * MB), (1, FREED)).threshold == 8 * MB
    assert played((1, 40 * MB), (1, FREED)).threshold == FIRST_THRESHOLD
    assert played((1, 8 * MB), (1, FREED), threshold=MB).threshold == MB


def test_a_hole_serves_again_only_with_the_slack_that_alignment_asks_for() -> None:
    below = [(1, MB), (2, MB), (1, FREED), (3, MB), (4, 2 * MB)]
    pinned = played((9, 4 * MB), (9, FREED), *below, life=1000)  # threshold 4 MB: all else is on the heap
    free = played((9, 4 * MB), (9, FREED), *below, life=0)
    assert free.peak == 4 * MB + 3 * SLACK
    assert pinned.peak == 5 * MB + 4 * SLACK


def test_the_end_of_the_heap_is_given_back() -> None:
    grown = [(9, 4 * MB), (9, FREED), *((i, 3 * MB) for i in range(4)), *((i, FREED) for i in range(4))]
    heap = played(*grown, (20, 4096))
    assert heap.peak == 12 * MB + 4 * SLACK
    heap = played(*grown, (20, 4096), (21, 40 * MB))  # mapped on top of what is left of the heap
    assert heap.peak <= 40 * MB + 8 * MB + TOP_PAD


def test_the_environment_can_fix_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert fixed_threshold() is None
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    assert fixed_threshold() == 65536
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0:glibc.malloc.mmap_threshold=0x20000")
    assert fixed_threshold() == 131072
