"""Training an encoder and an aggregator together, by the gradient through a sample of each bag's cells.

A bag of hundreds of cells with the activations of an encoder does not fit a small machine, and does not need to: each
step takes a few bags and of each a few cells drawn anew, as stochastic gradients do. Batch normalisation keeps its
statistics (a step's cells are too few and too alike to give new ones). With `freeze` the encoder stays as it is: the
same training but for one thing, which is what a comparison needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from qgmil.bags.bag import PackedBags
from qgmil.encoders.base import Encoder, EncoderInfo
from qgmil.encoders.extract import encode_all, open_cells
from qgmil.encoders.lite0 import Lite0
from qgmil.encoders.pictures import Pictures, Shaping
from qgmil.encoders.work import Work
from qgmil.errors import ConfigError, ReadError
from qgmil.evaluation.calibration import apply_temperature, expand_binary
from qgmil.evaluation.metrics import evaluate
from qgmil.models.base import Aggregator
from qgmil.training.callbacks import LaterStopping
from qgmil.training.fit import quiet_lightning

EpochHook = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True)
class FinetuneConfig:
    """How encoder and aggregator are trained together.

    Args:
        cells: of each bag in a step.
        val_cells: of each validation bag, always the same.
        batch_size: bags in a step.
        epochs, min_epochs, patience: at most; before stopping is thought of; without a better validation loss.
        lr, encoder_lr: of the aggregator and of the encoder (AdamW, cosine to zero).
        weight_decay: of both.
        freeze: leave the encoder as it is.
        flips: turn and mirror the cells of a step at random.
        seed: of weights, order, sampling and flips.
        workers: threads that read.
    """

    cells: int = 24
    val_cells: int = 64
    batch_size: int = 4
    epochs: int = 12
    min_epochs: int = 4
    patience: int = 4
    lr: float = 3e-4
    encoder_lr: float = 1e-5
    weight_decay: float = 0.01
    freeze: bool = False
    flips: bool = True
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("cells", "val_cells", "batch_size", "epochs", "min_epochs", "patience", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("lr", "encoder_lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: must be above 0")

    @property
    def first(self) -> int:
        """Epochs that are trained before any counts as the best."""
        return min(self.min_epochs, self.epochs)


@dataclass(frozen=True, eq=False)
class Tuned:
    """An encoder and an aggregator that were trained together, at their best epoch.

    Args:
        network: the encoder.
        aggregator: on its features.
        history: one row an epoch.
        best_epoch: from 0.
    """

    network: Lite0
    aggregator: Aggregator
    history: list[dict[str, Any]]
    best_epoch: int


class CellBags(Dataset[tuple[Tensor, int]]):
    """Samples of cells: item (bag, draw) is ``(n, S, S, 3)`` uint8 and the class.

    Args:
        works: the bags.
        targets: their class indices.
        encoder: for the size of pictures.
        shaping: of the cells.
        cells: at most so many.
        seed: of the draws.
        workers: threads that read.
    """

    def __init__(
        self, works: Sequence[Work], targets: Sequence[int], encoder: Encoder, shaping: Shaping, cells: int, seed: int,
        workers: int,
    ) -> None:  # fmt: skip
        self.pictures = [open_cells(work, shaping) for work in works]
        self.names = [work.bag_id for work in works]
        self.targets, self.encoder, self.cells, self.seed = tuple(targets), encoder, cells, seed
        self.pool = ThreadPoolExecutor(workers)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        bag, draw = key
        pictures = self.pictures[bag]
        order = np.random.default_rng((self.seed, draw, bag)).permutation(len(pictures)).tolist()
        found: list[np.ndarray] = []
        while order and len(found) < self.cells:  # cells that cannot be read are replaced by others
            some, order = order[: self.cells - len(found)], order[self.cells - len(found) :]
            found += [p for p in self.pool.map(lambda row: self._read(pictures, row), some) if p is not None]
        if not found:
            raise ReadError(f"bag {self.names[bag]!r}: none of its cells can be read")
        return torch.from_numpy(np.stack(found)), self.targets[bag]

    def _read(self, pictures: Pictures, row: int) -> np.ndarray | None:
        try:
            return self.encoder.picture(pictures.picture(row))
        except ReadError:
            return None

    def close(self) -> None:
        """Let go of files and threads."""
        self.pool.shutdown()
        for pictures in self.pictures:
            pictures.close()


class Draws(Sampler[tuple[int, int]]):
    """Bags in random order, each with the number of the epoch as its draw; or in order with draw 0."""

    def __init__(self, count: int, seed: int | None) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.seed is None:
            yield from ((bag, 0) for bag in range(self.count))
            return
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count).tolist()
        yield from ((bag, self.epoch) for bag in order)
        self.epoch += 1


def collate(items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, tuple[int, ...], Tensor]:
    """Cells of all bags end to end, the size of each bag, and the classes."""
    return torch.cat([x for x, _ in items]), tuple(len(x) for x, _ in items), torch.tensor([y for _, y in items])


class Together(pl.LightningModule):
    """Encoder and aggregator as one module."""

    def __init__(
        self, network: Lite0, aggregator: Aggregator, info: EncoderInfo, config: FinetuneConfig, classes: Sequence[str]
    ) -> None:
        super().__init__()
        self.network, self.aggregator, self.config, self.classes = network, aggregator, config, list(classes)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(info.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(1, 3, 1, 1), persistent=False)
        self.said: list[tuple[Tensor, Tensor]] = []
        self.losses: list[float] = []
        self.scores: dict[str, Any] = {}

    def train(self, mode: bool = True) -> Together:
        """As `Module.train`, but batch normalisation keeps the statistics it has."""
        super().train(mode)
        for part in self.network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        return self

    def features(self, pixels: Tensor) -> Tensor:
        """Features ``(T, D)`` of cells ``(T, S, S, 3)`` uint8."""
        x = pixels.permute(0, 3, 1, 2).float() / 255
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        if not self.config.freeze:
            return self.network(x)
        with torch.no_grad():
            return self.network(x)

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(1_000_003 * (self.config.seed + 1) + self.current_epoch)
        self.losses.clear()

    def training_step(self, batch: tuple[Tensor, tuple[int, ...], Tensor], _: int) -> Tensor:
        pixels, sizes, labels = batch
        if self.config.flips:
            pixels = turned(pixels)
        output = self.aggregator(PackedBags(self.features(pixels), sizes, labels))
        loss = self.aggregator.loss(output, labels)
        self.losses.append(float(loss.detach()))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.said.clear()

    def validation_step(self, batch: tuple[Tensor, tuple[int, ...], Tensor], _: int) -> None:
        pixels, sizes, labels = batch
        self.said.append((self.aggregator(PackedBags(self.features(pixels), sizes, labels)).logits.float(), labels))

    def on_validation_epoch_end(self) -> None:
        logits = torch.cat([z for z, _ in self.said]).double().cpu().numpy()
        labels = torch.cat([y for _, y in self.said]).cpu().numpy()
        found = evaluate(apply_temperature(expand_binary(logits), 1.0), labels, self.classes)
        self.scores = {"val_loss": found["nll"], "val_macro_f1": found["macro_f1"], "val_auroc": found["auroc"]}
        self.log("val_loss", found["nll"], batch_size=len(labels), logger=False)

    def configure_optimizers(self) -> Any:
        groups = [{"params": list(self.aggregator.parameters()), "lr": self.config.lr}]
        if not self.config.freeze:
            groups.append({"params": list(self.network.parameters()), "lr": self.config.encoder_lr})
        optimizer = torch.optim.AdamW(groups, weight_decay=self.config.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def turned(pixels: Tensor) -> Tensor:
    """Each cell ``(T, S, S, 3)`` mirrored and turned by quarters at random; a cell has no up."""
    turns, mirror = torch.randint(4, (len(pixels),)).tolist(), torch.randint(2, (len(pixels),)).tolist()
    made = [torch.rot90(cell, k, (0, 1)) for cell, k in zip(pixels, turns, strict=True)]
    return torch.stack([cell.flip(1) if flip else cell for cell, flip in zip(made, mirror, strict=True)])


class Best(Callback):
    """Keeps history and the weights of the best epoch."""

    def __init__(self, config: FinetuneConfig, on_epoch: EpochHook | None) -> None:
        self.config, self.on_epoch = config, on_epoch
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.value, self.epoch = float("inf"), -1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Together)
        epoch, scores = trainer.current_epoch, pl_module.scores
        row = {"epoch": epoch, "train_loss": float(np.mean(pl_module.losses)), **scores}
        self.history.append(row)
        if epoch + 1 >= self.config.first and scores["val_loss"] < self.value:
            self.value, self.epoch = scores["val_loss"], epoch
            self.best = {k: v.detach().cpu().clone() for k, v in pl_module.state_dict().items()}
        if self.on_epoch is not None:
            self.on_epoch(epoch + 1, self.config.epochs, row)


def finetune(
    network: Lite0,
    aggregator: Aggregator,
    info: EncoderInfo,
    train: Sequence[Work],
    val: Sequence[Work],
    classes: Sequence[str],
    config: FinetuneConfig,
    *,
    shaping: Shaping,
    resize: str = "bilinear",
    device: str = "cpu",
    on_epoch: EpochHook | None = None,
) -> Tuned:
    """Train `network` and `aggregator`, in place; both come back at the epoch of the lowest validation loss.

    Args:
        network: the encoder, as `lite0.load_trainable` gives it.
        aggregator: a fresh one on its width; its standardisation is fitted on the encoder's features before training.
        info: input size and normalisation.
        train, val: bags of cells with labels.
        classes: in the order of the logits.
        config: the recipe.
        shaping, resize: how cells become the encoder's squares.
        device: where to train.
        on_epoch: told of each epoch.

    Raises:
        ReadError: a bag none of whose cells can be read.
        ConfigError: training diverged.
    """
    reading = Encoder(info, network, "", "cpu", network, resize)
    index = {c: i for i, c in enumerate(classes)}
    parts = [
        CellBags(works, [index[str(w.label)] for w in works], reading, shaping, cells, config.seed, config.workers)
        for works, cells in ((train, config.cells), (val, config.val_cells))
    ]
    try:
        module = Together(network.to(memory_format=torch.channels_last), aggregator, info, config, classes)  # type: ignore[call-overload]
        network.requires_grad_(not config.freeze)
        if aggregator.standardize is not None:
            _standardise(module, parts[0])
        loaders = [
            DataLoader(part, config.batch_size, sampler=Draws(len(part), seed), collate_fn=collate)
            for part, seed in zip(parts, (config.seed, None), strict=True)
        ]
        best = Best(config, on_epoch)
        stopping = LaterStopping("val_loss", config.first, patience=config.patience, check_finite=True)
        with quiet_lightning():
            trainer = pl.Trainer(
                max_epochs=config.epochs, accelerator=device, devices=1, callbacks=[best, stopping], logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                num_sanity_val_steps=0, gradient_clip_val=1.0,
            )  # fmt: skip
            trainer.fit(module, loaders[0], loaders[1])
        if not best.best:
            raise ConfigError(f"training diverged: the validation loss was never a number; lower lr={config.lr}")
        module.load_state_dict(best.best)
        module.eval()
        return Tuned(network.cpu(), aggregator.cpu(), best.history, best.epoch)
    finally:
        for part in parts:
            part.close()


def _standardise(module: Together, train: CellBags) -> None:
    """Mean and sd of the features of a sample of every training bag, by the encoder as it comes."""
    module.eval()
    with torch.no_grad():
        rows = torch.cat([module.features(train[bag, 0][0]) for bag in range(len(train))]).double()
    assert module.aggregator.standardize is not None
    module.aggregator.standardize.set_statistics(rows.mean(0).float(), rows.std(0, correction=0).float())


def logits_of(
    tuned: Tuned,
    works: Sequence[Work],
    info: EncoderInfo,
    *,
    shaping: Shaping,
    resize: str = "bilinear",
    workers: int = 2,
) -> np.ndarray:
    """Logits ``(n, C)`` of bags by all of their cells.

    Raises:
        ReadError: a bag none of whose cells can be read.
    """
    network = tuned.network.eval()
    encoder = Encoder(replace(info, width=None), network, "", "cpu", network, resize)
    said = []
    for work in works:
        pictures = open_cells(work, shaping)
        try:
            features, _, _ = encode_all(pictures, encoder, workers=workers, batch_size=32)
        finally:
            pictures.close()
        with torch.inference_mode():
            said.append(tuned.aggregator.eval()(PackedBags(features, (len(features),))).logits.double())
    return torch.cat(said).numpy()


def checkpoint_of(network: Lite0, source: Path) -> dict[str, Tensor]:
    """The weights for `qgmil extract --weights`: the network's, with the unused class scores of the original."""
    original = torch.load(source, map_location="cpu", weights_only=True)
    tuned = {k: v.detach().cpu().contiguous() for k, v in network.network.state_dict().items()}
    return {name: tuned.get(name, value) for name, value in original.items()}
