"""Cells as tasks of a Ray cluster: many machines, GPUs as resources.

Every node needs this library and the data under the same paths. The output folder may be shared by the nodes; where it
is not, a cell is computed in the node's temporary folder and its files come back with its row.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch

import qgmil
from qgmil.benchmark.engines import Job, OnEpoch, Row
from qgmil.benchmark.rows import failed_row
from qgmil.benchmark.worker import run_job
from qgmil.errors import ConfigError, RunError
from qgmil.files import atomic_path
from qgmil.training.runfolder import METRICS, drop_checkpoints

RETRIES = 3  # of a cell whose node or process died
CONNECT_SECONDS = 5.0
POLL_SECONDS = 1.0
MARK = ".driver"
NOT_BACK = ("checkpoints", "tensorboard")  # what only resuming and TensorBoard need


class RayEngine:
    """A Ray cluster that is already there. Results are those of local processes with as many threads.

    A cell takes as many CPUs as it has threads (OMP_NUM_THREADS, else 1, else the CPUs that there are for each GPU) and
    a GPU where the cluster has any. One whose process or node dies is computed again, elsewhere if need be.

    Args:
        address: "auto", or host:port of the cluster.
        workers: most cells at a time; None: as many as the cluster has room for.
        cpu_only: leave GPUs alone.

    Raises:
        ConfigError: Ray is not installed, no address, or no cluster there.
    """

    def __init__(self, address: str | None, workers: int | None = None, *, cpu_only: bool = False) -> None:
        self._ray = _connect(address)
        self._most = workers
        there = self._ray.cluster_resources()
        cpus, gpus = there.get("CPU", 0.0), 0.0 if cpu_only else there.get("GPU", 0.0)
        given = os.environ.get("OMP_NUM_THREADS", "")
        self.threads = int(given) if given.isdigit() and int(given) else max(1, int(cpus // gpus)) if gpus else 1
        self._task = self._ray.remote(
            num_cpus=self.threads, num_gpus=1 if gpus else 0, max_retries=RETRIES, retry_exceptions=False
        )(compute)
        self._gpus = bool(gpus)

    @property
    def workers(self) -> int:
        """Cells that the cluster has room for now; nodes come and go."""
        there = self._ray.cluster_resources()
        room = int(there.get("GPU", 0.0)) if self._gpus else int(there.get("CPU", 0.0) // self.threads)
        return max(1, min(room, self._most or room))

    @property
    def name(self) -> str:
        """In words."""
        nodes = sum(bool(node["Alive"]) for node in self._ray.nodes())
        return f"Ray: {nodes} nodes, {self.workers} cells at a time of {self.threads} threads"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_: object) -> None:
        self._ray.shutdown()

    def run(self, jobs: Iterator[Job], on_epoch: OnEpoch) -> Iterator[Row]:
        """As `Engine.run`; epochs are not told of."""
        running: dict[Any, Job] = {}
        more = True
        try:
            while more or running:
                while more and len(running) < self.workers:
                    job = next(jobs, None)
                    more = job is not None
                    if job is not None:
                        running[self._task.remote({**job, **_marked(Path(job["folder"]))}, self.threads)] = job
                done, _ = self._ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS) if running else ([], [])
                for reference in done:
                    yield self._row(reference, running.pop(reference))
        finally:
            for reference in running:  # given up: Ctrl-C
                with contextlib.suppress(Exception):
                    self._ray.cancel(reference, force=True)

    def _row(self, reference: Any, job: Job) -> Row:
        folder = Path(job["folder"])
        (folder / MARK).unlink(missing_ok=True)
        try:
            row, files = self._ray.get(reference)
            keep_files(folder, files)
        except self._ray.exceptions.RayError as error:
            said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            return failed_row(job, f"{type(error).__name__}: {said}"[:500])
        return dict(row)


def compute(job: Job, threads: int) -> tuple[Row, dict[str, bytes]]:
    """The task: the row of a cell, and its files where the driver does not see the folder that they are in."""
    torch.set_num_threads(threads)
    if job["library"] != qgmil.__version__:
        here = f"node {socket.gethostname()} has qgmil {qgmil.__version__}"
        return failed_row(job, f"{here}, the benchmark was started with {job['library']}: install the same"), {}
    if _sees(Path(job["folder"]), job["mark"]):
        return run_job(job), {}
    folder = node_folder(job)
    row = run_job({**job, "folder": str(folder)})
    files = collect_files(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return row, files


def node_folder(job: Job) -> Path:
    """Where a node computes a cell: found again after a crash there. Two cells of one fingerprint have one each."""
    name = hashlib.sha256(job["id"].encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"qgmil-{job['fingerprint'][:32]}-{name}"


def collect_files(folder: Path) -> dict[str, bytes]:
    """The files of a run folder by name, without those that stay on the node."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in NOT_BACK]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if not p.name.startswith(".")}


def keep_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a cell's files; the one that says that it is finished comes last."""
    for name in sorted(files, key=lambda n: n == METRICS):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as partial:
            partial.write_bytes(files[name])
    if METRICS in files:
        drop_checkpoints(folder)


def _marked(folder: Path) -> dict[str, str]:
    """A mark in the cell's folder, by which a node knows that it sees the driver's folder and not one of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    (folder / MARK).write_text(mark, encoding="utf-8")
    return {"mark": mark, "library": qgmil.__version__}


def _sees(folder: Path, mark: str) -> bool:
    try:
        return (folder / MARK).read_text(encoding="utf-8") == mark
    except OSError:
        return False


def _connect(address: str | None) -> Any:
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        import ray.exceptions
    except ImportError:
        raise ConfigError("--engine ray needs Ray, which is not installed: pip install 'qgmil[ray]'") from None
    if not address:
        raise ConfigError("--engine ray needs --address auto (a cluster of this machine) or --address host:port")
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--address {address}: there is no Ray cluster ({said}); start one with ray start") from None
    if not ray.cluster_resources().get("CPU"):
        ray.shutdown()
        raise RunError(f"the Ray cluster at {address} has no CPUs")
    return ray


def _check_reachable(address: str) -> None:
    """Ray itself tries for a minute before it gives up."""
    if address == "auto":
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise ConfigError(f"--address is {address!r}; it must be auto or host:port")
    if host in ("localhost", "127.0.0.1") and not address.startswith("ray://"):
        from ray.util import get_node_ip_address

        host = get_node_ip_address()  # where Ray looks for it, whatever it was told
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"--address {address}: {host}:{port} cannot be reached ({error.strerror or error})") from None
