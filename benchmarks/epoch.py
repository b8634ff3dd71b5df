"""Does loading hide behind computing? An epoch of training, and a pass of `qgmil predict`, from bags on disk.

    python benchmarks/epoch.py train COHORT/bags.csv [STORE] [--workers 0 1] [--cold] [--json out.json]
    python benchmarks/epoch.py predict COHORT/bags.csv [--run RUN] [--profile]

`train` runs the loop of training (same loader, batches, precision, optimiser) over each source in turn: a manifest of
feature files, a packed store made by `qgmil pack`, and the first source's bags held in memory, which is what the others
are compared with. Waiting is the time until the next batch is there. `predict` runs `predict_run` and says how much of
it the models, the reading of bags and the rest take.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest import mock

import torch
from cyclopts import App, Parameter
from measure import machine, summary
from rich.console import Console
from rich.table import Table

from qgmil import create_model
from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.bags.manifest import BagRecord
from qgmil.models.base import Aggregator
from qgmil.training.config import TrainConfig
from qgmil.training.device import autocast, choose_device, choose_precision
from qgmil.training.members import Member, Run, load_run, predict_run
from qgmil.training.sampler import raise_errors, train_loader

Many = Parameter(consume_multiple=True, negative=())
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "32", "bf16"]
RECIPE = TrainConfig.build({})
app = App(help=__doc__)
console = Console(highlight=False)


@dataclass(frozen=True)
class Source:
    """Where an epoch's bags come from: a name, a way to open them, and the processes that read them."""

    name: str
    open: Callable[[], BagDataset]
    workers: int


@app.command
def train(
    sources: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    workers: Annotated[tuple[int, ...], Many] = (0, 1),
    model: str = "qgmil",
    batch_size: int = RECIPE.batch_size,
    sample: int | None = None,
    epochs: int = 3,
    device: Device = "auto",
    precision: Precision = "auto",
    cold: Annotated[bool, Parameter(negative=())] = False,
    quick: Annotated[bool, Parameter(negative=())] = False,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """Epochs of training from files, from a store and from memory.

    Parameters
    ----------
    sources
        Manifests and stores of the same bags.
    workers
        Processes that read, each to be tried.
    model
        Aggregator.
    batch_size
        Bags a step.
    sample
        Most instances a bag.
    epochs
        Epochs of each source; the quickest counts.
    device
        Where to train.
    precision
        Arithmetic.
    cold
        Have the system forget the files before each epoch, so that they come from the disk.
    quick
        One epoch over at most 16 bags.
    json_file
        Write the figures here as well.
    """
    most = 16 if quick else None
    held = _first(open_bags(sources[0], in_memory=True), most)
    for i in range(len(held)):
        held[i]
    everything = [Source("memory", lambda: held, 0)]
    for path in sources:
        for number in workers:
            everything.append(Source(path.name, lambda path=path: _first(open_bags(path), most), number))  # type: ignore[misc]
    device = choose_device(device)  # type: ignore[assignment]
    loop = Loop(held, model, device, choose_precision(precision, device), batch_size, sample)
    found: dict[Source, list[tuple[float, float]]] = {source: [] for source in everything}
    loop.epoch(everything[0])  # warms up
    for _ in range(1 if quick else epochs):
        for source in everything:
            if cold:
                forget(source.open())
            found[source].append(loop.epoch(source))
    rows = [_epoch_row(source, times, found[everything[0]]) for source, times in found.items()]
    told = {**machine(device), "precision": loop.precision, "bags": len(held), "cold": cold}
    told["instances"] = sum(len(held[i]) for i in range(len(held)))
    columns = ("source", "workers", "seconds", "waiting_seconds", "waiting_share", "times_memory")
    _print(told, columns, rows, json_file)


class Loop:
    """The training loop, without logging and validation."""

    def __init__(
        self, bags: BagDataset, model: str, device: str, precision: str, batch_size: int, sample: int | None
    ) -> None:
        self.classes, self.device, self.precision = bags.classes, device, precision
        self.loading: dict[str, Any] = {"batch_size": batch_size, "sample": sample, "pin_memory": device == "cuda"}
        made = create_model(model, in_dim=bags.width, num_classes=len(self.classes), standardize=True)
        self.model = made.to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RECIPE.lr, fused=True)

    def epoch(self, source: Source) -> tuple[float, float]:
        """Seconds of one epoch, and how many of them were spent waiting for batches (starting workers included)."""
        bags = source.open()
        started, waited = time.perf_counter(), 0.0
        batches = iter(train_loader(bags, self.classes, seed=0, workers=source.workers, **self.loading))
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            self._step(raise_errors(batch).to(self.device, non_blocking=True))
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started, waited

    def _step(self, bags: Any) -> None:
        with autocast(self.precision, self.device):
            loss = self.model.loss(self.model(bags), bags.labels, label_smoothing=RECIPE.label_smoothing)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), RECIPE.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _epoch_row(source: Source, times: Sequence[tuple[float, float]], memory: Sequence[tuple[float, float]]) -> Any:
    seconds, waited = min(times)
    return {
        "source": source.name,
        "workers": source.workers,
        **summary([total for total, _ in times]),
        "waiting_seconds": waited,
        "waiting_share": waited / seconds,
        "times_memory": seconds / min(memory)[0],
    }


