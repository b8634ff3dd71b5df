"""`qgmil benchmark` as a user runs it: kill it, interrupt it, go on, look at the tables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from cohort import make_cohort
from qgmil.benchmark.results import read_rows
from qgmil.cli import main
from qgmil.cli.benchmark import duration, parse_only
from qgmil.errors import ConfigError

SPEC = {
    "output": "out",
    "folds": 2,
    "seeds": 1,
    "common": {"epochs": 2, "lr": 3e-3, "batch_size": 8, "device": "cpu", "precision": "32", "checkpoint_seconds": 0},
    "models": {"qgmil": {"options": {"width": 16, "num_heads": 2, "ffn_dim": 16}}},
}


def write(folder: Path, **changes: Any) -> Path:
    make_cohort(folder / "data", patients=12)
    spec = {**SPEC, "datasets": {"made": {"manifest": "data/bags.csv"}}, **changes}
    (folder / "bench.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return folder / "bench.yaml"


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", *map(str, arguments)])
    return int(stop.value.code or 0)


def test_from_yaml_to_tables_and_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write(tmp_path)
    assert command(spec, "--dry-run") == 0
    assert "made: 8 cells (4 models, 2 folds, 1 seeds), 0 finished" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert command(spec, "--workers", 1, "--only", "dataset=made,fold=0") == 0
    said = capsys.readouterr()
    assert "4 cells, 0 of them done" in said.err and "[4/4] made/" in said.err
    assert "qgmil" in said.out and "majority" in said.out  # the table
    assert "4 of 4 cells are finished" in said.err
    assert command(spec, "--dry-run") == 0
    assert "4 finished" in capsys.readouterr().out
    assert command(spec, "--workers", 1, "--max-minutes", 0) == 0
    assert "4 of 8 cells are left: run the same command again" in capsys.readouterr().err
    assert command(spec, "--tables-only") == 0
    assert "qgmil" in capsys.readouterr().out
    table = pl.read_csv(tmp_path / "out" / "results.csv")
    assert table["fold"].to_list() == [0] * 4 and set(table["status"]) == {"finished"}
    cell = tmp_path / "out" / "cells" / "made" / "qgmil" / "fold0_seed0"
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(cell), str(tmp_path / "data" / "bags.csv"), "-o", str(tmp_path / "p.csv")])
    assert stop.value.code == 0 and len(pl.read_csv(tmp_path / "p.csv")) == 24
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(cell), str(cell.parent.parent / "majority" / "fold0_seed0")])
    assert stop.value.code == 0


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"modls": {}}, (), r"bench.yaml: there is no option 'modls'"),
        ({"output": None}, (), "names no output folder"),
        ({}, ("--only", "model=abmil"), "--only model=abmil: there is none"),
        ({}, ("--only", "model"), "--only model: write it as"),
        ({}, ("--engine", "ray"), "--engine ray needs --address"),
        ({}, ("--engine", "ray", "--address", "127.0.0.1:9"), ":9 cannot be reached"),
        ({}, ("--engine", "ray", "--address", "here"), "must be auto or host:port"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], arguments: tuple[str, ...], said: str
) -> None:
    assert command(write(tmp_path, **changes), *arguments) == 1
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and err.startswith("qgmil: ")
    assert not list(tmp_path.rglob("metrics.json"))


def start(spec: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qgmil", "benchmark", str(spec), "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background of a script ignores SIGINT, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(ready: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not ready():
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            pytest.fail(f"not ready: {child.communicate()}")
        time.sleep(0.05)


def children(process: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts processes in /proc")
@pytest.mark.timeout(600)
def test_killed_started_again_and_interrupted(tmp_path: Path) -> None:
    """It leaves no process behind and redoes nothing; the cell that it was in goes on at its checkpoint."""
    long = {"train": {"epochs": 3000, "patience": 3000}}
    models = {"quick": {"model": "mean", "options": {"width": 8}}, "abmil": {**long, "options": {"width": 8}}}
    spec = write(tmp_path, models=models, controls=False)
    quick, slow = (tmp_path / "out" / "cells" / "made" / m / "fold0_seed0" for m in models)
    history = slow / "history.csv"
    first = start(spec)
    wait_for(lambda: (slow / "checkpoints" / "last.ckpt").exists(), first)
    [worker] = children(first.pid)
    first.kill()
    first.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (quick / "metrics.json").exists() and not (slow / "metrics.json").exists()
    assert [r["model"] for r in read_rows(tmp_path / "out")] == ["quick"]  # in the journal only
    before = {p: p.stat().st_mtime_ns for p in (*quick.rglob("*"), history)}
    epochs = len(history.read_text().splitlines())
    second = start(spec)
    wait_for(lambda: history.stat().st_mtime_ns != before[history], second)
    assert len(history.read_text().splitlines()) >= epochs  # not from the first epoch
    [worker] = children(second.pid)
    os.kill(second.pid, signal.SIGINT)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 130 and "finished cells are kept, go on with: qgmil benchmark" in err, err
    assert "Traceback" not in err and "1 of them done" in err and not alive(worker)
    assert all(p.stat().st_mtime_ns == before[p] for p in quick.rglob("*"))
    assert pl.read_csv(tmp_path / "out" / "results.csv")["model"].to_list() == ["quick"]


def test_only_and_durations() -> None:
    assert parse_only(["dataset=a,model=b", "model=c"]) == {"dataset": ["a"], "model": ["b", "c"]}
    with pytest.raises(ConfigError, match="--only a=: write it as"):
        parse_only(["a="])
    assert [duration(s) for s in (None, 12.4, 600, 12000)] == ["unknown", "12 s", "10 min", "3 h 20 min"]


def test_known_results_from_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write(tmp_path, models={"quick": {"model": "mean", "options": {"width": 8}}}, controls=False)
    assert command(spec, "--workers", 1, "-q") == 0
    assert capsys.readouterr() == ("", "")
    table = (tmp_path / "out" / "results.parquet").rename(tmp_path / "paper.parquet")
    assert command(spec, "-o", tmp_path / "new", "--known", table) == 0
    assert "2 of 2 cells are finished" in capsys.readouterr().err
    assert not (tmp_path / "new" / "cells").exists()
    assert json.loads(pl.read_parquet(tmp_path / "new" / "results.parquet").write_json())[0]["status"] == "finished"
