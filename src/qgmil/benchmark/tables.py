"""The benchmark's tables: on the terminal, as Markdown, LaTeX, CSV and figures."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qgmil.benchmark.collect import Task
from qgmil.benchmark.notes import (
    baseline_note,
    friedman_text,
    left_out_notes,
    overall_caption,
    task_caption,
    task_notes,
)
from qgmil.benchmark.summary import BenchmarkSummary, Line, summarise_benchmark
from qgmil.evaluation.text import UNDEFINED, duration, interval, number, one_line, p_value, rank, spread
from qgmil.files import write_csv, write_text

FOLDER = "tables"
SHORT = "undef."  # ten columns of "undefined" would leave no room for the model's name
SUMMARY, MARKDOWN, LATEX = "summary.csv", "results.md", "results.tex"


def print_tables(rows: pl.DataFrame | BenchmarkSummary, console: Console | None = None) -> None:
    """Print one table a data set and, for several, one over all; 100 columns wide.

    Args:
        rows: the results table, or its summary where there is one already.
        console: where to; None for standard output.

    Raises:
        MetricError: as `summarise_benchmark`.
    """
    summary = rows if isinstance(rows, BenchmarkSummary) else summarise_benchmark(rows)
    console = console or Console(highlight=False)
    captions = {task.name: task_caption(task, summary.lines[task.name]) for task in summary.tasks}
    shared = len(set(captions.values())) == 1  # then said once, below all tables
    for task in summary.tasks:
        lines = summary.lines[task.name]
        console.print(task_table(task, lines))
        for note in (baseline_note(lines), *task_notes(lines)):
            if note:
                console.print(Text(note))
        if not shared:
            console.print(Text(captions[task.name], style="dim"))
        console.print()
    if len(summary.tasks) > 1:
        console.print(overall_table(summary))
        for note in (friedman_text(summary.overall), *left_out_notes(summary.overall)):
            console.print(Text(note))
    if shared:
        console.print(Text(captions[summary.tasks[0].name], style="dim"))
    if len(summary.tasks) > 1:
        console.print(Text(overall_caption(summary), style="dim"))


def task_table(task: Task, lines: list[Line]) -> Table:
    """One data set on the terminal."""
    table = _empty(f"{one_line(task.name)}: {len(lines)} models")
    table.add_column("model", overflow="fold", min_width=10)
    for name in ("macro F1", "rank", "95 %", "AUROC", "diff.", "p", "seed\nsd", "ECE", "top\n10 %", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    best = best_rank(lines)
    for line in lines:
        ece = f"{number(line['ece'], 2)}→{number(line['ece_calibrated'], 2)}"
        cells = (
            rank(line["rank"]),
            interval(line["macro_f1_low"], line["macro_f1_high"], 2),
            number(line["auroc_mean"]),
            number(line["difference"], signed=True),
            p_value(line["difference_p"]),
            number(line["macro_f1_seed_sd"]),
            UNDEFINED if line["ece"] is None else ece,
            "none" if line["top_10pct"] is None else number(line["top_10pct"], 2),
            duration(line["seconds"]),
        )
        f1 = spread(line["macro_f1_mean"], line["macro_f1_sd"], 2, "±")
        table.add_row(
            Text(display_name(line), style="dim" if line["control"] else ""),
            Text(f1.replace(UNDEFINED, SHORT), style="bold" if is_best(line, best) else ""),
            *(cell.replace(UNDEFINED, SHORT) for cell in cells),
        )
    return table


def overall_table(summary: BenchmarkSummary) -> Table:
    """All data sets on the terminal."""
    overall = summary.overall
    table = _empty(f"Over {len(summary.tasks)} data sets")
    table.add_column("model", overflow="fold", min_width=10)
    for name in ("average rank", "wins", "macro F1", "difference", "p", "p (Holm)", "data sets"):
        table.add_column(name, justify="right", no_wrap=True)
    for standing in overall.standings:
        test = standing.wilcoxon
        name = one_line(standing.model) + (" (control)" if standing.control else "")
        table.add_row(
            Text(name + (" (reference)" if standing.model == overall.reference else "")),
            "not ranked" if not standing.ranked else number(standing.average_rank, 2),
            "–" if standing.wins is None else str(standing.wins),
            number(standing.macro_f1),
            "–" if test is None else number(test.difference, signed=True),
            "–" if test is None else p_value(test.p),
            "–" if test is None else p_value(standing.p_holm),
            "–" if test is None else str(test.n),
        )
    return table


def _empty(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )


def display_name(line: Line) -> str:
    """The model, marked as a control and as incomplete where it is."""
    name = one_line(line["model"]) + (" (control)" if line["control"] else "")
    return name if line["cells"] == line["expected_cells"] else f"{name} [{line['cells']}/{line['expected_cells']}]"


def best_rank(lines: list[Line]) -> float | None:
    """The rank of the first; ties share it."""
    return min((line["rank"] for line in lines if line["rank"] is not None), default=None)


def is_best(line: Line, best: float | None) -> bool:
    """Whether the model is first of the ranked ones."""
    return best is not None and line["rank"] == best


def write_tables(
    output: Path, rows: pl.DataFrame | BenchmarkSummary, title: str = "Benchmark", *, figures: bool = True
) -> list[Path]:
    """Write summary.csv, results.md, results.tex and the figures into the folder `tables` of the benchmark.

    A figure that the results do not define (no attention, no Friedman test) is not written, and one left from before
    is removed.

    Args:
        output: the benchmark's folder.
        rows: the results table, or its summary.
        title: heading of the Markdown page.
        figures: whether to draw; the page then shows them.

    Returns:
        What was written.

    Raises:
        MetricError: as `summarise_benchmark`.
        OSError: the folder cannot be written.
    """
    from qgmil.benchmark.latex import latex_table
    from qgmil.benchmark.markdown import markdown_page

    summary = rows if isinstance(rows, BenchmarkSummary) else summarise_benchmark(rows)
    folder = Path(output) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    if figures:
        from qgmil.benchmark.figures import draw_figures  # late: matplotlib takes a second

        drawn = draw_figures(summary, folder)
    write_csv(folder / SUMMARY, [line for lines in summary.lines.values() for line in lines])
    write_text(folder / MARKDOWN, markdown_page(summary, title, [path.name for path in drawn]))
    write_text(folder / LATEX, latex_table(summary))
    return [folder / SUMMARY, folder / MARKDOWN, folder / LATEX, *drawn]
