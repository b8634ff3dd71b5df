"""Is loading the bottleneck of training? Epochs from a packed store, from h5 files, from memory, and from plain h5py.

    python benchmarks/loading.py GLAS/bags.csv DEEPAPL/bags.csv [--generated-bags 200] [--instances 10000] [--json FILE]

Each cohort (and one of random float16 features, made in a temporary folder and deleted afterwards) is packed, and its
sources take turns: one epoch that only loads, touching every page, and one epoch of training the model on what is
loaded. The plain loader is what most scripts have: a torch Dataset that opens a bag's file with h5py and reads its
features, in a DataLoader of one bag a batch. A manifest that is not there is left out, and said so.

Files that were just written or read lie in the system's page cache, and the figures are those of a second epoch; with
--cold the cache forgets them before each turn, as in the first epoch over data larger than memory.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import numpy as np
import torch
from cyclopts import App, Parameter
from epoch import Loop, forget
from measure import machine, summary
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from qgmil.bags.bag import PackedBags
from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.bags.manifest import BagRecord
from qgmil.bags.store.pack import pack_store
from qgmil.training.device import choose_device, choose_precision
from qgmil.training.sampler import raise_errors, train_loader

PAGE = 4096  # bytes
Batches = Iterable[PackedBags]
Flag = Parameter(negative=())
app = App(help=__doc__)
console = Console(highlight=False)


class PlainH5(Dataset[tuple[torch.Tensor, int]]):
    """A bag's features and class, read with h5py and nothing else."""

    def __init__(self, bags: BagDataset) -> None:
        records = [item for item in bags.items if isinstance(item, BagRecord)]
        self.files = [record.files[0] for record in records]
        self.labels = [bags.classes.index(str(record.label)) for record in records]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with h5py.File(self.files[index], "r") as file:
            return torch.from_numpy(file["features"][:]), self.labels[index]


def plain_batches(bags: BagDataset, workers: int, sample: int | None) -> Iterator[PackedBags]:
    """One bag a batch from the plain loader; it reads all of a bag, of which `sample` rows are used."""
    loader = DataLoader(PlainH5(bags), batch_size=1, shuffle=True, num_workers=workers)
    for features, label in loader:
        rows = features[0]
        if sample is not None and len(rows) > sample:
            rows = rows[torch.randperm(len(rows))[:sample].sort().values]
        yield PackedBags(rows, (len(rows),), label)


def our_batches(bags: BagDataset, workers: int, sample: int | None, batch_size: int) -> Iterator[PackedBags]:
    """The batches of `qgmil train`."""
    loading: dict[str, Any] = {"seed": 0, "sample": sample, "batch_size": batch_size, "workers": workers}
    return map(raise_errors, train_loader(bags, bags.classes, **loading))


