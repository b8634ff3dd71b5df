"""What `qgmil check` found, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from qgmil.bags.check.report import CheckReport, bags_of
from qgmil.bags.problems import Problem
from qgmil.images.colours import Colours

MOST_PROBLEMS = 200
MOST_VALUES = 6
UNITS = {"px": "level-0 pixels", "um": "microns", "grid": "columns and rows of a grid", "unknown": "unit unknown"}


def check_table(report: CheckReport, title: str, memory: str = "") -> Table:
    """What is there, problems aside. `memory` is what training will take, in words."""
    table = Table(title=escape(title), title_justify="left", show_header=False)
    classes = ", ".join(f"{name}: {count}" for name, count in report.classes.items())
    rows = {
        "bags": f"{report.bags:,}" + (f" ({report.readable:,} readable)" if report.readable != report.bags else ""),
        "classes": classes or "no labels",
        "patients": f"{report.patients:,}",
        "instances a bag": (
            f"{report.instances_min:,} to {report.instances_max:,}, median {report.instances_median:,.0f}"
        ),
        "instances": f"{report.instances_total:,}",
        "feature width": _counted(report.widths),
        "type": _counted(report.dtypes),
        "largest value": f"{report.largest:,.4g}",
        "without variance": _dull(report),
        "coordinates": _coordinates(report),
        "tile size": _counted(report.tile_edges),
        "microns per pixel": _counted(report.mpps),
        "microns per pixel of the tiles": _counted(report.tile_mpps),
        "magnification": _counted(report.magnifications),
        "still being written": f"{len(report.locks):,} file{'s' * (len(report.locks) > 1)}" if report.locks else "",
        "in memory": f"{report.bytes / 1e6:,.1f} MB",
        "training": memory,
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    return table


def colour_table(colours: Colours) -> Table:
    """Mean colours of the classes, and what they tell of them."""
    table = Table(title=f"colours of {bags_of(colours.bags)}", title_justify="left")
    table.add_column("class")
    for name in ("red", "green", "blue"):
        table.add_column(name, justify="right")
    for label, rgb in colours.means.items():
        table.add_row(escape(label), *(f"{mean:.0f} ± {sd:.0f}" for mean, sd in rgb))
    said = "too few patients of a class for an AUROC"
    if colours.auroc is not None:
        said = (
            f"AUROC of mean colour alone {colours.auroc_mean:.2f}, with its spread {colours.auroc:.2f}; shuffled "
            f"labels up to {colours.chance:.2f}"
        )
    table.caption = said
    return table


def problem_table(problems: Sequence[Problem], title: str) -> Table:
    """Every problem with its bag, up to a number that a terminal can take."""
    table = Table(title=title, title_justify="left", show_lines=True)
    named = any(problem.bag_id for problem in problems)
    for name in ("kind", "bag", "what is wrong") if named else ("kind", "what is wrong"):
        table.add_column(name)
    for problem in problems[:MOST_PROBLEMS]:
        cells = (problem.kind, problem.bag_id or "", problem.message) if named else (problem.kind, problem.message)
        table.add_row(*map(escape, cells))
    if len(problems) > MOST_PROBLEMS:
        table.caption = f"and {len(problems) - MOST_PROBLEMS:,} more"
    return table


def _coordinates(report: CheckReport) -> str:
    units = [f"{UNITS.get(unit, unit)} ({bags_of(count)})" for unit, count in report.coord_units.items()]
    if len(units) == 1 and report.with_coords == report.readable:
        return next(UNITS.get(unit, unit) for unit in report.coord_units)
    return ", ".join(units) or "none"


def _dull(report: CheckReport) -> str:
    parts = [
        f"{len(report.constant):,} features constant" if report.constant else "",
        f"{len(report.near_constant):,} nearly so" if report.near_constant else "",
    ]
    return ", ".join(p for p in parts if p)


def _counted(counts: Mapping[Any, int]) -> str:
    """Values, with the bags of each where there are several: the most frequent of them."""
    text = {value: f"{value:g}" if isinstance(value, float) else str(value) for value in counts}
    if len(counts) == 1:
        return next(iter(text.values()))
    often = sorted(counts, key=lambda value: -counts[value])
    more = [f"{len(often) - MOST_VALUES} other values"] if len(often) > MOST_VALUES else []
    return ", ".join([f"{text[v]} ({bags_of(counts[v])})" for v in often[:MOST_VALUES]] + more)
