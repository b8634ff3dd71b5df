"""One cell in a process of its own: JSON in, its run folder on the disk, its row of the results table out."""

from __future__ import annotations

import contextlib
import json
import platform
import sys
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qgmil.bags.dataset import BagDataset
from qgmil.bags.splits import Split
from qgmil.benchmark.rows import failed_row, finished_row, read_cell, row_of, write_cell
from qgmil.benchmark.sources import OpenSource, open_source
from qgmil.errors import QGMILError, RunError
from qgmil.files import write_csv, write_text
from qgmil.training.callbacks import EpochHook
from qgmil.training.cell import Cell, run_cell, split_rows
from qgmil.training.config import TrainConfig
from qgmil.training.device import choose_device
from qgmil.training.runfolder import CONFIG, SKIPPED, SPLIT, source_hash, write_run

ERROR = "error.txt"
KEPT = 1  # data sets that stay open: the cells come data set by data set
_open: OrderedDict[str, OpenSource] = OrderedDict()


def run_job(job: dict[str, Any], on_epoch: EpochHook | None = None) -> dict[str, Any]:
    """Train and evaluate one cell, or go on where it stopped; never raises but on Ctrl-C.

    Args:
        job: of `PlannedCell.job`.
        on_epoch: told of each finished epoch.

    Returns:
        The row of the results table: finished, or failed with the error in words.
    """
    folder = Path(job["folder"])
    try:
        row = finished_row(folder, job["fingerprint"])
        return _run(job, folder, on_epoch) if row is None else row
    except Exception as error:  # whatever it is costs this cell and no other
        if not isinstance(error, QGMILError):
            with contextlib.suppress(OSError):
                write_text(folder / ERROR, traceback.format_exc())
        said = str(error) if isinstance(error, QGMILError) else f"{type(error).__name__}: {error}"
        return failed_row(job, said)


def _run(job: dict[str, Any], folder: Path, on_epoch: EpochHook | None) -> dict[str, Any]:
    config = TrainConfig.build(job["config"], job["id"])
    _prepare(folder, job)
    opened = _opened(job, config)
    train, val, test = (tuple(job["split"][side]) for side in ("train", "val", "test"))
    split = Split(train, val, test, job["split"]["name"])
    cell = Cell(split, job["fold"], job["seed"], folder)
    memory = _PeakMemory(config.device)
    if job["search"] is not None:
        config = _searched(cell, opened.bags, config, job, on_epoch)
    if not (folder / CONFIG).is_file():
        _begin(cell, opened, config, job)
    run_cell(cell, opened.bags, job["classes"], config, resume=True, on_epoch=on_epoch)
    write_cell(folder, job, {"peak_mb": memory.megabytes(), **_machine(config.device)})
    (folder / ERROR).unlink(missing_ok=True)
    return row_of(folder)


def _prepare(folder: Path, job: Mapping[str, Any]) -> None:
    """Make the cell's folder, or see that the one that is there was begun by the same cell."""
    begun = read_cell(folder)
    if begun is None:
        if folder.is_dir() and any(p for p in folder.iterdir() if p.name != ERROR and not p.name.startswith(".")):
            raise RunError(f"{folder} is not empty, and not a cell of a benchmark: move it away")
        folder.mkdir(parents=True, exist_ok=True)
        write_cell(folder, job)
    elif begun["fingerprint"] != job["fingerprint"]:
        raise RunError(f"{folder} was begun with other settings: move it away (--redo-changed does)")


def _begin(cell: Cell, opened: OpenSource, config: TrainConfig, job: Mapping[str, Any]) -> None:
    """What `qgmil train` writes into a run folder before it trains; the configuration last."""
    if opened.bags.skipped:
        rows = [{"bag_id": bag, "reason": reason} for bag, reason in opened.bags.skipped]
        write_csv(cell.folder / SKIPPED, rows)
    write_csv(cell.folder / SPLIT, split_rows(cell, opened.bags))
    config = config.model_copy(update={"split_file": (cell.folder.absolute() / SPLIT,)})
    # What `qgmil resume` and `qgmil evaluate` compare the table with; the identity is of what is in it.
    table = source_hash(opened.path) if job["source"].get("manifest") else opened.identity
    write_run(cell.folder, config, opened.path.resolve(), table, f"qgmil benchmark, cell {job['id']}")


def _opened(job: Mapping[str, Any], config: TrainConfig) -> OpenSource:
    """The bags of the cell, kept from the last one where they are the same."""
    # One table read in two ways (another column of features, or of labels) is two sets of bags.
    name = json.dumps([job["source"], job["identity"], config.in_memory], sort_keys=True)
    if name not in _open:
        while len(_open) >= KEPT:
            _open.popitem()
        opened = open_source(job["source"], in_memory=config.in_memory)
        if opened.identity != job["identity"]:
            raise RunError(f"{opened.path}: has changed since the benchmark was planned, or is another here")
        _open[name] = opened
    return _open[name]


def _searched(
    cell: Cell, bags: BagDataset, config: TrainConfig, job: Mapping[str, Any], on_trial: EpochHook | None
) -> TrainConfig:
    from qgmil.benchmark.search import tuned_config  # only where one is asked for

    return tuned_config(cell, bags, job["classes"], config, job["search"], on_trial=on_trial)


def _machine(device: str) -> dict[str, Any]:
    chosen = choose_device(device)
    name = torch.cuda.get_device_name() if chosen == "cuda" else chosen
    return {"device": name, "threads": torch.get_num_threads(), "host": platform.node()}


class _PeakMemory:
    """Peak memory of a cell: of the GPU where it trains there, else of this process (Linux: since it began)."""

    def __init__(self, device: str) -> None:
        self.cuda = choose_device(device) == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> float | None:
        """So far, in 10^6 bytes; None where the system does not say."""
        if self.cuda:
            return round(torch.cuda.max_memory_allocated() / 1e6, 1)
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            return round(int(next(x for x in lines if x.startswith("VmHWM:")).split()[1]) * 1024 / 1e6, 1)
        with contextlib.suppress(ImportError):
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)
        return None
