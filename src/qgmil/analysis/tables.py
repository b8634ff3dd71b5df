"""The measurement of a cohort as tables: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qgmil.analysis.records import FIGURES, Record
from qgmil.evaluation import text

#: Columns of the printed summary, in order; those that no source has are left out.
SHOWN = (
    "top_10pct",
    "entropy",
    "effective_share",
    "gini",
    "deletion_advantage",
    "insertion_advantage",
    "attention_tv_50",
    "seed_attention_tv",
    "instance_auroc",
)
COMPARED = ("top_10pct", "entropy", "deletion_advantage", "insertion_advantage", "attention_tv_50", "instance_auroc")
#: Columns of a terminal that the names of bags take, and a figure with its interval.
BAGS_WIDTH, FIGURE_WIDTH = 24, 18
CAPTION = (
    "Mean over bags [95 % interval over patients]. top 10 %: mass of the most attended tenth of instances; entropy: "
    "normalised, 1 = uniform; advantage: area against random order, above 0 = faithful; TV: total variation distance, "
    "0 = the same."
)


def summary_tables(summary: Sequence[Mapping[str, Any]], *, width: int = 160) -> list[Table]:
    """A row a group of bags, the interval under the mean; for each source as many tables as `width` asks for."""
    cells = {(r["source"], r["group"], r["figure"]): r for r in summary}
    shown = _shown(SHOWN, (r["figure"] for r in summary))
    fit = max(1, (width - BAGS_WIDTH) // FIGURE_WIDTH)
    tables = []
    for source in dict.fromkeys(r["source"] for r in summary):
        for some in (shown[i : i + fit] for i in range(0, len(shown), fit)):
            title = Text(source, style="bold") if some[0] == shown[0] else None
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            table.add_column("bags", overflow="fold", min_width=20)
            for figure in some:
                table.add_column(FIGURES[figure], justify="right")
            for group in dict.fromkeys(r["group"] for r in summary if r["source"] == source):
                row = [cells.get((source, group, figure)) for figure in some]
                count = max(r["bags"] for r in summary if (r["source"], r["group"]) == (source, group))
                table.add_row(Text(f"{group} ({count})"), *[Text(_with_interval(r, "mean")) for r in row])
            tables.append(table)
    return tables


def comparison_table(compared: Sequence[Mapping[str, Any]]) -> Table:
    """One row a pair of sources and figure."""
    shown = _shown(COMPARED, (r["figure"] for r in compared))
    caption = "Mean difference over the bags of both [95 % interval over patients]; p: Wilcoxon over patients, Holm."
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=caption, caption_justify="left")
    for name in ("first - second", "figure", "bags", "difference", "p", "p (Holm)"):
        table.add_column(name, justify="left" if name in ("first - second", "figure") else "right", overflow="fold")
    last = None
    for r in sorted(compared, key=lambda r: (r["first"], r["second"])):
        if r["figure"] not in shown:
            continue
        pair = f"{r['first']} - {r['second']}"
        table.add_row(
            "" if pair == last else escape(pair),
            FIGURES[r["figure"]],
            str(r["bags"]),
            escape(_with_interval(r, "difference", "+", " ")),
            text.p_value(r["p"]),
            text.p_value(r["p_holm"]),
        )
        last = pair
    return table


def markdown(
    summary: Sequence[Mapping[str, Any]], compared: Sequence[Mapping[str, Any]], verdicts: Mapping[str, str]
) -> str:
    """The same as a page of Markdown, every figure in it."""
    parts = ["# Attention"]
    if verdicts:
        parts.append("\n".join(f"- **{text.markdown(s)}**: {text.markdown(v)}" for s, v in verdicts.items()))
    figures = _shown(FIGURES, (r["figure"] for r in summary))
    cells = {(r["source"], r["group"], r["figure"]): r for r in summary}
    rows = []
    for source, group in dict.fromkeys((r["source"], r["group"]) for r in summary):
        found = [cells.get((source, group, f)) for f in figures]
        count = max(r["bags"] for r in found if r is not None)
        rows.append([source, f"{group} ({count})", *[_with_interval(r, "mean", sep=" ") for r in found]])
    parts += ["## By class and by correctness", CAPTION]
    parts.append(text.markdown_table(["source", "bags", *[FIGURES[f] for f in figures]], rows, left=2, escaped=False))
    if compared:
        rows = []
        for r in compared:
            difference = _with_interval(r, "difference", "+", " ")
            tested = (text.p_value(r["p"]), text.p_value(r["p_holm"]))
            rows.append([r["first"], r["second"], FIGURES[r["figure"]], str(r["bags"]), difference, *tested])
        parts += ["## Pairs", "Mean difference over the bags that both have, first minus second."]
        parts.append(
            text.markdown_table(
                ["first", "second", "figure", "bags", "difference", "p", "p (Holm)"], rows, left=3, escaped=False
            )
        )
    return "\n\n".join(parts) + "\n"


def bag_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Rows of ``bags.parquet``: one a source and bag, every figure a column."""
    columns = ("label", "predicted", "probability", "correct", "members", "n_instances", *FIGURES)
    listed = list(records)
    named = [c for c in columns if any(c in r.row for r in listed)]
    rest = list(dict.fromkeys(k for r in listed for k in r.row if k not in named and k not in ("bag_id", "patient_id")))
    return [
        {"source": r.source, "bag_id": r.bag_id, "patient_id": r.row["patient_id"]}
        | {name: r.row.get(name) for name in (*named, *rest)}
        for r in listed
    ]


def head_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Rows of ``heads.parquet``: one a source, bag, layer and head."""
    return [{"source": r.source, "bag_id": r.bag_id, **head} for r in records for head in r.heads]


def _shown(wanted: Iterable[str], present: Iterable[str]) -> list[str]:
    there = set(present)
    return [name for name in wanted if name in there]


def _with_interval(r: Mapping[str, Any] | None, key: str, sign: str = "", sep: str = "\n") -> str:
    if r is None:
        return ""
    mean = f"{r[key]:{sign}.3f}"
    return mean if r["low"] is None else f"{mean}{sep}[{r['low']:{sign}.2f}, {r['high']:{sign}.2f}]"
