"""Tables for the terminal, from what the run folders say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from qgmil.report.data import Score, load_result


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or "undefined"."""
    return "undefined" if value is None else f"{value:.{digits}f}"


def spread(score: Score, digits: int = 3, sign: str = " ± ") -> str:
    """``mean ± sd``, with the number of undefined cells where there are any."""
    text = number(score.mean, digits) + (f"{sign}{score.sd:.{digits}f}" if score.sd is not None else "")
    return text + (f" ({score.undefined} undefined)" if score.undefined else "")


def comparison_table(runs: Sequence[str | Path]) -> Table:
    """One row a run: classification, calibration, concentration of attention and time. Fits 80 columns.

    Raises:
        RunError: not a run folder, or one that has not finished.
    """
    results = [load_result(run) for run in runs]
    many = any(r.many for r in results)
    digits = 2 if many else 3
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    table.add_column("model")
    for name in ("macro F1", "95 %", "AUROC", "ECE", "top 10 %", "time"):
        if many or name != "95 %":
            table.add_column(name, justify="right", no_wrap=True)
    best = max((r.score("macro_f1").mean or 0.0 for r in results), default=0.0)
    for result in results:
        f1 = spread(result.score("macro_f1"), digits, "±")
        if len(results) > 1 and result.score("macro_f1").mean == best:
            f1 = f"[bold]{f1}[/bold]"
        interval, top = result.interval("macro_f1"), result.attention("top_10pct")
        cells = [escape(result.model), f1]
        if many:
            cells.append("" if interval is None else f"{interval[0]:.2f}–{interval[1]:.2f}")
        cells.append(spread(result.score("auroc"), digits, "±"))
        cells.append(spread(result.pooled("ece") or result.score("ece"), digits, "±"))
        cells.append("none" if top is None else spread(top, digits, "±"))
        table.add_row(*cells, f"{result.seconds:.0f} s")
    if many:
        numbers = sorted({r.cells for r in results})
        models = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        table.caption = (
            f"Mean ± sd over {models} trained models. 95 %: interval of the pooled out-of-fold macro F1 over patients. "
            "ECE: of pooled predictions, sd over seeds. top 10 %: attention mass of the top 10 % of instances."
        )
    else:
        table.caption = "Test bags. top 10 %: attention mass of the top 10 % of instances."
    return table


def evaluation_table(result: dict[str, Any], title: str) -> Table:
    """Metrics of `evaluate_run`, plain and calibrated, with bootstrap intervals."""
    seen = " (INCLUDING BAGS SEEN IN TRAINING)" if result["include_seen"] else ""
    table = Table(title=escape(f"{title}: {result['bags']} bags{seen}"), title_justify="left")
    table.add_column("metric")
    for name in ("value", "95 % interval", "calibrated"):
        table.add_column(name, justify="right")
    for name, value in result["metrics"].items():
        if isinstance(value, float) or value is None:
            interval = (result["intervals"] or {}).get(name) or {}
            limits = f"[{interval['low']:.3f}, {interval['high']:.3f}]" if interval.get("low") is not None else ""
            if value is not None or name in result["metrics"]["undefined"]:
                table.add_row(name, number(value), escape(limits), number(result["metrics_calibrated"][name]))
    for name, value in result["metrics"]["f1_per_class"].items():
        table.add_row(escape(f"F1 of {name}"), number(value), "", "")
    for name, reason in result["metrics"]["undefined"].items():
        table.caption = escape(f"{table.caption or ''}{name} is undefined: {reason}. ")
    return table
