"""`run_benchmark`: plan the grid, leave what is done, compute the rest, keep every row."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from qgmil.benchmark.cells import PlannedCell, chosen, plan
from qgmil.benchmark.engines import Job, choose_engine
from qgmil.benchmark.results import REPLACED, Results, key_of
from qgmil.benchmark.spec import BenchmarkSpec
from qgmil.benchmark.survey import Survey, cell_folder, move_aside, refuse_changed, survey
from qgmil.benchmark.timeleft import TimeLeft
from qgmil.errors import ConfigError, RunError
from qgmil.files import write_text

LOCK, SPEC = ".lock", "benchmark.yaml"
Only = Mapping[str, Collection[str]]


class Progress(Protocol):
    """Told how a benchmark goes on; the command line draws it."""

    def start(self, cells: int, done: int, engine: str) -> None:
        """There are that many cells, of which some are done, and an engine (in words) for the others."""

    def epoch(self, cell: str, done: int, most: int, scores: dict[str, float | None]) -> None:
        """A cell finished an epoch."""

    def row(self, row: Mapping[str, Any], done: int, left: float | None) -> None:
        """A cell ended; so many are done, and the others take `left` seconds where that can be told."""

    def note(self, text: str) -> None:
        """Something to know."""


class Silent:
    """Progress that says nothing."""

    def start(self, cells: int, done: int, engine: str) -> None: ...

    def epoch(self, cell: str, done: int, most: int, scores: dict[str, float | None]) -> None: ...

    def row(self, row: Mapping[str, Any], done: int, left: float | None) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark has come to.

    Args:
        output: its folder.
        rows: a row for each cell that is done, in the order of the grid; all columns of the results table.
        cells: how many there are (of those asked for).
        finished, failed: how many of them ended with results, and without.
        note: how to go on; empty where nothing is left.
    """

    output: Path
    rows: list[dict[str, Any]]
    cells: int
    finished: int
    failed: int
    note: str = ""


