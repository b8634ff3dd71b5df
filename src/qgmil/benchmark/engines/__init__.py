"""Where cells are computed: processes of this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from qgmil.errors import ConfigError

ENGINES = ("local", "ray")
Job = dict[str, Any]
Row = dict[str, Any]
#: Told of a cell's epochs: (job id, epochs done, epochs at most, scores).
OnEpoch = Callable[[str, int, int, dict[str, float | None]], None]


class Engine(Protocol):
    """Computes cells side by side. A context manager: nothing that it started is left when it ends."""

    @property
    def workers(self) -> int:
        """How many cells are computed at a time, for the time left."""

    @property
    def name(self) -> str:
        """In words, for the user."""

    def run(self, jobs: Iterator[Job], on_epoch: OnEpoch) -> Iterator[Row]:
        """Rows as cells end, in any order. A job is drawn only when somebody is free to do it."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exit_: object) -> None: ...


def choose_engine(
    name: str, *, workers: int | None, address: str | None, cpu_only: bool, shared: bool = False
) -> Engine:
    """The engine of that name.

    Args:
        workers: cells at a time; None: as many as the machine has cores or GPUs.
        address: of the Ray cluster.
        cpu_only: no cell uses a GPU even where there is one.
        shared: a cell may use all GPUs at once (its `devices`): then there is one at a time.

    Raises:
        ConfigError: unknown, not installed, or options of the other engine.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is {workers}; it must be at least 1")
    if name == "local":
        if address is not None:
            raise ConfigError("--address is that of a Ray cluster: add --engine ray")
        from qgmil.benchmark.engines.local import LocalEngine

        return LocalEngine(workers, cpu_only=cpu_only, shared=shared)
    if name == "ray":
        from qgmil.benchmark.engines.ray import RayEngine

        return RayEngine(address, workers, cpu_only=cpu_only)
    raise ConfigError(f"--engine is {name!r}; there are {', '.join(ENGINES)}")
