"""Cells in processes: the same results, and a process that dies costs its cell."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from small_benchmark import ABMIL, run, spec

from qgmil.benchmark.engines import choose_engine, local
from qgmil.benchmark.engines.local import LocalEngine, gpus, thread_count
from qgmil.benchmark.grid import run_benchmark
from qgmil.errors import ConfigError, RunError

MACHINE = ("seconds", "peak_mb")
DOOMED = "made/abmil/fold1_seed0"
# A child as the real one, but for one cell, which ends it.
FATAL = local.PROGRAM.replace(
    "main(int",
    "from qgmil.benchmark import worker; import os, signal; done = worker.run_job; worker.run_job = lambda job, hook: "
    f"os.kill(os.getpid(), signal.SIGSEGV) if job['id'] == '{DOOMED}' else done(job, hook); main(int",
)


def results(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in MACHINE} for row in rows]


def test_two_processes_give_what_one_gives_and_one_that_dies_costs_its_cell(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "PROGRAM", FATAL)
    small = spec(cohort, models={"abmil": ABMIL}, folds=3)
    here, _ = run(small, tmp_path / "here", monkeypatch)
    told: list[tuple[str, int, int]] = []

    class Epochs:
        start = row = note = lambda *_: None

        def epoch(self, cell: str, done: int, most: int, scores: dict[str, float | None]) -> None:
            told.append((cell, done, most))

    there = run_benchmark(small, tmp_path / "there", workers=2, progress=Epochs())
    assert [r["status"] for r in there.rows] == ["finished", "failed", "finished"]
    assert "its process ended (SIGSEGV)" in there.rows[1]["error"]
    assert results(there.rows)[::2] == results(here.rows)[::2]
    assert sorted(told) == [(f"made/abmil/fold{f}_seed0", n, 2) for f in (0, 2) for n in (1, 2)]
    for fold in (0, 2):
        name = f"cells/made/abmil/fold{fold}_seed0/model.safetensors"
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_a_process_that_cannot_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PROGRAM", "raise SystemExit('no torch here')")
    with LocalEngine(1) as engine, pytest.raises(RunError, match=r"could not start .*no torch here"):
        list(engine.run(iter([{"id": "x", "config": {"model": "m"}}]), lambda *_: None))


def test_a_child_ends_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalEngine(1) as engine:
        child = engine._start(0).process
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(timeout=60) == 1
        assert os.getpgid(0) != child.pid  # in a session of its own: Ctrl-C does not reach it


def test_threads_are_the_cores_divided_unless_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "processors", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [thread_count(n) for n in (1, 3, 8, 20)] == [8, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert thread_count(8) == 3


def test_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert LocalEngine()._devices == ["4", "6"] and LocalEngine(3)._devices == ["4", "6", "4"]
    assert LocalEngine(1, cpu_only=True)._devices == [None]
    assert LocalEngine(shared=True).workers == 1 and LocalEngine(shared=True)._devices == [None]


def test_engines_are_chosen_by_name() -> None:
    where = {"address": None, "cpu_only": True}
    assert choose_engine("local", workers=3, **where).workers == 3
    with pytest.raises(ConfigError, match="workers is 0"):
        choose_engine("local", workers=0, **where)
    with pytest.raises(ConfigError, match="'slurm'; there are local, ray"):
        choose_engine("slurm", workers=None, **where)
    with pytest.raises(ConfigError, match="--address is that of a Ray cluster"):
        choose_engine("local", workers=None, address="auto", cpu_only=True)


def test_sigkill_is_explained() -> None:
    with LocalEngine(1) as engine:
        child = engine._start(0)
        os.kill(child.process.pid, signal.SIGKILL)
        assert child.ended() == "SIGKILL, most likely for taking all memory"
