"""The tables of the speed figures: growth, ratios and goals from known rows."""

from __future__ import annotations

from typing import Any

import pytest
from aggregator import Limits, add_growth, cases_of
from contenders import EAGER, LAYER, ONE_BY_ONE, OURS
from speed_tables import goals, markdown

LIMITS = Limits(train=100, eager=50, peer=80, turns=100, rounds=1, budget=1.0)


def _row(contender: str, instances: int, dtype: str, seconds: float, peak: float, **others: Any) -> dict[str, Any]:
    fixed = {"bags": 1, "mode": "train", "median_seconds": seconds, "runs": 3, "flops": 1e9, "gemm_share": 0.5}
    measured = {"contender": contender, "instances": instances, "dtype": dtype, "seconds": seconds, "peak_bytes": peak}
    return {**fixed, **measured, "gemm_flops_per_second": 1e11, "time_growth": None, "memory_growth": None, **others}


def _results(*rows: dict[str, Any], kind: str = "cpu") -> dict[str, Any]:
    return {"machine": {"kind": kind, "device": "a machine", "threads": 2, "torch": "2"}, "rows": list(rows)}


def test_goals_compare_with_float32_eager() -> None:
    rows = [
        _row(EAGER, 4_000, "float32", 8.0, 3e9),
        _row(OURS, 4_000, "float32", 4.0, 1e9, gemm_share=0.8),
        _row(OURS, 4_000, "bfloat16", 2.0, 1.5e9, gemm_share=0.7),
        _row(OURS, 1_000, "bfloat16", 1.0, 1e8, gemm_share=0.55),
        _row(OURS, 100_000, "bfloat16", 30.0, 2.5e9, mode="forward"),
        _row(EAGER, 900, "float32", 8.0, 1.0, bags=64),
        _row(OURS, 900, "float32", 1.0, 1.0, bags=64),
    ]
    found = {goal.what: goal for goal in goals(_results(*rows))}
    times = "N = 4,000, train, {}: times faster than eager"
    memory = "N = 4,000, train, {}: peak memory, of eager's"
    share = "N = 1,000 to 10,000, train, {}: least share of GEMM"
    expected = {
        times.format("float32"): (2.0, True),
        times.format("bfloat16"): (4.0, False),
        memory.format("float32"): (pytest.approx(1 / 3), True),
        memory.format("bfloat16"): (0.5, False),
        share.format("float32"): (0.8, True),
        share.format("bfloat16"): (0.55, False),
        "N = 100,000, forward, bfloat16: peak GB over the features": (2.5, True),
        "N = 100,000, forward, float32: peak GB over the features": (None, None),
        "64 packed bags, train, float32: times faster than padded eager": (8.0, True),
    }
    assert {what: (found[what].value, found[what].met) for what in expected} == expected
    assert len(found) == 18


def test_goals_of_a_gpu() -> None:
    largest = _row(OURS, 200_000, "bfloat16", 1.0, 2e10)
    near = _row(OURS, 32_768, "bfloat16", 1.0, 1e9, gemm_share=0.51)
    assert [goal.met for goal in goals(_results(largest, near, kind="cuda"))] == [True, True]
    failed = _row(OURS, 200_000, "bfloat16", 1.0, 1.0) | {"seconds": None, "peak_bytes": None}
    assert [goal.met for goal in goals(_results(failed, kind="cuda"))] == [None, False]


def test_growth_is_between_sizes_of_one_contender() -> None:
    rows = [
        _row(OURS, 4_000, "float32", 8.0, 4e8),
        _row(OURS, 1_000, "float32", 1.0, 1e8),
        _row(EAGER, 2_000, "float32", 1.0, 1e8),
        _row(OURS, 9_000, "float32", 1.0, 1e8, bags=64),
    ]
    add_growth(rows)
    assert (rows[0]["time_growth"], rows[0]["memory_growth"]) == (pytest.approx(1.5), pytest.approx(1.0))
    assert [row["time_growth"] for row in rows[1:]] == [None, None, None]


def test_markdown_shows_machine_ratios_and_what_failed() -> None:
    rows = [
        _row(EAGER, 200, "float32", 3.0, 2e9),
        _row(OURS, 200, "float32", 1.5, 5e8, time_growth=1.25, memory_growth=1.0),
        _row(LAYER, 200, "float32", 0.0, 0.0) | {"seconds": None, "peak_bytes": None},
    ]
    lines = markdown(_results(*rows)).splitlines()
    assert lines[0].startswith("a machine, 2 threads, torch 2; GEMM 100 GFLOP/s in float32")
    row = next(line for line in lines if line.startswith("| 200 |"))
    assert row == "| 200 | 3.00 s, 2.00 GB | 1.50 s, 500 MB | out of memory | 2.0 | 50% | 1.25, 1.00 |"
    assert "| N = 200, train, float32: times faster than eager | at least 1.2 | 2.0 | yes |" in lines


def test_cases_keep_to_the_limits_and_eager_to_float32() -> None:
    names = {(case.contender, case.dtype) for case in cases_of((60,), "train", "cpu", 1, LIMITS)}
    assert (OURS, "bfloat16") in names and (LAYER, "float32") in names and not any(n == EAGER for n, _ in names)
    names = {(case.contender, case.dtype) for case in cases_of((90, 90), "train", "cpu", 1, LIMITS)}
    both = {(name, dtype) for name in (OURS, ONE_BY_ONE) for dtype in ("float32", "bfloat16")}
    assert names == both | {(EAGER, "float32")}
