"""What the terminal shows: progress and results."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qgmil.report.data import load_result
from qgmil.report.tables import comparison_table, number

console = Console(highlight=False)
#: Seconds left that are worth a word.
LONG = 90
messages = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A message on standard error; never read as markup, because it names files and bags."""
    messages.print(text, markup=False, soft_wrap=True)


@contextlib.contextmanager
def how_to_go_on(kept: str = "cells") -> Iterator[None]:
    """What an interrupted command has finished is kept, and by which command it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["qgmil", *sys.argv[1:]]) if len(sys.argv) > 1 else "the same command"
        raise KeyboardInterrupt(f"interrupted; finished {kept} are kept, go on with: {command}") from None


class Once(logging.Handler):
    """Shows each message of the library once, however many models say it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message that was not there yet."""
        text = record.getMessage()
        if text not in self.shown:
            self.shown.add(text)
            say(text)


class RichProgress:
    """Bars for cells and epochs on a terminal; one line a cell elsewhere."""

    def __init__(self) -> None:
        self.live = messages.is_terminal
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=messages,
            transient=True,
            disable=not self.live,
        )
        self.cells, self.done = 0, 0
        self.once = Once()

    def __enter__(self) -> Self:
        self.bars.start()
        logger = logging.getLogger("qgmil")
        logger.addHandler(self.once)
        logger.setLevel(logging.INFO)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()
        logging.getLogger("qgmil").removeHandler(self.once)

    def start(self, cells: int, done: int) -> None:
        """The run has that many cells, of which some are already done."""
        self.cells, self.done = cells, done
        self.all = self.bars.add_task("models", total=cells, completed=done, note="")
        self.one = self.bars.add_task("epochs", total=None, note="")
        if done:
            messages.print(f"{done} of {cells} models are already trained")

    def epoch(self, cell: str, done: int, most: int, scores: dict[str, float | None]) -> None:
        """A cell finished an epoch."""
        note = "  ".join(
            f"{k} {v:.3f}" for k, v in scores.items() if v is not None and k in ("val_loss", "val_macro_f1")
        )
        self.bars.update(self.one, description=f"epochs of {cell}", total=most, completed=done, note=note)

    def cell(self, metrics: dict[str, Any]) -> None:
        """A cell is finished."""
        self.done += 1
        self.bars.update(self.all, completed=self.done)
        self.bars.reset(self.one)
        if not self.live:
            test = metrics["test"]
            messages.print(
                f"[{self.done}/{self.cells}] fold {metrics['fold']} seed {metrics['seed']}: "
                f"macro F1 {number(test['macro_f1'])}, AUROC {number(test['auroc'])}, "
                f"{metrics['epochs']} epochs in {metrics['seconds']:.1f} s"
            )


class Counter:
    """A bar that counts bags, on a terminal only."""

    def __init__(self, what: str, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal)
        self.task = self.bars.add_task(what, total=total)

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def __call__(self, done: int) -> None:
        self.bars.update(self.task, completed=done)


class BagProgress:
    """A bar of bags on a terminal with the time left; one line a bag elsewhere."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self.total, self.quiet, self.live = total, quiet, messages.is_terminal
        self.started = time.monotonic()
        columns = (TextColumn("bags"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        note = TextColumn("{task.fields[note]}", markup=False)
        self.bars = Progress(*columns, note, console=messages, transient=True, disable=quiet or not self.live)
        self.task = self.bars.add_task("bags", total=total, note="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def __call__(self, done: int, text: str) -> None:
        self.bars.update(self.task, completed=done, note=text)
        if not (self.quiet or self.live):
            left = (time.monotonic() - self.started) / done * (self.total - done)
            say(f"[{done}/{self.total}] {text}" + (f"; about {left / 60:.0f} min left" if left > LONG else ""))


def finish_run(folder: Path, *, quiet: bool = False) -> None:
    """Write the run's page and figures, and print its table."""
    from qgmil.report.page import write_report  # late: matplotlib takes a second, which other verbs need not wait for

    write_report(folder)
    if not quiet:
        console.print(comparison_table([folder]))
        skipped = load_result(folder).skipped
        if skipped:
            say(f"{len(skipped)} files or bags were skipped as asked; they are listed in {folder / 'skipped.csv'}")
        say(f"run folder: {folder}   page: {folder / 'report.html'}")
