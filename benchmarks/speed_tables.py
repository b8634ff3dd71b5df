"""The figures of benchmarks/aggregator.py as tables, and the goals beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from contenders import EAGER, OURS
from rich.table import Table

Row = dict[str, Any]
NONE = "-"


@dataclass(frozen=True)
class Goal:
    """A goal beside what was measured; `value` is None where the run did not measure it."""

    what: str
    target: str
    value: float | None
    met: bool | None
    shown: str


def plain_table(rows: Sequence[Row]) -> Table:
    """One line a figure."""
    table = Table(title="peak memory is over model and features; growth: exponent of N since the size before")
    for name in ("bags", "instances", "step", "contender", "dtype", "seconds", "median", "peak"):
        table.add_column(name, justify="left" if name in ("step", "contender", "dtype") else "right")
    for name in ("GFLOP/s", "GEMM", "of it", "time ~ N^", "memory ~ N^"):
        table.add_column(name, justify="right")
    for row in rows:
        speed = None if row["flops"] is None or not row["seconds"] else row["flops"] / row["seconds"] / 1e9
        cells = [str(row["bags"]), f"{row['instances']:,}", row["mode"], row["contender"], row["dtype"]]
        cells += [_seconds(row["seconds"]), _seconds(row["median_seconds"]), _bytes(row["peak_bytes"])]
        cells += [
            _number(speed, ",.0f"),
            f"{row['gemm_flops_per_second'] / 1e9:,.0f}",
            _number(row["gemm_share"], ".0%"),
        ]
        cells += [_number(row["time_growth"], ".2f"), _number(row["memory_growth"], ".2f")]
        table.add_row(*cells)
    return table


def goals_table(found: Iterable[Goal]) -> Table:
    """Goals on a terminal."""
    table = Table(title="goals")
    for name in ("what", "goal", "measured", "met"):
        table.add_column(name)
    for goal in found:
        table.add_row(goal.what, goal.target, goal.shown, _met(goal))
    return table


def markdown(results: dict[str, Any]) -> str:
    """Machine, one table a mode, the bags, and the goals, for docs/performance.md."""
    machine, rows = results["machine"], results["rows"]
    said = f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}"
    rates = {d: max((_giga(r) or 0.0 for r in rows if r["dtype"] == d), default=0.0) for d in ("float32", "bfloat16")}
    said += "; GEMM " + ", ".join(f"{rate:,.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    lines = [f"{said}. Seconds are the quickest of several runs in turns; memory is over model and features.", ""]
    for mode, title in (("train", "Training step"), ("forward", "Inference")):
        chosen = [r for r in rows if r["bags"] == 1 and r["mode"] == mode]
        if chosen:
            lines += [f"**{title}, one bag**", "", *_by_size(chosen), ""]
    if many := [r for r in rows if r["bags"] > 1]:
        lines += [f"**{many[0]['bags']} bags, {many[0]['instances']:,} instances together**", "", *_by_bags(many), ""]
    lines += ["| goal | wanted | measured | met |", "|---|---|---|---|"]
    lines += [f"| {g.what} | {g.target} | {g.shown} | {_met(g)} |" for g in goals(results)]
    return "\n".join(lines)


def _by_size(rows: Sequence[Row]) -> list[str]:
    columns = list(dict.fromkeys((r["contender"], r["dtype"]) for r in rows))
    ours = [c for c in columns if c[0] == OURS]
    names = [f"{contender} {dtype}" for contender, dtype in columns]
    names += [f"{dtype}: times eager" for _, dtype in ours] + [f"{dtype}: of GEMM" for _, dtype in ours]
    names += [f"{dtype}: time, memory ~ N^" for _, dtype in ours]
    lines = [f"| instances | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for size in sorted({r["instances"] for r in rows}):
        at = {(r["contender"], r["dtype"]): r for r in rows if r["instances"] == size}
        cells = [_cell(at.get(column)) for column in columns]
        eager = at.get((EAGER, "float32"))
        cells += [_number(_ratio(eager, at.get(column), "seconds"), ".1f") for column in ours]
        cells += [_number(at[c]["gemm_share"], ".0%") if c in at else NONE for c in ours]
        for column in ours:
            row = at.get(column, {"time_growth": None, "memory_growth": None})
            cells.append(f"{_number(row['time_growth'], '.2f')}, {_number(row['memory_growth'], '.2f')}")
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    return lines


def _by_bags(rows: Sequence[Row]) -> list[str]:
    lines = ["| step | contender | dtype | seconds | peak memory | times eager |", "|---|---|---|---|---|---|"]
    for row in rows:
        eager = _find(rows, EAGER, row["instances"], row["mode"], "float32", row["bags"])
        cells = [row["mode"], row["contender"], row["dtype"], _seconds(row["seconds"]), _bytes(row["peak_bytes"])]
        lines.append(f"| {' | '.join([*cells, _number(_ratio(eager, row, 'seconds'), '.1f')])} |")
    return lines


def goals(results: dict[str, Any]) -> list[Goal]:
    """What was aimed at on this kind of machine. Eager is in float32 throughout, as the released model is."""
    rows = results["rows"]
    if results["machine"]["kind"] == "cuda":
        share = _shares(rows, "bfloat16", 32_768, 32_768)
        largest = _find(rows, OURS, 200_000, "train", "bfloat16")
        peak = None if largest is None else largest["peak_bytes"]
        trains = None if largest is None else peak is not None
        return [
            _goal("N = 32,768, train, bfloat16: share of GEMM", 0.5, share, ".0%"),
            Goal("N = 200,000 trains on one GPU, bfloat16", "it runs", peak, trains, _bytes(peak)),
        ]
    found: list[Goal] = []
    for size, wanted in ((100, (1.2, 1.2)), (200, (1.2, 1.2)), (4_000, (2.0, 4.5)), (10_000, (3.5, 8.0))):
        for dtype, times in zip(("float32", "bfloat16"), wanted, strict=True):
            eager, ours = _find(rows, EAGER, size, "train", "float32"), _find(rows, OURS, size, "train", dtype)
            what = f"N = {size:,}, train, {dtype}"
            found.append(_goal(f"{what}: times faster than eager", times, _ratio(eager, ours, "seconds"), ".1f"))
            part = {4_000: 3, 10_000: 8}.get(size)
            if part is not None:
                memory = _ratio(ours, eager, "peak_bytes")
                found.append(_goal(f"{what}: peak memory, of eager's", 1 / part, memory, ".1%", most=True))
    many = next(((r["bags"], r["instances"]) for r in rows if r["bags"] > 1), (64, 0))
    for dtype, times in (("float32", 5.0), ("bfloat16", 10.0)):
        eager = _find(rows, EAGER, many[1], "train", "float32", many[0])
        ratio = _ratio(eager, _find(rows, OURS, many[1], "train", dtype, many[0]), "seconds")
        found.append(
            _goal(f"{many[0]} packed bags, train, {dtype}: times faster than padded eager", times, ratio, ".1f")
        )
    for dtype in ("float32", "bfloat16"):
        row = _find(rows, OURS, 100_000, "forward", dtype)
        peak = None if row is None or row["peak_bytes"] is None else row["peak_bytes"] / 1e9
        what = f"N = 100,000, forward, {dtype}: peak GB over the features"
        found.append(_goal(what, 3.0, peak, ".2f", most=True))
    for dtype, wanted_share in (("float32", 0.75), ("bfloat16", 0.6)):
        what = f"N = 1,000 to 10,000, train, {dtype}: least share of GEMM"
        found.append(_goal(what, wanted_share, _shares(rows, dtype, 1_000, 10_000), ".0%"))
    return found


def _goal(what: str, target: float, value: float | None, form: str, most: bool = False) -> Goal:
    sign = "at most" if most else "at least"
    met = None if value is None else (value <= target if most else value >= target)
    return Goal(what, f"{sign} {target:{form}}", value, met, _number(value, form))


def _shares(rows: Sequence[Row], dtype: str, low: int, high: int) -> float | None:
    """The least share of the GEMM rate of a training step on one bag of these sizes."""
    mine = [r for r in rows if (r["contender"], r["mode"], r["dtype"], r["bags"]) == (OURS, "train", dtype, 1)]
    shares = [r["gemm_share"] for r in mine if low <= r["instances"] <= high and r["gemm_share"] is not None]
    return min(shares, default=None)


def _find(rows: Sequence[Row], contender: str, instances: int, mode: str, dtype: str, bags: int = 1) -> Row | None:
    wanted = (contender, instances, mode, dtype, bags)
    names = ("contender", "instances", "mode", "dtype", "bags")
    return next((row for row in rows if tuple(row[n] for n in names) == wanted), None)


def _ratio(above: Row | None, below: Row | None, field: str) -> float | None:
    if above is None or below is None or not above[field] or not below[field]:
        return None
    return above[field] / below[field]


def _cell(row: Row | None) -> str:
    if row is None:
        return NONE
    return "out of memory" if row["seconds"] is None else f"{_seconds(row['seconds'])}, {_bytes(row['peak_bytes'])}"


def _seconds(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _bytes(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value / 1e6:.0f} MB" if value < 1e9 else f"{value / 1e9:.2f} GB"


def _giga(row: Row) -> float | None:
    """GFLOP/s of the GEMM beside this row."""
    return None if row["gemm_flops_per_second"] is None else row["gemm_flops_per_second"] / 1e9


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else f"{value:{form}}"


def _met(goal: Goal) -> str:
    return {None: "not measured", True: "yes", False: "no"}[goal.met]
