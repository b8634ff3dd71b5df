"""Time, memory and arithmetic of one QG-MIL step, from a hundred cells to a hundred thousand tiles.

    python benchmarks/aggregator.py [--device cuda] [--json out.json] [--markdown]  # some ten minutes
    python benchmarks/aggregator.py --quick                     # half a minute: does it run?
    python benchmarks/aggregator.py --read out.json --markdown  # the tables of an earlier run
    python benchmarks/aggregator.py --profile 4000              # where a training step spends its time
    python benchmarks/aggregator.py --compiled ...              # also with torch.compile

Measured are inference (forward, in inference mode) and the training step (forward, loss, backward) on one bag of each
size, and on 64 packed bags of single cells: QG-MIL in float32 and under the bfloat16 autocast of training, against

- eager: the same arithmetic padded and with the whole attention map, in float32 (eager_reference.py);
- encoder layer: `nn.TransformerEncoderLayer` of the same sizes with mean pooling;
- transmil, if there is one.

All contenders of a size take turns in one process, and before each a large matrix product (GEMM) of its dtype: its rate
is the limit that the share refers to; what counts as arithmetic is in `contenders.needed_flops`. Peak memory is that of
fresh processes (on CUDA of the allocator). Where time allows one turn only, the run in the fresh process counts too; on
a CPU it is the only one above `--turns-max`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from contenders import (
    COMPILED,
    EAGER,
    HAEMATOLOGY,
    LAYER,
    ONE_BY_ONE,
    OURS,
    TRANSMIL,
    Case,
    contenders,
    memory_of,
    needed_flops,
    prepare,
)
from cyclopts import Parameter, run
from measure import Step, gemm, growth, in_fresh_process, machine, out_of_memory, seconds_of, summary, take_turns
from rich.console import Console
from speed_tables import Row, goals, goals_table, markdown, plain_table

DTYPES = ("float32", "bfloat16")
MODES = ("forward", "train")
SIZES = {
    "cpu": (100, 200, 1_000, 4_000, 10_000, 30_000, 100_000),
    "cuda": (100, 200, 1_000, 4_000, 10_000, 32_768, 100_000, 200_000),
}
messages = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Limits:
    """How far each part goes, in instances a bag, and how long it may take.

    Args:
        train: largest bag of a training step.
        eager: largest bag of the eager reference, whose memory grows with the square.
        peer: largest bag of the encoder layer and of TransMIL.
        turns: largest bag whose contenders take turns.
        rounds, budget: of the turns at one size, as for `take_turns`.
        compiled: also QG-MIL with its row-wise parts compiled; on CUDA with CUDA graphs, too.
    """

    train: int
    eager: int
    peer: int
    turns: int
    rounds: int
    budget: float
    compiled: bool = False


def aggregator(
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    sizes: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative=())] = (),
    train_max: int | None = None,
    eager_max: int = 10_000,
    peer_max: int | None = None,
    turns_max: int | None = None,
    rounds: int = 15,
    budget: float = 12.0,
    bags: bool = True,
    compiled: Annotated[bool, Parameter(negative=())] = False,
    threads: int | None = None,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    read: Path | None = None,
    markdown_: Annotated[bool, Parameter(name="--markdown", negative=())] = False,
    profile: int | None = None,
    quick: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Measure and print.

    Parameters
    ----------
    device
        Where to run.
    sizes
        Instances of the single bags. Default: 100 to 100,000 (CUDA: to 200,000).
    train_max
        Largest bag of a training step. Default: 30,000 (CUDA: 200,000).
    eager_max
        Largest bag of the eager reference.
    peer_max
        Largest bag of the other aggregators. Default: 10,000 (CUDA: 200,000).
    turns_max
        Largest bag whose contenders take turns; above, one run each. Default: 10,000 (CUDA: all).
    rounds
        Most rounds of turns.
    budget
        Seconds for the turns at one size, after the first round.
    bags
        Also the batch of 64 bags of single cells.
    compiled
        Also QG-MIL with its row-wise parts compiled (CUDA: and with CUDA graphs).
    threads
        Threads of torch. Default: its own choice.
    json_file
        Write everything here as JSON, after each size.
    read
        Measure nothing; show this earlier JSON.
    markdown_
        Print Markdown for the documentation.
    profile
        Measure nothing; print what a training step on a bag of this size spends its time on.
    quick
        Small bags and few rounds.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if profile is not None:
        for dtype in DTYPES:
            print_profile(Case(OURS, (profile,), "train", dtype, device))
        return
    if read is not None:
        show(json.loads(read.read_text()), markdown_)
        return
    cuda = device == "cuda"
    limits = Limits(
        train=(200_000 if cuda else 30_000) if train_max is None else train_max,
        eager=eager_max,
        peer=(200_000 if cuda else 10_000) if peer_max is None else peer_max,
        turns=(200_000 if cuda else 10_000) if turns_max is None else turns_max,
        rounds=3 if quick else rounds,
        budget=min(budget, 2.0) if quick else budget,
        compiled=compiled,
    )
    sizes = sizes or ((100, 1_000) if quick else SIZES[device])
    batches: list[tuple[int, ...]] = [(n,) for n in sorted(sizes)]
    if bags:
        batches.append(HAEMATOLOGY[:8] if quick else HAEMATOLOGY)
    results: dict[str, Any] = {"machine": machine(device), "limits": vars(limits), "rows": []}
    if (results["machine"]["load"] or 0.0) > 0.5:
        messages.print(
            "Other programs are running: threads wait for each other, and even ratios are off. Measure again."
        )
    started = time.perf_counter()
    for batch in batches:
        for mode in MODES:
            if len(batch) > 1 or mode == "forward" or batch[0] <= limits.train:
                results["rows"] += measure(cases_of(batch, mode, device, threads, limits), limits)
                add_growth(results["rows"])
                results["seconds"] = time.perf_counter() - started
                if json_file is not None:
                    json_file.write_text(json.dumps(results, indent=1) + "\n")
    show(results, markdown_)


def cases_of(batch: tuple[int, ...], mode: str, device: str, threads: int | None, limits: Limits) -> list[Case]:
    """Everything to compare on one batch. Eager, like the released model, has float32 alone."""
    single = len(batch) == 1
    most = {EAGER: limits.eager, LAYER: limits.peer, TRANSMIL: limits.peer}
    names = contenders() if single else (OURS, ONE_BY_ONE, EAGER)
    if limits.compiled:
        names = (*names, *list(COMPILED)[: 2 if device == "cuda" else 1])
    names = tuple(name for name in names if not single or batch[0] <= most.get(name, batch[0]))
    pairs = [(name, dtype) for dtype in DTYPES for name in names if (name, dtype) != (EAGER, "bfloat16")]
    return [Case(name, batch, mode, dtype, device, threads) for name, dtype in pairs]


def measure(cases: Sequence[Case], limits: Limits) -> list[Row]:
    """Time and peak memory of cases on one batch, and the rate of a GEMM in the same turns."""
    sizes, mode, device = cases[0].sizes, cases[0].mode, cases[0].device
    messages.print(f"{len(sizes)} bag{'s' * (len(sizes) > 1)}, {sum(sizes):,} instances, {mode}")
    products = {dtype: gemm(dtype, device) for dtype in DTYPES}
    runs: dict[tuple[str, Case], list[float]] = {}
    turns = len(sizes) > 1 or sizes[0] <= limits.turns
    if turns:
        runs = _turns(cases, {dtype: step for dtype, (step, _) in products.items()}, limits)
    rows = []
    for case in cases:
        step, flops = products[case.dtype]
        times = runs.get(("step", case), [])
        if not turns:
            runs["gemm", case] = [seconds_of(step, device) for _ in range(3)]
        found = _memory(case)
        if found is not None and len(times) < 2:
            times = [*times, found["seconds"]]
        same = [name for name in runs if name[0] == "gemm" and name[1].dtype == case.dtype]
        rate = max((flops / min(runs[name]) for name in same), default=None)
        rows.append(_row(case, times, None if found is None else found["peak_bytes"], rate))
    return rows


def _turns(cases: Sequence[Case], products: dict[str, Step], limits: Limits) -> dict[tuple[str, Case], list[float]]:
    """Seconds of each case ("step") and of the product before it ("gemm"); without what the GPU has no room for."""
    steps: dict[tuple[str, Case], Step] = {}
    for case in cases:
        try:
            step = prepare(case)
            if case.device == "cuda":  # finds out what fits; the processor would rather be stopped than refuse
                step()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            continue
        steps["gemm", case], steps["step", case] = products[case.dtype], step
    if not steps:
        return {}
    return take_turns(steps, cases[0].device, rounds=limits.rounds, budget=limits.budget)


def _memory(case: Case) -> dict[str, float] | None:
    """Peak memory and seconds of one run; None if there is not enough."""
    if case.device == "cpu":
        return in_fresh_process(memory_of, case)
    torch.cuda.empty_cache()
    try:
        return memory_of(case)
    except torch.OutOfMemoryError:
        return None


def _row(case: Case, times: Sequence[float], peak: float | None, rate: float | None) -> Row:
    """One line of the results. The arithmetic of the other aggregators is another, so they have no share."""
    flops = needed_flops(case.sizes, case.mode) if case.contender in (OURS, ONE_BY_ONE, EAGER, *COMPILED) else None
    timed = summary(times) if times else {"seconds": None, "median_seconds": None, "runs": 0}
    seconds = timed["seconds"]
    return {
        "contender": case.contender,
        "bags": len(case.sizes),
        "instances": sum(case.sizes),
        "mode": case.mode,
        "dtype": case.dtype,
        **timed,
        "peak_bytes": peak,
        "flops": flops,
        "gemm_flops_per_second": rate,
        "gemm_share": None if flops is None or rate is None or seconds is None else flops / seconds / rate,
        "time_growth": None,
        "memory_growth": None,
    }


def add_growth(rows: Sequence[Row]) -> None:
    """Write the exponents between each size and the one before into the rows of single bags."""
    before: dict[tuple[str, ...], Row] = {}
    for row in sorted((r for r in rows if r["bags"] == 1), key=lambda r: r["instances"]):
        key = (row["contender"], row["mode"], row["dtype"])
        if (small := before.get(key)) is not None:
            for field, measured in (("time_growth", "seconds"), ("memory_growth", "peak_bytes")):
                row[field] = growth((small["instances"], small[measured]), (row["instances"], row[measured]))
        before[key] = row


def show(results: dict[str, Any], as_markdown: bool) -> None:
    """Print the tables."""
    if as_markdown:
        print(markdown(results))
        return
    console = Console(highlight=False, width=None if Console().is_terminal else 160)
    console.print(json.dumps(results["machine"]), markup=False, soft_wrap=True)
    console.print(plain_table(results["rows"]))
    console.print(goals_table(goals(results)))


def print_profile(case: Case) -> None:
    """The operations that a step spends most time in."""
    step = prepare(replace(case, sizes=(8,)))
    step()
    step = prepare(case)
    step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if case.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=False) as found:
        step()
    by = "self_device_time_total" if case.device == "cuda" else "self_cpu_time_total"
    print(f"\n{case.sizes[0]:,} instances, {case.mode}, {case.dtype}, {case.device}")
    print(found.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=60))


if __name__ == "__main__":
    run(aggregator)