def touch(bags: PackedBags) -> None:
    """Look at one number in every page of the features: a view of a file has not been loaded before."""
    bags.features.reshape(-1)[:: PAGE // bags.features.itemsize].sum()


def make_cohort(folder: Path, bags: int, instances: int, width: int) -> Path:
    """Random float16 features, one h5 file a bag, and their manifest."""
    block = np.random.default_rng(0).standard_normal((instances, width), dtype=np.float32).astype(np.float16)
    rows = ["bag_id,label,features"]
    for i in range(bags):
        with h5py.File(folder / f"b{i}.h5", "w") as file:
            file["features"] = np.roll(block, i, axis=0)
        rows.append(f"b{i},{i % 2},b{i}.h5")
    (folder / "bags.csv").write_text("\n".join(rows) + "\n")
    return folder / "bags.csv"


@app.default
def main(
    manifests: Annotated[list[Path] | None, Flag] = None,
    /,
    *,
    generated_bags: int = 200,
    instances: int = 10_000,
    width: int = 1024,
    batch_size: int = 1,
    sample: int | None = None,
    most_bags: int | None = None,
    model: str = "qgmil",
    rounds: int = 3,
    workers: tuple[int, ...] = (0, 2),
    cold: Annotated[bool, Flag] = False,
    train: bool = True,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "32", "bf16"] = "auto",
    temporary: Path | None = None,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """Measure and print.

    Parameters
    ----------
    manifests
        Tables of bags whose files are h5 with a data set "features".
    generated_bags
        Bags of the random cohort; 0: none.
    instances
        Instances of each of them.
    width
        Features of an instance.
    batch_size
        Bags a step of our sources; the plain loader has one.
    sample
        Most instances a bag, to keep the training part short; all sources draw as many.
    most_bags
        Only the first bags of each cohort.
    model
        Aggregator that is trained.
    rounds
        Turns of every source; the quickest counts.
    workers
        Processes of the plain loader, each to be tried.
    cold
        Have the system forget the files before each turn.
    train
        --no-train: only loading.
    device
        Where to train.
    precision
        Arithmetic.
    temporary
        Folder for stores and the random cohort, which takes twice 2 x bags x instances x width bytes.
    json_file
        Write the figures here as well.
    """
    found = []
    device = choose_device(device)  # type: ignore[assignment]
    options = {"batch_size": batch_size, "sample": sample, "rounds": rounds, "workers": workers, "cold": cold}
    recipe = (model, device, choose_precision(precision, device)) if train else None
    with scratch(temporary) as folder:
        for manifest in manifests or []:
            if manifest.exists():
                found += measure(manifest.parent.name, manifest, folder, recipe, most_bags, **options)
            else:
                console.print(f"left out, not there: {manifest}", soft_wrap=True)
        if generated_bags:
            name = f"{generated_bags} x {instances:,} x {width:,}"
            check_room(folder, 4 * generated_bags * instances * width)
            made = make_cohort(folder, generated_bags, instances, width)
            found += measure(name, made, folder, recipe, most_bags, **options)
    told = {**machine(device), **options, "model": model, "page_cache": "dropped before each turn" if cold else "warm"}
    show(told, found, json_file)


def measure(
    name: str,
    manifest: Path,
    folder: Path,
    recipe: tuple[str, str, str] | None,
    most_bags: int | None,
    *,
    batch_size: int,
    sample: int | None,
    rounds: int,
    workers: Iterable[int],
    cold: bool,
) -> list[dict[str, Any]]:
    """A row a source of one cohort: seconds of an epoch, and how many times those of memory."""

    def some(path: Path, in_memory: bool = False) -> BagDataset:
        bags = open_bags(path, in_memory=in_memory)
        return bags if most_bags is None else bags.subset(range(min(most_bags, len(bags))))

    store = folder / "store"
    started = time.perf_counter()
    pack_store(manifest, store, force=True)
    packing = time.perf_counter() - started
    memory = some(manifest, in_memory=True)
    held = sum(memory[i].features.nbytes for i in range(len(memory)))
    opens: dict[str, Callable[[], Batches]] = {
        "memory": lambda: our_batches(memory, 0, sample, batch_size),
        "store": lambda: our_batches(some(store), 0, sample, batch_size),
        "h5 files": lambda: our_batches(some(manifest), 0, sample, batch_size),
    }
    for number in workers:
        opens[f"plain h5py, workers {number}"] = lambda number=number: plain_batches(some(manifest), number, sample)  # type: ignore[misc]
    steps: dict[str, Callable[[PackedBags], object]] = {"loading": touch}
    if recipe is not None:
        model, device, precision = recipe
        loop = Loop(memory, model, device, precision, batch_size, sample)
        steps["training"] = lambda batch: loop._step(batch.to(device, non_blocking=True))
    times: dict[tuple[str, str], list[float]] = {(source, what): [] for source in opens for what in steps}
    for number in range(-1, rounds):  # the first round warms up
        for (source, what), seconds in times.items():
            if cold:
                for path in (store, manifest):
                    forget(some(path))
            spent = epoch(opens[source], steps[what])
            if number >= 0:
                seconds.append(spent)
    shutil.rmtree(store)
    rows = []
    for source in opens:
        row = {"cohort": name, "source": source, "bags": len(memory), "megabytes": held / 1e6, "packing": packing}
        for what in steps:
            row[what] = summary(times[source, what])
            row[f"{what}_times_memory"] = min(times[source, what]) / min(times["memory", what])
        if "training" in steps:
            row["loading_share"] = min(times[source, "loading"]) / min(times["memory", "training"])
        rows.append(row)
    return rows


def epoch(open_batches: Callable[[], Batches], step: Callable[[PackedBags], object]) -> float:
    """Seconds from opening the bags to the last step's end."""
    started = time.perf_counter()
    for batch in open_batches():
        step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """A folder that is gone afterwards, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="qgmil-loading-", dir=parent) as folder:
        yield Path(folder)


def check_room(folder: Path, needed: int) -> None:
    """Stop before a disk is filled."""
    free = shutil.disk_usage(folder).free
    if needed > 0.9 * free:
        raise SystemExit(
            f"the random cohort takes {needed / 1e9:.1f} GB but {folder} has {free / 1e9:.1f}: --temporary"
        )


def show(told: dict[str, Any], rows: list[dict[str, Any]], json_file: Path | None) -> None:
    """The table, and what is claimed: training from the store takes as long as training from memory."""
    console.print(json.dumps(told), markup=False, soft_wrap=True)
    table = Table("cohort", "source", "load s", "x memory", "train s", "x memory", "load / train")
    for row in rows:
        cells = [row["cohort"], row["source"], f"{row['loading']['seconds']:.3f}", f"{row['loading_times_memory']:.2f}"]
        if "training" in row:
            cells += [f"{row['training']['seconds']:.3f}", f"{row['training_times_memory']:.2f}"]
            cells.append(f"{row['loading_share']:.1%}")
        table.add_row(*cells)
    console.print(table)
    for row in rows:
        if row["source"] == "store" and "training" in row:
            said = f"training from the store takes {row['training_times_memory']:.3f} times training from memory"
            console.print(
                f"{row['cohort']}: {said}; loading alone is {row['loading_share']:.1%} of that", soft_wrap=True
            )
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": told, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    app()
