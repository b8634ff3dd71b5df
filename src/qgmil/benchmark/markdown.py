"""The benchmark's results as a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence

from qgmil.benchmark.notes import (
    baseline_note,
    friedman_text,
    left_out_notes,
    overall_caption,
    task_caption,
    task_notes,
)
from qgmil.benchmark.summary import BenchmarkSummary, Line
from qgmil.evaluation import text

FIGURES = {
    "critical_difference.png": "Average ranks; models joined by a bar do not differ by the Nemenyi test",
    "macro_f1.png": "Macro F1: mean and sd over cells, folds as faint dots",
    "concentration.png": "Attention mass of the most attended 10 % of instances",
    "calibration.png": "Calibration error before and after temperature scaling",
}
COLUMNS = (
    *("model", "macro F1", "rank", "95 % interval", "AUROC", "difference (p)", "seed sd", "ECE", "NLL"),
    *("top 10 %", "seed distance", "parameters", "time", "peak MB"),
)
LEGEND = (
    "top 10 %: attention mass of the most attended tenth of the instances, 0.1 where attention is uniform. Seed "
    "distance: total variation distance between the probabilities that two seeds give a bag. ECE, NLL: before → after "
    "temperature scaling. Time and peak memory: median of a cell. (control): shows what needs no attention over "
    "instances. Bold: first in rank."
)


def markdown_page(summary: BenchmarkSummary, title: str, figures: Sequence[str] = (), *, tasks: bool = True) -> str:
    """The whole page: over data sets first where there are several, then one table a data set, if `tasks`."""
    parts = [f"# {text.markdown(title)}"]
    if len(summary.tasks) > 1:
        parts += [
            "## Macro F1",
            _matrix(summary),
            "## Over data sets",
            _overall(summary),
            overall_caption_text(summary),
        ]
    for name in figures:
        parts.append(f"![{FIGURES.get(name, name)}]({name})")
    if not tasks:
        return "\n\n".join(parts) + "\n"
    captions = {task.name: task_caption(task, summary.lines[task.name]) for task in summary.tasks}
    shared = len(set(captions.values())) == 1
    for task in summary.tasks:
        lines = summary.lines[task.name]
        notes = [note for note in (baseline_note(lines), *task_notes(lines)) if note]
        parts += [f"## {text.markdown(task.name)}", _task(lines)]
        if notes:
            parts.append("\n".join(f"- {text.markdown(note)}" for note in notes))
        if not shared:
            parts.append(text.markdown(captions[task.name]))
    if shared:  # said once, below all tables
        parts.append(text.markdown(captions[summary.tasks[0].name]))
    return "\n\n".join([*parts, text.markdown(LEGEND)]) + "\n"


def overall_caption_text(summary: BenchmarkSummary) -> str:
    """Friedman's test, what is left out, and what the figures are."""
    notes = [friedman_text(summary.overall), *left_out_notes(summary.overall), overall_caption(summary)]
    return "\n\n".join(text.markdown(note) for note in notes)


def _bold(cell: str, on: bool) -> str:
    return f"**{cell}**" if on else cell


def _task(lines: list[Line]) -> str:
    ranks = [line["rank"] for line in lines if line["rank"] is not None]
    rows = []
    for line in lines:
        first = bool(ranks) and line["rank"] == min(ranks)
        name = text.markdown(line["model"]) + (" (control)" if line["control"] else "")
        if line["cells"] != line["expected_cells"]:
            name += f" ({line['cells']} of {line['expected_cells']} cells)"
        rows.append([
            name,
            _bold(text.spread(line["macro_f1_mean"], line["macro_f1_sd"]), first),
            text.rank(line["rank"]),
            text.interval(line["macro_f1_low"], line["macro_f1_high"]),
            text.spread(line["auroc_mean"], line["auroc_sd"]),
            _difference(line),
            text.number(line["macro_f1_seed_sd"]),
            text.change(line["ece"], line["ece_calibrated"]),
            text.change(line["nll"], line["nll_calibrated"]),
            "none" if line["top_10pct"] is None else text.spread(line["top_10pct"], line["top_10pct_sd"], 2),
            text.number(line["seed_distance"]),
            text.count(line["parameters"]),
            text.duration(line["seconds"]),
            text.number(line["peak_mb"], 0),
        ])  # fmt: skip
    return text.markdown_table(COLUMNS, rows)


def _difference(line: Line) -> str:
    if line["difference"] is None:
        return text.UNDEFINED
    return f"{text.number(line['difference'], signed=True)} ({text.markdown(text.p_value(line['difference_p']))})"


def _matrix(summary: BenchmarkSummary) -> str:
    """Macro F1 of every model on every data set; the first in rank is bold, an incomplete one has its cells beside."""
    tasks = summary.tasks
    found = {(task.name, line["model"]): line for task in tasks for line in summary.lines[task.name]}
    rows = [
        [text.markdown(s.model), *(_score(found.get((t.name, s.model)), summary.lines[t.name]) for t in tasks)]
        for s in summary.overall.standings
    ]
    return text.markdown_table(("model", *(text.markdown(task.name) for task in tasks)), rows)


def _score(line: Line | None, lines: list[Line]) -> str:
    if line is None or line["macro_f1_mean"] is None:
        return "–"
    ranks = [other["rank"] for other in lines if other["rank"] is not None]
    cell = _bold(text.spread(line["macro_f1_mean"], line["macro_f1_sd"], 2), bool(ranks) and line["rank"] == min(ranks))
    whole = line["cells"] == line["expected_cells"]
    return cell if whole else f"{cell} ({line['cells']}/{line['expected_cells']})"


def _overall(summary: BenchmarkSummary) -> str:
    overall = summary.overall
    head = ("model", "average rank", "wins", "macro F1", "difference", "p", "p (Holm)", "data sets tested")
    rows = []
    for s in overall.standings:
        notes = [note for note, on in (("control", s.control), ("reference", s.model == overall.reference)) if on]
        name = text.markdown(s.model) + (f" ({', '.join(notes)})" if notes else "")
        tested = ["–"] * 4
        if s.wilcoxon is not None:
            values = (text.number(s.wilcoxon.difference, signed=True), text.p_value(s.wilcoxon.p))
            tested = [*map(text.markdown, (*values, text.p_value(s.p_holm))), str(s.wilcoxon.n)]
        ranked = text.number(s.average_rank, 2) if s.ranked else "not ranked"
        rows.append([name, ranked, "–" if s.wins is None else str(s.wins), text.number(s.macro_f1), *tested])
    return text.markdown_table(head, rows)