def forget(bags: BagDataset) -> None:
    """Ask the system to drop the bags' files from its cache (POSIX; what is mapped or unwritten stays)."""
    files = {file for item in bags.items if isinstance(item, BagRecord) for file in item.files}
    files |= {inner for file in files if file.is_dir() for inner in file.iterdir()}
    del bags
    for file in files:
        if file.is_file() and hasattr(os, "posix_fadvise"):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@app.command
def predict(
    bags: Path,
    /,
    *,
    run: Path | None = None,
    members: int = 5,
    batch_size: int = RECIPE.batch_size,
    device: Device = "auto",
    precision: Precision = "auto",
    profile: Annotated[bool, Parameter(negative=())] = False,
    quick: Annotated[bool, Parameter(negative=())] = False,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """Where `qgmil predict` spends its time: starting, models, reading, the rest.

    Parameters
    ----------
    bags
        A manifest or a store.
    run
        A finished run. Default: untrained models, whose time is the same.
    members
        Models of the run where none is given.
    batch_size
        Bags a pass of the model.
    device
        Where to run.
    precision
        Arithmetic.
    profile
        Also print the functions that take longest.
    quick
        At most 16 bags and 2 models.
    json_file
        Write the figures here as well.
    """
    found = _first(open_bags(bags, labels=False), 16 if quick else None)
    started = time.perf_counter()
    loaded = untrained_run(found, 2 if quick else members) if run is None else load_run(run)
    loading = time.perf_counter() - started
    settings: dict[str, Any] = {"batch_size": batch_size, "device": device, "precision": precision}
    profiler = cProfile.Profile()
    with watched(device) as spent:
        started = time.perf_counter()
        if profile:
            profiler.enable()
        predict_run(loaded, found, **settings)
        profiler.disable()
        total = time.perf_counter() - started
    parts = {"models": spent["models"], "reading": spent["reading"], "rest": total - spent["models"] - spent["reading"]}
    rows = [{"part": name, "seconds": seconds, "share": seconds / total} for name, seconds in parts.items()]
    told = {**machine(choose_device(device)), "precision": choose_precision(precision, choose_device(device))}
    told |= {"bags": len(found), "members": len(loaded.members), "read": spent["reads"], "start_seconds": imports()}
    told |= {"load_seconds": None if run is None else loading, "seconds": total}
    _print(told, ("part", "seconds", "share"), rows, json_file)
    said = f"{total:.2f} s for {len(found)} bags and {len(loaded.members)} models, each bag read "
    said += f"{spent['reads'] / len(found):.1f} times; importing the program takes {told['start_seconds']:.2f} s more"
    console.print(said, soft_wrap=True)
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(20)


def untrained_run(bags: BagDataset, members: int) -> Run:
    """A run of fresh two-class models that have seen nothing."""
    made = [create_model("qgmil", in_dim=bags.width, num_classes=2, standardize=True) for _ in range(members)]
    nobody: frozenset[str] = frozenset()
    return Run(RECIPE, ("no", "yes"), tuple(Member(Path(), m.eval(), 1.0, nobody, nobody) for m in made))


@contextmanager
def watched(device: str) -> Iterator[dict[str, float]]:
    """Seconds spent in models and in reading bags in this process, and the number of bags read, while it lasts."""
    spent = {"models": 0.0, "reading": 0.0, "reads": 0.0}
    get, call = BagDataset.__getitem__, Aggregator.__call__
    cuda = choose_device(device) == "cuda"

    def timed_get(self: BagDataset, index: int) -> Any:
        started = time.perf_counter()
        bag = get(self, index)
        spent["reading"] += time.perf_counter() - started
        spent["reads"] += 1
        return bag

    def timed_call(self: Aggregator, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        out = call(self, *args, **kwargs)
        if cuda:
            torch.cuda.synchronize()
        spent["models"] += time.perf_counter() - started
        return out

    with (
        mock.patch.object(BagDataset, "__getitem__", timed_get),
        mock.patch.object(Aggregator, "__call__", timed_call),
    ):
        yield spent


def imports() -> float:
    """Seconds that a fresh Python takes to import what prediction needs."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import qgmil.cli, qgmil.training.members"], check=True)
    return time.perf_counter() - started


def _first(bags: BagDataset, most: int | None) -> BagDataset:
    """At most that many bags, spread over all of them (and so over their classes)."""
    if most is None or len(bags) <= most:
        return bags
    return bags.subset([i * len(bags) // most for i in range(most)])


def _print(told: dict[str, Any], columns: Sequence[str], rows: list[dict[str, Any]], json_file: Path | None) -> None:
    console.print(json.dumps(told), markup=False, soft_wrap=True)
    table = Table()
    for name in columns:
        table.add_column(name.replace("_", " "), justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        forms = {n: ".0%" if n.endswith("share") else ".3f" for n in columns if isinstance(row[n], float)}
        table.add_row(*(f"{row[n]:{forms.get(n, '')}}" for n in columns))
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": told, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    app()
