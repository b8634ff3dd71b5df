"""The table of an ablation: what each variant changes, paired over the cells that it shares with its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from qgmil.benchmark.ablate import Variant
from qgmil.benchmark.collect import Task, collect, defined
from qgmil.benchmark.summary import seed_sd
from qgmil.evaluation import text
from qgmil.evaluation.comparison import ResampledT, compare_cells, holm
from qgmil.files import write_csv, write_text

FOLDER = "tables"
WIDE = 100
NAMES = ("ablation.csv", "ablation.md", "ablation.tex")
PAIRED = ("top_10pct", "entropy", "ece", "nll")  # of the test bags of each cell
Line = dict[str, Any]
CAPTION = (
    "Each variant against its reference (the base; for plain+... the plain transformer) on the cells that both have. "
    "Δ F1: mean difference in macro F1 with its 95 % interval, and p by the corrected resampled t-test (Nadeau and "
    "Bengio 2003), Holm-corrected over the variants of a data set. Δ sd: of macro F1 over cells; Δ seed sd: over seeds "
    "of the mean over folds; below 0 is steadier. Δ top 10 %: attention mass of the most attended tenth of instances, "
    "below 0 is less concentrated; Δ entropy: of attention over its maximum. Δ ECE and NLL: below 0 is better."
)
HEADS = (
    "variant", "macro F1", "Δ F1", "95 %", "p", "Δ sd", "Δ seed sd", "Δ top 10 %", "Δ entropy", "Δ ECE", "Δ NLL",
    "parameters",
)  # fmt: skip


def ablation_lines(rows: pl.DataFrame, plan: Sequence[Variant]) -> list[Line]:
    """One flat line a data set and variant, in the order of the plan, of plain numbers, texts and None (undefined).

    Args:
        rows: the results table of the variants.
        plan: the variants.

    Raises:
        MetricError: a table that cannot be read.
    """
    lines = []
    for task in collect(rows):
        found = [_line(task, variant, plan) for variant in plan]
        tests = {_pair(variant, plan): line["p"] for variant, line in zip(plan, found, strict=True)}
        corrected = dict(zip(tests, holm(list(tests.values())), strict=True))  # the same pair is one comparison
        for variant, line in zip(plan, found, strict=True):
            line["p_holm"] = corrected[_pair(variant, plan)]
        lines += found
    return lines


def _pair(variant: Variant, plan: Sequence[Variant]) -> tuple[str, str | None]:
    """The models that are compared, by the labels of their cells."""
    return variant.trained_as, next((v.trained_as for v in plan if v.name == variant.reference), None)


def _line(task: Task, variant: Variant, plan: Sequence[Variant]) -> Line:
    name, reference = _pair(variant, plan)
    cells = task.finished.get(name, {})
    others = task.finished.get(reference, {}) if reference is not None else {}
    shared = sorted(cells.keys() & others.keys())
    line: Line = {
        "dataset": task.dataset,
        "features": task.features,
        "task": task.name,
        "variant": variant.name,
        "factor": variant.factor,
        "moved": variant.moved,
        "reference": variant.reference,
        "same_as": variant.same_as,
        "cells": len(cells),
        "expected_cells": len(task.grid),
        "shared_cells": len(shared),
    }
    scores = _scores(cells, "macro_f1")
    line |= {"macro_f1": _mean(scores.values()), "macro_f1_sd": _sd(scores.values()), "seed_sd": seed_sd(scores)}
    for metric in PAIRED:
        line[metric] = _mean(_scores(cells, metric).values())
    line["parameters"] = _mean(_scores(cells, "parameters").values())
    test = _test({p: cells[p] for p in shared}, {p: others[p] for p in shared}, task.same_splits)
    line |= {"difference": test.difference, "difference_low": test.low, "difference_high": test.high}
    line |= {"p": test.p, "p_holm": None, "undefined": test.undefined if variant.reference else ""}
    return line | _deltas({p: cells[p] for p in shared}, {p: others[p] for p in shared})


def _test(cells: Mapping[Any, Any], others: Mapping[Any, Any], same_splits: bool) -> ResampledT:
    if not cells:
        return ResampledT(None, None, None, None, None, 0, 0, 0, "no cell that both finished")
    ratio = float(np.mean([row["n_test"] / max(row["n_train"], 1) for row in cells.values()]))
    return compare_cells(_scores(cells, "macro_f1"), _scores(others, "macro_f1"), ratio, same_splits=same_splits)


def _deltas(cells: Mapping[Any, Any], others: Mapping[Any, Any]) -> Line:
    """Variant minus reference, on shared cells in which the figure is defined for both."""
    line: Line = {}
    for name, figure in (("delta_sd", lambda s: _sd(s.values())), ("delta_seed_sd", seed_sd)):
        line[name] = _minus(cells, others, "macro_f1", figure)
    for metric in (*PAIRED, "parameters"):
        line[f"delta_{metric}"] = _minus(cells, others, metric, lambda s: _mean(s.values()))
    return line


def _minus(
    cells: Mapping[Any, Any], others: Mapping[Any, Any], metric: str, figure: Callable[[dict[Any, Any]], float | None]
) -> float | None:
    a, b = _scores(cells, metric), _scores(others, metric)
    both = [p for p in a if a[p] is not None and b.get(p) is not None]
    first, second = figure({p: a[p] for p in both}), figure({p: b[p] for p in both})
    return None if first is None or second is None else first - second


def _scores(cells: Mapping[Any, Mapping[str, Any]], metric: str) -> dict[Any, float | None]:
    return {place: defined(row.get(metric)) for place, row in cells.items()}


def over_tasks(lines: Sequence[Line]) -> list[Line]:
    """One line a variant: means of the differences over data sets, and on how many of them macro F1 is higher."""
    found = []
    for name in dict.fromkeys(line["variant"] for line in lines):
        mine = [line for line in lines if line["variant"] == name and line["difference"] is not None]
        names = ("difference", *(k for k in (mine[0] if mine else {}) if k.startswith("delta_")))
        means = {k: _mean([line[k] for line in mine]) for k in names}
        higher = sum(line["difference"] > 0 for line in mine)
        found.append({"variant": name, **means, "data_sets": len(mine), "higher": higher})
    return found


def print_ablation(lines: Sequence[Line], console: Any) -> None:
    """Print what each variant moves, one table a data set, and the means over several."""
    console.print(variants_table(lines))
    for task in dict.fromkeys(line["task"] for line in lines):
        console.print(task_table(task, [line for line in lines if line["task"] == task], wide=console.width >= WIDE))
    several = len({line["task"] for line in lines}) > 1
    if several:
        console.print(_rich("Over data sets", ("variant", *HEADS_OVER), map(_over_cells, over_tasks(lines))))
    for note in notes(lines):
        console.print(Text(note))
    console.print(Text(CAPTION, style="dim"))


def variants_table(lines: Sequence[Line]) -> Table:
    """What each variant moves."""
    seen = {line["variant"]: line for line in lines}
    rows = [[name, line["moved"] + _same(line), line["reference"] or ""] for name, line in seen.items()]
    table = _rich("Variants", ("variant", "what is moved", "against"), rows)
    for column in table.columns:
        column.justify = "left"
    return table


def task_table(task: str, lines: Sequence[Line], *, wide: bool = True) -> Table:
    """One data set on the terminal, in 100 columns or in 80; what is left out is in the files."""
    left_out = ("95 %", "Δ entropy") if wide else ("95 %", "Δ entropy", "Δ sd", "parameters")
    heads = [head for head in HEADS if head not in left_out]
    rows = [[cell for cell, head in zip(_cells(line), HEADS, strict=True) if head in heads] for line in lines]
    return _rich(text.one_line(task), heads, rows)


def _same(line: Line) -> str:
    return f" (the same model as {line['same_as']})" if line["same_as"] else ""


def _rich(title: str, heads: Sequence[str], rows: Any) -> Table:
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for i, head in enumerate(heads):
        short = {"parameters": "para-\nmeters", "Δ seed sd": "Δ seed\nsd", "Δ top 10 %": "Δ top\n10 %"}.get(head, head)
        table.add_column(short, justify="left" if i == 0 else "right", no_wrap=head != "what is moved")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _cells(line: Line) -> list[str]:
    count = text.count(line["parameters"])
    head = [line["variant"], text.spread(line["macro_f1"], line["macro_f1_sd"], 3, "±")]
    if line["reference"] is None:
        return [*head, *["base"] * (1 if line["factor"] == "base" else 0), *["–"] * 8, count]
    return [
        *head,
        text.number(line["difference"], signed=True),
        _interval(line["difference_low"], line["difference_high"]),
        "–" if line["p_holm"] is None else text.p_value(line["p_holm"]),
        *(_signed(line[k]) for k in ("delta_sd", "delta_seed_sd", "delta_top_10pct", "delta_entropy")),
        *(_signed(line[k]) for k in ("delta_ece", "delta_nll")),
        count,
    ]


HEADS_OVER = ("Δ F1", "higher on", "Δ sd", "Δ seed sd", "Δ top 10 %", "Δ entropy", "Δ ECE", "Δ NLL")


def _over_cells(line: Line) -> list[str]:
    if not line["data_sets"]:
        return [line["variant"], *["–"] * len(HEADS_OVER)]
    return [
        line["variant"],
        text.number(line["difference"], signed=True),
        f"{line['higher']} of {line['data_sets']}",
        *(_signed(line[f"delta_{k}"]) for k in ("sd", "seed_sd", "top_10pct", "entropy", "ece", "nll")),
    ]


def _interval(low: float | None, high: float | None) -> str:
    """With "to", as a dash before a minus cannot be read."""
    return (
        "–" if low is None or high is None else f"{text.number(low, signed=True)} to {text.number(high, signed=True)}"
    )


def _signed(value: float | None) -> str:
    return "–" if value is None else text.number(value, signed=True)


def notes(lines: Sequence[Line]) -> list[str]:
    """What is missing, and tests that are undefined."""
    found = []
    for line in lines:
        where = f"{line['task']}, {line['variant']}"
        if line["cells"] < line["expected_cells"]:
            found.append(f"{where}: {line['cells']} of {line['expected_cells']} cells are finished")
        elif line["undefined"]:
            found.append(f"{where}: no p: {line['undefined']}")
    return [text.one_line(note) for note in found]


def write_ablation(output: Path, lines: Sequence[Line]) -> list[Path]:
    """Write ``ablation.csv``, ``ablation.md`` and ``ablation.tex`` into the folder `tables`; returns their paths."""
    folder = Path(output) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in NAMES]
    write_csv(paths[0], lines)
    write_text(paths[1], markdown_page(lines))
    write_text(paths[2], latex_table(lines))
    return paths


def markdown_page(lines: Sequence[Line]) -> str:
    """The page: what the variants are, one table a data set, the means over several."""
    seen = {line["variant"]: line for line in lines}
    rows = [[name, line["moved"] + _same(line), line["reference"] or ""] for name, line in seen.items()]
    parts = ["# Ablation", text.markdown_table(("variant", "what is moved", "against"), rows, left=3, escaped=False)]
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    for task in tasks:
        mine = [line for line in lines if line["task"] == task]
        parts += [f"## {text.markdown(task)}", text.markdown_table(HEADS, map(_cells, mine), escaped=False)]
    if len(tasks) > 1:
        parts += [
            "## Over data sets",
            text.markdown_table(("variant", *HEADS_OVER), map(_over_cells, over_tasks(lines)), escaped=False),
        ]
    if said := notes(lines):
        parts.append("\n".join(f"- {text.markdown(note)}" for note in said))
    return "\n\n".join([*parts, CAPTION]) + "\n"


def latex_table(lines: Sequence[Line]) -> str:
    """One booktabs table: the variants, a block a data set."""
    heads = [h.replace("Δ", r"$\Delta$").replace("%", r"\%") for h in HEADS if h != "95 %"]
    body = []
    for task in dict.fromkeys(line["task"] for line in lines):
        body += [r"\midrule", rf"\multicolumn{{{len(heads)}}}{{l}}{{\emph{{{text.latex(task)}}}}} \\"]
        for line in (line for line in lines if line["task"] == task):
            cells = [cell for cell, head in zip(_cells(line), HEADS, strict=True) if head != "95 %"]
            body.append(" & ".join(_latex(cell) for cell in cells) + r" \\")
    rows = [rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule", " & ".join(heads) + r" \\", *body,
            r"\bottomrule", r"\end{tabular}"]  # fmt: skip
    return "\n".join(["% needs: \\usepackage{booktabs}", *rows]) + "\n"


def _latex(cell: str) -> str:
    made = text.latex(cell).replace("±", r"$\pm$").replace("–", "--")
    return "$-$" + made[1:] if made.startswith("-") and made[1:2].isdigit() else made


def _mean(values: Any) -> float | None:
    numbers = [v for v in values if v is not None]
    return float(np.mean(numbers)) if numbers else None


def _sd(values: Any) -> float | None:
    numbers = [v for v in values if v is not None]
    return float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
