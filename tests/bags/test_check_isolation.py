"""Files are read by child processes: whatever a file does to its reader, the check goes on and names it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bags import echo, misbehaving
from qgmil.bags.check import CheckReport, Pool, check_bags
from qgmil.bags.check.facts import inspect_file
from qgmil.bags.check.pool import Lost
from qgmil.errors import ConfigError, ReadError

INSPECT = f"{misbehaving.__name__}:inspect"
ECHO = f"{echo.__name__}:echo"


def table(folder: Path, *special: str, good: int = 6) -> Path:
    """`good` bags of two classes and one bag for each special name, in the middle."""
    names = [f"g{i}" for i in range(good)]
    names[good // 2 : good // 2] = special
    for i, name in enumerate(names):
        np.save(folder / f"{name}.npy", np.random.default_rng(i).normal(size=(4 + i, 20)).astype(np.float16))
    rows = "".join(f"{name},{'xy'[i % 2]},{name}.npy\n" for i, name in enumerate(names))
    (folder / "bags.csv").write_text("bag_id,label,features\n" + rows)
    return folder / "bags.csv"


def found(report: CheckReport) -> list[tuple[str, str | None]]:
    return [(p.kind, p.bag_id) for p in report.problems]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_files_that_kill_their_reader_are_named_and_the_check_goes_on(tmp_path: Path) -> None:
    manifest = table(tmp_path, "abort", "segfault")
    with Pool(INSPECT) as pool:
        report = check_bags(manifest, isolate=pool)
    assert found(report) == [("crash", "abort"), ("crash", "segfault")]
    assert report.bags == 8 and report.readable == 6
    for problem, how in zip(report.problems, ("SIGABRT", "SIGSEGV"), strict=True):
        assert f"bag {problem.bag_id!r}: " in problem.message
        assert f"{problem.bag_id}.npy: crashed the process that read it ({how})" in problem.message


def test_a_file_that_hangs_is_given_up(tmp_path: Path) -> None:
    manifest = table(tmp_path, "spins", good=4)
    with Pool(INSPECT, seconds=2) as pool:
        report = check_bags(manifest, isolate=pool)
    assert found(report) == [("hangs", "spins")] and report.readable == 4
    assert "spins.npy: did not come to an end (not done after 2 s)" in report.problems[0].message


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound the address space")
def test_a_file_may_not_take_more_memory_than_it_is_given(tmp_path: Path) -> None:
    manifest = table(tmp_path, "huge", "prints", good=2)
    with (tmp_path / "huge.npy").open("wb") as file:  # two gigabytes that take little place on the disk
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": (2**23, 128)})
        for at in range(2**20, 2**31, 2**20):
            file.seek(at)
            file.write(bytes(4096))
        file.truncate(128 + 2**31)
    with Pool(INSPECT, memory=2**30) as pool:
        report = check_bags(manifest, isolate=pool)
    assert found(report) == [("broken", "huge")] and report.readable == 3  # what "prints" says is no answer
    assert "huge.npy: does not fit into memory" in report.problems[0].message


def test_a_child_and_this_process_find_the_same(tmp_path: Path) -> None:
    manifest = table(tmp_path)
    (tmp_path / "g1.npy").write_bytes(b"\x93NUMPY\x01\x00rubbish")
    values = np.zeros((3, 20), np.float32)
    values[2, 5] = np.nan
    np.save(tmp_path / "g2.npy", values)
    (tmp_path / "g3.npy").unlink()
    (tmp_path / "g4.npy").write_bytes((tmp_path / "g0.npy").read_bytes())
    here, there = check_bags(manifest), check_bags(manifest, isolate=True)
    assert here == there
    assert found(here) == [("broken", "g1"), ("nan", "g2"), ("missing", "g3")]
    assert [w.kind for w in here.warnings if w.kind == "identical"] == ["identical"]


def test_answers_come_in_order_from_several_children_that_stay_and_then_end() -> None:
    with Pool(ECHO, children=2) as pool:
        tasks = [{"n": n, "sleep": 0.2 if n == 0 else 0.0} for n in range(30)]
        answers = list(pool.run(tasks))
        again = next(iter(pool.run([{"n": 99}])))
    assert [a["n"] for a in answers if isinstance(a, dict)] == list(range(30))
    pids = {a["pid"] for a in answers if isinstance(a, dict)}
    assert len(pids) == 2 and isinstance(again, dict) and again["pid"] in pids
    first = answers[0]
    assert isinstance(first, dict) and first["ppid"] == os.getpid()
    assert first["session"] == first["pid"] != os.getsid(0)  # Ctrl-C does not reach it
    assert first["core"] == 0  # no dumps of memory beside the user's data
    assert 300 < first["alarm"] <= 305  # if this process is killed, a child that hangs ends all the same
    assert not any(alive(pid) for pid in pids)


def test_no_child_is_left_when_the_check_is_interrupted() -> None:
    def tasks() -> object:
        yield {"n": 0}
        yield {"n": 1, "sleep": 60}
        yield {"n": 2}

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Pool(ECHO) as pool:
        answers = pool.run(tasks())  # type: ignore[arg-type]
        pid = next(answers)["pid"]  # type: ignore[index]
        raise KeyboardInterrupt
    assert time.monotonic() - started < 40 and not alive(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_child_outlives_this_process(number: int) -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from qgmil.bags.check import Pool\n"
        f"with Pool({ECHO!r}) as pool:\n"
        "    answers = pool.run({'n': n, 'sleep': 0.2} for n in range(1000))\n"
        "    print(next(answers)['pid'], flush=True)\n"
        "    list(answers)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert parent.stdout is not None and parent.stderr is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    os.killpg(parent.pid, number)  # as Ctrl-C does: all that are in the foreground
    said = parent.stderr.read().decode()
    assert parent.wait(timeout=30) == -number
    assert said.count("Traceback") == (number == signal.SIGINT)  # of the parent alone
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_a_run_that_was_given_up_does_not_answer_the_next() -> None:
    with Pool(ECHO) as pool:
        answers = pool.run([{"n": 0}, {"n": 1, "sleep": 60}, {"n": 2}])
        next(answers)  # by now the next task has begun
        assert [a["n"] for a in pool.run([{"n": 7}, {"n": 8}]) if isinstance(a, dict)] == [7, 8]


def test_dead_children_are_told_from_those_that_cannot_start() -> None:
    with Pool(ECHO) as pool:
        deaths = [{"exit": 3}, {"signal": signal.SIGKILL}, {"raise": "a bug"}, {"signal": signal.SIGALRM}]
        *lost, kept = pool.run([*deaths, {"n": 1}])
    assert lost == [
        Lost("crash", "exit code 3"),
        Lost("crash", "SIGKILL, most likely for taking all memory"),
        Lost("crash", "exit code 1: RuntimeError: a bug"),
        Lost("hangs", "out of time"),
    ]
    assert isinstance(kept, dict) and kept["n"] == 1
    with (
        Pool(f"{echo.__name__}:broken_name") as pool,
        pytest.raises(ReadError, match=r"could not start .*broken_name.*--in-process"),
    ):
        list(pool.run([{}]))


def test_more_children_read_more_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = table(tmp_path)
    started = []
    monkeypatch.setattr(Pool, "grow", lambda pool, children: started.append(children))
    monkeypatch.setattr(Pool, "run", lambda pool, tasks: map(inspect_file, tasks))
    monkeypatch.setattr("qgmil.bags.check.doctor.processors", lambda: 3)
    assert check_bags(manifest, isolate=True).ok
    monkeypatch.setattr("qgmil.bags.check.doctor.BYTES_PER_CHILD", 500)  # of about two thousand
    assert check_bags(manifest, isolate=True).ok
    assert started == [1, 1, 1, 3]


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="children=0"):
        Pool(children=0)
    with pytest.raises(ConfigError, match="seconds=0"):
        Pool(seconds=0)
