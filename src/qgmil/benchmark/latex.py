"""The benchmark's results as one compact LaTeX table: models x data sets."""

from __future__ import annotations

from collections.abc import Sequence

from qgmil.benchmark.notes import grid_text
from qgmil.benchmark.summary import BenchmarkSummary, Line
from qgmil.evaluation import text

WIDE = 6  # more data sets, or a longer name, turn the heads and fit the table to the page
LONG = 12


def latex_table(summary: BenchmarkSummary) -> str:
    """Macro F1, mean and sd, of every model on every data set, and average ranks; the first in rank is bold.

    Needs the packages booktabs and graphicx.
    """
    tasks, overall = summary.tasks, summary.overall
    wide = len(tasks) > WIDE or any(len(task.name) > LONG for task in tasks)
    found = {(task.name, line["model"]): line for task in tasks for line in summary.lines[task.name]}
    ranks = [s.average_rank for s in overall.standings if s.average_rank is not None]
    rows = []
    for s in overall.standings:
        cells = [_cell(found.get((task.name, s.model)), summary.lines[task.name]) for task in tasks]
        rank = (
            "--"
            if not s.ranked
            else _bold(text.number(s.average_rank, 2), bool(ranks) and s.average_rank == min(ranks))
        )
        rows.append((s.ranked, [text.latex(s.model) + (r" (control)" if s.control else ""), *cells, rank]))
    heads = [text.latex(task.name) for task in tasks]
    heads = [rf"\rotatebox{{60}}{{{head}}}" for head in heads] if wide else heads
    body = [
        rf"\begin{{tabular}}{{l{'c' * len(tasks)}c}}",
        r"\toprule",
        " & ".join(["Model", *heads, "Rank"]) + r" \\",
        r"\midrule",
        *(" & ".join(cells) + r" \\" for ranked, cells in rows if ranked),
        *([r"\midrule"] if any(not ranked for ranked, _ in rows) else []),
        *(" & ".join(cells) + r" \\" for ranked, cells in rows if not ranked),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if wide:
        body = [r"\resizebox{\textwidth}{!}{%", *body[:-1], body[-1] + "}"]
    lines = [
        "% needs: \\usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering",
        r"\small",
        r"\setlength{\tabcolsep}{4pt}",
        *body,
        rf"\caption{{{_caption(summary)}}}",
        r"\label{tab:benchmark}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _bold(cell: str, on: bool) -> str:
    return rf"\textbf{{{cell}}}" if on else cell


def _cell(line: Line | None, lines: Sequence[Line]) -> str:
    if line is None:
        return "--"
    mean, sd = line["macro_f1_mean"], line["macro_f1_sd"]
    if mean is None:
        return text.UNDEFINED
    best = min((other["rank"] for other in lines if other["rank"] is not None), default=None)
    cell = _bold(text.number(mean), best is not None and line["rank"] == best)
    cell += rf"{{\scriptsize\,$\pm$\,{sd:.3f}}}" if sd is not None else ""
    return cell + ("$^{*}$" if line["cells"] != line["expected_cells"] else "")


def _caption(summary: BenchmarkSummary) -> str:
    grids = sorted({grid_text(task) for task in summary.tasks})
    where = grids[0] if len(grids) == 1 else "all folds and seeds"
    used = len(summary.overall.tasks)
    sets = "set" if used == 1 else "sets"
    words = (
        f"Macro F1, mean $\\pm$ standard deviation over {where.replace('×', '$' + chr(92) + 'times$')}. "
        f"Rank: average over the {used} data {sets} on which all ranked models are complete, 1 is best. "
        "Bold: first in rank, which is not to say significantly so."
    )
    lines = [line for found in summary.lines.values() for line in found]
    if any(line["cells"] != line["expected_cells"] for line in lines):
        words += " $^{*}$: not all cells finished, not ranked."
    return words