def run_benchmark(
    spec: BenchmarkSpec,
    output: str | Path | None = None,
    *,
    source: str = "benchmark",
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    only: Only | None = None,
    max_minutes: float | None = None,
    known: Sequence[Path] = (),
    retry_failed: bool = False,
    redo_changed: bool = False,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Run a benchmark, or go on with one: what is finished stays, and an unfinished cell resumes at its checkpoint.

    Args:
        spec: what to run.
        output: its folder; None: that of the spec.
        source: the name of the yaml, for messages.
        workers: cells at a time; None: one a core or GPU.
        engine, address: "local", or "ray" and the address of its cluster.
        only: parts of the grid, as {"dataset": names, "model": names, ...}.
        max_minutes: start no cell later than that.
        known: results tables of other runs, whose rows count as done where the fingerprint is the same; they take the
            place of results of changed cells.
        retry_failed: compute failed cells again.
        redo_changed: move results of changed cells aside and compute them again, instead of refusing.
        progress: told how it goes.

    Returns:
        The rows of all cells of the spec that are done, also by earlier calls. The tables in the folder have these and
        no others: rows of cells that the spec no longer has, or has with other settings, go to ``replaced.parquet``.

    Raises:
        QGMILError: whatever is wrong with the spec, before anything is trained.
        KeyboardInterrupt: Ctrl-C; finished cells are kept.
    """
    progress = progress or Silent()
    if max_minutes is not None and max_minutes < 0:
        raise ConfigError(f"--max-minutes is {max_minutes}; it must be at least 0")
    folder = output_folder(spec, output, source)
    cells = plan(spec, source, check_device=engine == "local")
    wanted = chosen(cells, only or {})
    with _locked(folder):
        settings = spec.model_dump(mode="json", exclude_defaults=True, exclude={"output"})
        write_text(folder / SPEC, yaml.safe_dump(settings, sort_keys=False))
        results = Results(folder)
        state = survey(cells, results, folder, [*spec.known, *known], retry_failed=retry_failed)
        todo = _todo(state, wanted, folder, redo_changed=redo_changed)
        move_aside(state.superseded, folder)
        if state.unused:
            progress.note(f"{state.unused} rows of known tables are of other settings than this benchmark's: not used")
        order = [c.key for c in cells]
        stale = results.keep_only({c.key: c.fingerprint for c in cells})
        if stale:
            progress.note(f"{stale} rows are of no cell of this benchmark as it is now: moved to {folder / REPLACED}")
        for row in state.adopted:
            results.rows[key_of(row)] = row
        results.flush(order)
        try:
            if todo:
                where: dict[str, Any] = {
                    "cpu_only": all(c.config.device == "cpu" for c in todo),
                    "shared": any(c.config.devices != 1 for c in todo),
                }
                with choose_engine(engine, workers=workers, address=address, **where) as chosen_engine:
                    progress.start(len(wanted), len(wanted) - len(todo), chosen_engine.name)
                    left = TimeLeft(results.rows.values())
                    _compute(chosen_engine, todo, folder, results, progress, left, len(wanted), max_minutes)
        finally:
            results.flush(order)
    return _result(folder, cells, wanted, results)


def output_folder(spec: BenchmarkSpec, output: str | Path | None, source: str) -> Path:
    """The folder of a benchmark.

    Raises:
        ConfigError: neither the spec nor the call names one.
    """
    folder = output if output is not None else spec.output
    if folder is None:
        raise ConfigError(f"{source}: names no output folder: set output there, or give -o FOLDER")
    return Path(folder)


def state_of(
    spec: BenchmarkSpec,
    output: str | Path | None = None,
    *,
    source: str = "benchmark",
    only: Only | None = None,
    known: Sequence[Path] = (),
) -> tuple[list[PlannedCell], Survey]:
    """The cells asked for, and what of them is done; nothing is written or computed.

    Raises:
        QGMILError: as `run_benchmark`.
    """
    folder = output_folder(spec, output, source)
    cells = chosen(plan(spec, source, check_device=False), only or {})
    return cells, survey(cells, Results(folder), folder, [*spec.known, *known])


def _todo(state: Survey, wanted: Sequence[PlannedCell], folder: Path, *, redo_changed: bool) -> list[PlannedCell]:
    """The cells to compute, in order; those that changed among them if they may be computed again."""
    keys = {c.key for c in wanted}
    changed = [(c, why) for c, why in state.changed if c.key in keys]
    if not redo_changed:
        refuse_changed(changed, folder)
    move_aside((c for c, _ in changed), folder)
    todo = {c.key for c in (*state.todo, *(c for c, _ in changed))}
    return [c for c in wanted if c.key in todo]


def _compute(
    engine: Any,
    todo: Sequence[PlannedCell],
    folder: Path,
    results: Results,
    progress: Progress,
    time_left: TimeLeft,
    cells: int,
    max_minutes: float | None,
) -> None:
    """Have the engine compute cells, and keep each row as it comes."""
    left = {c.key: c for c in todo}
    began = time.monotonic()

    def jobs() -> Iterator[Job]:
        for cell in todo:
            if max_minutes is not None and time.monotonic() - began >= 60 * max_minutes:
                return
            yield cell.job(str(cell_folder(folder.absolute(), cell)))

    for row in engine.run(jobs(), progress.epoch):
        results.add(row)
        left.pop(key_of(row), None)
        if row["status"] == "finished":
            time_left.add(row, float(row["seconds"] or 0.0))
        progress.row(row, cells - len(left), time_left.left(left.values(), engine.workers))


def _result(
    folder: Path, cells: Sequence[PlannedCell], wanted: Sequence[PlannedCell], results: Results
) -> BenchmarkResult:
    now = {c.key: c.fingerprint for c in cells}
    rows = [results.rows[k] for k in now if k in results.rows and results.rows[k]["fingerprint"] == now[k]]
    asked = {c.key for c in wanted}
    status = [r["status"] for r in rows if key_of(r) in asked]
    finished, failed = status.count("finished"), status.count("failed")
    notes = []
    if len(wanted) > finished + failed:
        notes.append(f"{len(wanted) - finished - failed} of {len(wanted)} cells are left: run the same command again")
    if failed:
        notes.append(f"{failed} of {len(wanted)} cells failed (column error): --retry-failed computes them again")
    return BenchmarkResult(folder, rows, len(wanted), finished, failed, "; ".join(notes))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep two runs from computing the same cells in the same folder.

    Raises:
        RunError: another one is at work, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise RunError(f"{folder}: cannot write the benchmark's folder ({error.strerror or error})") from None
    with file:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            who = file.read().strip()
            raise RunError(
                f"{folder}: another qgmil benchmark is running in it{f' (process {who})' if who else ''}; wait for it, "
                "or choose another output"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
