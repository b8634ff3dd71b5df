"""``qgmil benchmark``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

from cyclopts import App, Parameter

from qgmil.cli.options import Positive
from qgmil.errors import ConfigError

app = App(
    help_epilogue="""Examples:

    qgmil benchmark paper.yaml -o runs/paper
    qgmil benchmark paper.yaml --workers 2 --max-minutes 55
    qgmil benchmark paper.yaml --only dataset=glas,model=qgmil
    qgmil benchmark paper.yaml --engine ray --address auto

Killed or interrupted, the same command goes on: what is finished is not computed again.""",
    help_format="plaintext",
    default_parameter=Parameter(consume_multiple=True),
)


@app.default
def benchmark(
    spec: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    workers: Positive = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    only: tuple[str, ...] = (),
    max_minutes: float | None = None,
    known: tuple[Path, ...] = (),
    retry_failed: Annotated[bool, Parameter(negative=())] = False,
    redo_changed: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    tables_only: Annotated[bool, Parameter(negative=())] = False,
    quiet: Annotated[bool, Parameter(alias="-q", negative=())] = False,
) -> None:
    """Compare aggregators over data sets, folds and seeds: a grid of cells, computed side by side, resumable.

    Parameters
    ----------
    spec
        YAML file: data sets, models, folds, seeds, recipe.
    output
        Folder of the results (results.parquet, results.csv, tables) and of one run folder a cell. Default: that of
        the YAML file.
    workers
        Cells at a time. Default: one a core, or one a GPU. The threads of each are the cores divided among them, or
        OMP_NUM_THREADS.
    engine
        local: processes of this machine. ray: a cluster.
    address
        Of the Ray cluster: auto, or host:port.
    only
        Parts of the grid: dataset=a,dataset=b,model=qgmil (also features, fold, seed).
    max_minutes
        Start no cell after that; the command then ends well and says how to go on.
    known
        Results tables (results.parquet) of other runs: their cells are not computed again where everything that
        decides them is the same.
    retry_failed
        Compute cells again that failed.
    redo_changed
        Cells whose settings have changed: move their old results to replaced/ and replaced.parquet and compute them,
        instead of refusing.
    dry_run
        Check everything, say what there is to do, and stop.
    tables_only
        Only write and print the tables of what is finished.
    quiet
        No progress and no tables on the terminal, only errors.
    """
    from qgmil.benchmark.grid import run_benchmark, state_of
    from qgmil.benchmark.spec import BenchmarkSpec
    from qgmil.cli.output import how_to_go_on, say

    loaded = BenchmarkSpec.read(spec)
    parts = parse_only(only)
    settings: dict[str, Any] = {"source": str(spec), "only": parts, "known": known}
    if dry_run:
        _say_state(*state_of(loaded, output, **settings))
        return
    if tables_only:
        cells, state = state_of(loaded, output, **settings)
        rows = [state.rows[c.key] for c in cells if c.key in state.rows]
        _tables(output or loaded.output or Path(), rows, quiet)
        return
    with Progress(quiet) as progress, how_to_go_on():
        result = run_benchmark(
            loaded,
            output,
            **settings,
            workers=workers,
            engine=engine,
            address=address,
            max_minutes=max_minutes,
            retry_failed=retry_failed,
            redo_changed=redo_changed,
            progress=progress,
        )
    _tables(result.output, result.rows, quiet)
    if not quiet:
        say(f"{result.finished} of {result.cells} cells are finished: {result.output / 'results.csv'}")
        if result.note:
            say(result.note)


def parse_only(texts: Sequence[str]) -> dict[str, list[str]]:
    """``dataset=a,model=b`` as {"dataset": ["a"], "model": ["b"]}; a part may be there several times.

    Raises:
        ConfigError: something else.
    """
    parts: dict[str, list[str]] = {}
    for text in (t.strip() for whole in texts for t in whole.split(",") if t.strip()):
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise ConfigError(f"--only {text}: write it as dataset=NAME,model=NAME")
        parts.setdefault(name.strip(), []).append(value.strip())
    return parts


def duration(seconds: float | None) -> str:
    """Seconds in words: 45 s, 12 min, 3 h 20 min."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _tables(output: Path, rows: list[dict[str, Any]], quiet: bool) -> None:
    """Write the tables of the rows, and print them."""
    from qgmil.benchmark.results import as_table
    from qgmil.benchmark.summary import summarise_benchmark
    from qgmil.benchmark.tables import print_tables, write_tables
    from qgmil.cli.output import say

    if not rows:
        say("no cell has ended yet: there are no tables")
        return
    summary = summarise_benchmark(as_table(rows))
    write_tables(output, summary)
    if not quiet:
        print_tables(summary)


