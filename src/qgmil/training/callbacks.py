"""What happens beside the steps: history, best weights, resume points, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from torch import Tensor

from qgmil.files import atomic_path, write_csv
from qgmil.training.module import MILModule

#: Called after each epoch with (epochs done, epochs at most, scores).
EpochHook = Callable[[int, int, dict[str, float | None]], None]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that exist whole or not at all, and are read without unpickling objects.

    Lightning's own writes to the system's temporary folder, from which a move is not atomic across file systems.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as partial:
            torch.save(checkpoint, partial)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)


class LaterStopping(EarlyStopping):
    """Early stopping that looks at no epoch before a number of them is done.

    A dozen validation bags often like the first epochs best, when the model has hardly moved.
    """

    def __init__(self, monitor: str, min_epochs: int, **options: Any) -> None:
        super().__init__(monitor, check_on_train_epoch_end=True, **options)
        self.min_epochs = min_epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.min_epochs:
            super().on_train_epoch_end(trainer, pl_module)


class Recorder(Checkpoint):
    """History, best weights and the resume point, after every epoch.

    The history and the best weights travel inside the checkpoint, so that what a resumed run ends with is what an
    uninterrupted one ends with. Without validation the last epoch is the best.

    Args:
        folder: run folder; None keeps everything in memory.
        monitor: validation metric, or None without validation.
        min_epochs: epochs before that are kept only until then, for an early Ctrl-C.
        seconds: write the checkpoint at most this often.
        on_epoch: told of each finished epoch.
    """

    def __init__(
        self,
        folder: Path | None,
        monitor: str | None,
        min_epochs: int,
        seconds: float,
        on_epoch: EpochHook | None = None,
    ) -> None:
        self.folder, self.monitor, self.seconds, self.on_epoch = folder, monitor, seconds, on_epoch
        self.min_epochs = min_epochs
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.best_value, self.best_epoch = float("nan"), -1
        self.seconds_before = 0.0
        self._started = self._saved_at = time.monotonic()

    @property
    def checkpoint(self) -> Path | None:
        """Where the resume point is written."""
        return None if self.folder is None else self.folder / "checkpoints" / "last.ckpt"

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": self.history,
            "best": self.best,
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "seconds_before": self.seconds_before + time.monotonic() - self._started,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, MILModule)
        epoch, scores = trainer.current_epoch, pl_module.scores
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.history.append({"epoch": epoch, "train_loss": scores["train_loss"], **scores, "lr": rate})
        for logger in trainer.loggers:  # TensorBoard where it is installed; the CSV is written in any case
            logger.log_metrics(
                {k: v for k, v in self.history[-1].items() if k != "epoch" and v is not None}, step=epoch
            )
        value = scores.get(self.monitor) if self.monitor else None
        if epoch + 1 == self.min_epochs:
            self.best_epoch = -1
        usable = math.isfinite(scores["train_loss"] or 0.0) and (value is None or math.isfinite(value))
        if usable and (self.monitor is None or (value is not None and self._is_better(value))):
            self.best_epoch, self.best_value = epoch, float("nan") if value is None else value
            self.best = {k: v.detach().cpu().clone() for k, v in pl_module.model.state_dict().items()}
        self._write(trainer, last=trainer.should_stop or epoch + 1 == trainer.max_epochs)
        if self.on_epoch is not None:
            self.on_epoch(epoch + 1, trainer.max_epochs or 0, dict(scores))

    def _is_better(self, value: float) -> bool:
        if self.best_epoch < 0:
            return True
        return value < self.best_value if self.monitor == "val_loss" else value > self.best_value

    def _write(self, trainer: pl.Trainer, last: bool) -> None:
        if self.folder is None:
            return
        if trainer.is_global_zero:
            write_csv(self.folder / "history.csv", self.history)
        # After the last epoch the model itself is written next; a stopped run's checkpoint would train on if resumed.
        due = time.monotonic() - self._saved_at >= self.seconds and not last
        if trainer.strategy.reduce_boolean_decision(due, all=False):  # processes save together; clocks differ
            assert self.checkpoint is not None
            trainer.save_checkpoint(self.checkpoint)
            self._saved_at = time.monotonic()
