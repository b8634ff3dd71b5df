"""A Ray cluster of two nodes: the same results as local processes, bit for bit, with and without a shared folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_benchmark import ABMIL, DIVERGING, run, spec

from qgmil.benchmark.engines import ray as engine
from qgmil.benchmark.grid import run_benchmark
from qgmil.errors import ConfigError

MACHINE = ("seconds", "peak_mb")
MODELS = {"abmil": ABMIL, "wild": DIVERGING}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 1024**2}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        made.add_node(**node)
        yield made
    finally:
        made.shutdown()


def results(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in MACHINE} for row in rows]


@pytest.mark.slow
def test_a_cluster_gives_what_local_processes_give(
    cluster: Any, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = spec(cohort, models=MODELS)
    here, _ = run(small, tmp_path / "here", monkeypatch)

    def crash_once(job: dict[str, Any], threads: int) -> Any:
        mark = Path(job["folder"]) / ".crashed"
        if job["id"] == "made/abmil/fold0_seed0" and not mark.exists():
            mark.touch()
            os._exit(1)  # its process (or node) is gone: the cell is computed again
        from qgmil.benchmark.engines.ray import compute

        return compute(job, threads)

    with monkeypatch.context() as once:
        once.setattr(engine, "compute", crash_once)
        shared = run_benchmark(small, tmp_path / "shared", engine="ray", address=cluster.address)
    assert (tmp_path / "shared" / "cells" / "made" / "abmil" / "fold0_seed0" / ".crashed").exists()
    assert results(shared.rows) == results(here.rows)
    assert [r["status"] for r in shared.rows] == ["finished", "failed"] * 2
    # A node that does not see the driver's folder computes in one of its own, and the files come back.
    monkeypatch.setattr(engine, "_marked", lambda folder: {"mark": "of nobody", "library": engine.qgmil.__version__})
    apart = run_benchmark(small, tmp_path / "apart", engine="ray", address=cluster.address)
    assert results(apart.rows) == results(here.rows)
    for output in ("shared", "apart"):
        for fold in (0, 1):
            cell = Path("cells") / "made" / "abmil" / f"fold{fold}_seed0"
            for name in ("model.safetensors", "predictions.csv", "history.csv", "split.csv"):
                one, other = (tmp_path / place / cell / name for place in (output, "here"))
                assert one.read_bytes() == other.read_bytes(), name
            assert (tmp_path / output / cell / "metrics.json").is_file()
            assert not (tmp_path / output / cell / engine.MARK).exists()
    again, jobs = run(small, tmp_path / "apart", monkeypatch)
    assert jobs == [] and again.rows == apart.rows


def test_files_come_back_without_what_stays_on_the_node(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "checkpoints").mkdir(parents=True)
    (there / "search").mkdir()
    (here / "checkpoints").mkdir(parents=True)
    for name in ("metrics.json", "config.yaml", "search/journal.log", "checkpoints/last.ckpt", ".half.part"):
        (there / name).write_text(name)
    files = engine.collect_files(there)
    assert sorted(files) == ["config.yaml", "metrics.json", str(Path("search") / "journal.log")]
    engine.keep_files(here, files)
    assert (here / "search" / "journal.log").read_text() == "search/journal.log"
    assert not (here / "checkpoints").exists()  # of an earlier start here: the cell is finished


def test_a_node_with_another_version_is_said(tmp_path: Path) -> None:
    place = {"dataset": "d", "features": "", "model": "m", "recipe": "common", "fold": 0, "seed": 0, "fingerprint": "f"}
    row, files = engine.compute({**place, "config": {"model": "mean"}, "library": "0.0.1"}, 1)
    assert row["status"] == "failed" and "started with 0.0.1: install the same" in row["error"] and files == {}


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"not installed: pip install 'qgmil\[ray\]'"):
        engine.RayEngine("auto")


@pytest.mark.parametrize(
    ("address", "said"),
    [(None, "needs --address auto"), ("127.0.0.1:9", "cannot be reached"), ("here", "must be auto or host:port")],
)
def test_addresses_that_lead_nowhere(address: str | None, said: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=said):
        engine.RayEngine(address)
