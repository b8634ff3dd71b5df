"""One model trained by several processes of this machine, each on its device, through Lightning's DDP."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset
from qgmil.files import atomic_path
from qgmil.models.base import Aggregator
from qgmil.models.persistence import load_model, save_model
from qgmil.training.callbacks import Recorder
from qgmil.training.config import TrainConfig
from qgmil.training.device import choose_device
from qgmil.training.fit import Interrupted, prepare_model, run_training
from qgmil.training.module import MILModule
from qgmil.training.processes import run_processes, send
from qgmil.training.share import Share

START, BEST, RESULT = "start", "best.safetensors", "result.json"


@dataclass(frozen=True)
class SentBags:
    """Bags for another process: what reads them, or for bags in memory the file with their features."""

    reader: BagDataset | None
    keep: bool
    file: Path | None = None
    heads: tuple[tuple[str, str | None, str | None], ...] = ()

    @classmethod
    def pack(cls, bags: BagDataset, file: Path) -> SentBags:
        """Bags in memory go into a file: tensors sent to a process take a file handle each."""
        held = [item for item in bags.items if isinstance(item, Bag)]
        if len(held) < len(bags):
            return cls(bags, bags.keeps_in_memory)
        save_file({str(i): bag.features.contiguous().clone() for i, bag in enumerate(held)}, file)
        return cls(None, True, file, tuple((bag.bag_id, bag.label, bag.patient_id) for bag in held))

    def unpack(self) -> BagDataset:
        """The bags, kept in memory if they were."""
        if self.reader is not None:
            return self.reader.in_memory() if self.keep else self.reader
        assert self.file is not None
        features = load_file(self.file)
        return BagDataset.from_bags(
            [Bag(features[str(i)], label, bag_id, patient) for i, (bag_id, label, patient) in enumerate(self.heads)]
        )


@dataclass(frozen=True)
class Job:
    """Everything that a process needs beside the model; `aggregator` makes it import the model's module."""

    aggregator: type[Aggregator]
    config: TrainConfig
    classes: tuple[str, ...]
    seed: int
    total_steps: int
    class_weights: tuple[float, ...] | None
    train: SentBags
    val: SentBags | None
    folder: Path | None
    resume: bool


def train_in_processes(
    module: MILModule, recorder: Recorder, train: BagDataset, val: BagDataset | None, resume: bool, world: int
) -> None:
    """Train as `run_training` does, in `world` processes; the recorder ends with the history and the best weights.

    Raises:
        QGMILError: as in one process.
        RunError: a process failed or was killed.
        Interrupted: Ctrl-C; the best weights so far are in its model.
    """
    with tempfile.TemporaryDirectory(prefix="qgmil-") as name:
        exchange = Path(name)
        job = _job(module, recorder, train, val, resume, exchange)
        save_model(module.model, exchange / START)

        def hear(message: dict[str, Any]) -> None:
            if recorder.on_epoch is not None:
                recorder.on_epoch(message["done"], message["most"], message["scores"])

        needs_main = job.aggregator.__module__ == "__main__"
        device = job.config.device
        try:
            run_processes(train_share, world, [job], exchange, device=device, on_message=hear, needs_main=needs_main)
        except KeyboardInterrupt:
            best = _read_best(exchange)
            if best:
                module.model.load_state_dict(best)
            raise Interrupted(module.model.eval() if best else None) from None
        result = json.loads((exchange / RESULT).read_text(encoding="utf-8"))
        recorder.load_state_dict({**result, "best": _read_best(exchange)})


def _job(
    module: MILModule, recorder: Recorder, train: BagDataset, val: BagDataset | None, resume: bool, exchange: Path
) -> Job:
    weights = module.class_weights
    return Job(
        aggregator=type(module.model),
        config=module.config.model_copy(update={"device": choose_device(module.config.device)}),
        classes=tuple(module.classes),
        seed=module.seed,
        total_steps=module.total_steps,
        class_weights=None if weights is None else tuple(weights.tolist()),
        train=SentBags.pack(train, exchange / "train.safetensors"),
        val=None if val is None else SentBags.pack(val, exchange / "val.safetensors"),
        folder=None if recorder.folder is None else recorder.folder.resolve(),
        resume=resume,
    )


def train_share(rank: int, world: int, exchange: Path, job: Job) -> None:
    """What each process does; the first also writes."""
    model = prepare_model(load_model(exchange / START), job.config).train()
    train, val = job.train.unpack(), None if job.val is None else job.val.unpack()
    monitor = job.config.monitor if val is not None else None
    recorder = Recorder(job.folder, monitor, job.config.min_epochs, job.config.checkpoint_seconds)

    def report(done: int, most: int, scores: dict[str, float | None]) -> None:
        if recorder.best_epoch == done - 1:
            _save_best(recorder, exchange)
        send(exchange, {"done": done, "most": most, "scores": scores})

    if rank == 0:
        recorder.on_epoch = report
    module = MILModule(
        model,
        job.classes,
        job.config,
        seed=job.seed,
        total_steps=job.total_steps,
        class_weights=None if job.class_weights is None else torch.tensor(job.class_weights),
        share=Share(rank, world, len(train), job.config.batch_size),
    )
    run_training(module, recorder, train, val, job.resume)
    if rank == 0:
        _save_best(recorder, exchange)
        result = {name: getattr(recorder, name) for name in ("history", "best_value", "best_epoch", "seconds_before")}
        (exchange / RESULT).write_text(json.dumps(result), encoding="utf-8")


def _read_best(exchange: Path) -> dict[str, Tensor]:
    return load_file(exchange / BEST) if (exchange / BEST).is_file() else {}


def _save_best(recorder: Recorder, exchange: Path) -> None:
    if not recorder.best:
        return
    with atomic_path(exchange / BEST) as partial:
        save_file({name: value.contiguous() for name, value in recorder.best.items()}, partial)