def _say_state(cells: Sequence[Any], state: Any) -> None:
    from qgmil.benchmark.timeleft import TimeLeft
    from qgmil.cli.output import console

    for name in dict.fromkeys((c.dataset, c.features) for c in cells):
        mine = [c for c in cells if (c.dataset, c.features) == name]
        done = [state.rows[c.key]["status"] for c in mine if c.key in state.rows]
        said = f"{done.count('finished')} finished" + (f", {done.count('failed')} failed" if "failed" in done else "")
        console.print(
            f"{'.'.join(filter(None, name))}: {len(mine)} cells ({len({c.model for c in mine})} models, "
            f"{len({c.fold for c in mine})} folds, {len({c.seed for c in mine})} seeds), {said}",
            markup=False,
        )
    left = TimeLeft(state.rows.values()).left(state.todo, 1)
    time = f", about {duration(left)} on one worker" if left else ""
    console.print(f"{len(cells)} cells in all, {len(state.todo)} to compute{time}")
    for cell, change in state.changed[:10]:
        console.print(f"changed: {cell.id}: {change}", markup=False)


class Progress:
    """A bar for the cells and one for each that is computed, on a terminal; one line a cell elsewhere."""

    def __init__(self, quiet: bool) -> None:
        from rich import progress

        from qgmil.cli.output import messages

        self.quiet, self.messages = quiet, messages
        self.live = messages.is_terminal and not quiet
        text, note = progress.TextColumn("{task.description}"), progress.TextColumn("{task.fields[note]}")
        columns = (text, progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeElapsedColumn(), note)
        self.bars = progress.Progress(*columns, console=messages, transient=True, disable=not self.live)
        self.cells, self.began = 0, time.monotonic()
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def note(self, text: str) -> None:
        """Something to know."""
        if not self.quiet:
            self.messages.print(text, markup=False, soft_wrap=True)

    def start(self, cells: int, done: int, engine: str) -> None:
        """There are that many cells, of which some are done."""
        self.cells = cells
        self.all = self.bars.add_task("cells", total=cells, completed=done, note="")
        self.note(f"{cells} cells, {done} of them done; {cells - done} to compute with {engine}")

    def epoch(self, cell: str, done: int, most: int, scores: dict[str, float | None]) -> None:
        """A cell finished an epoch."""
        if self.live:
            if cell not in self.tasks:
                self.tasks[cell] = self.bars.add_task(cell, total=most, note="")
            self.bars.update(self.tasks[cell], completed=done, total=most)

    def row(self, row: Mapping[str, Any], done: int, left: float | None) -> None:
        """A cell ended."""
        features = f".{row['features']}" if row["features"] else ""
        cell = f"{row['dataset']}{features}/{row['model']}/fold{row['fold']}_seed{row['seed']}"
        if cell in self.tasks:
            self.bars.remove_task(self.tasks.pop(cell))
        remaining = f"{duration(left)} left" if left else ""
        self.bars.update(self.all, completed=done, note=remaining)
        if row["status"] == "failed":
            self.note(f"[{done}/{self.cells}] {cell}: failed: {row['error']}")
        elif not self.live:
            figures = [f"{name} {row[key]:.3f}" for name, key in _FIGURES if row[key] is not None]
            took = f"{row['epochs']} epochs in {row['seconds']:.1f} s"
            self.note(f"[{done}/{self.cells}] {cell}: {', '.join([*figures, took])}{f'; {remaining}' if left else ''}")


_FIGURES = (("macro F1", "macro_f1"), ("AUROC", "auroc"))
