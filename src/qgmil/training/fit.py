"""Fit one aggregator on training bags, choosing the epoch on validation bags."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from qgmil.bags.dataset import BagDataset
from qgmil.errors import BagError, ConfigError
from qgmil.layers.compiled import CUDA_GRAPHS
from qgmil.models.base import Aggregator, ClosedForm
from qgmil.models.registry import create_model
from qgmil.planning.guard import check_memory, explained_memory_errors
from qgmil.training.callbacks import AtomicCheckpointIO, EpochHook, LaterStopping, Recorder
from qgmil.training.config import TrainConfig
from qgmil.training.device import choose_device, choose_precision
from qgmil.training.module import MILModule, balanced_weights
from qgmil.training.sampler import eval_loader, train_loader
from qgmil.training.scaling import fit_standardizer
from qgmil.training.share import count_processes, share_of_memory


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training; the best weights so far are in `model`, if an epoch was finished."""

    def __init__(self, model: Aggregator | None = None, how_to_go_on: str = "training was interrupted") -> None:
        super().__init__(how_to_go_on)
        self.model = model


@dataclass(frozen=True)
class FitResult:
    """A trained model (evaluation mode, CPU) and how it got there.

    Args:
        model: with the best epoch's weights.
        history: one row an epoch.
        best_epoch: counted from 0; -1 for models that are fitted in one go.
        seconds: of training, those before an interruption included as far as they were saved.
    """

    model: Aggregator
    history: list[dict[str, Any]]
    best_epoch: int
    seconds: float


def fit_model(
    train: BagDataset,
    val: BagDataset | None,
    classes: Sequence[str],
    config: TrainConfig,
    *,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    on_epoch: EpochHook | None = None,
) -> FitResult:
    """Train `config.model`.

    Args:
        train: training bags, all labelled.
        val: validation bags, or None to train all epochs and keep the last.
        classes: class names in the order of the logits.
        config: model and recipe.
        seed: initial weights, order, sampling and dropout.
        folder: where history and checkpoints go; None: nowhere.
        resume: continue from the folder's checkpoint if there is one. On the same machine the result is the same,
            bit for bit, as without the interruption.
        on_epoch: told of each finished epoch.

    Raises:
        ConfigError: one class only, a monitor that is undefined on the validation bags, or bags that do not fit into
            memory.
        Interrupted: Ctrl-C.
    """
    started = time.perf_counter()
    check_classes(train.bag_ids, train.labels, None if val is None else val.labels, classes, config)
    torch.manual_seed(seed)
    model = build_model(config, train.width, len(classes))
    if config.memory_check and not isinstance(model, ClosedForm):
        _check_memory(model, train, val, config)
    if model.standardize is not None:
        fit_standardizer(model.standardize, train, seed=seed)
    weights = None
    if config.class_weights == "balanced":
        weights = balanced_weights([classes.index(str(label)) for label in train.labels], len(classes))
    if isinstance(model, ClosedForm):
        every = (train[i] for i in range(len(train)))
        model.fit_closed_form(every, classes, class_weights=weights, seed=seed)
        return FitResult(model.eval(), [], -1, time.perf_counter() - started)
    recorder = Recorder(
        folder, config.monitor if val is not None else None, config.min_epochs, config.checkpoint_seconds, on_epoch
    )
    steps = config.epochs * -(-len(train) // config.batch_size)
    module = MILModule(model, classes, config, seed=seed, total_steps=steps, class_weights=weights)
    processes = count_processes(config, choose_device(config.device))
    if processes == 1:
        run_training(module, recorder, train, val, resume)
    else:
        from qgmil.training.parallel import train_in_processes  # it calls run_training in each

        train_in_processes(module, recorder, train, val, resume, processes)
    if not recorder.best:
        raise ConfigError(
            f"training diverged: {config.monitor} was never a number; lower the learning rate (lr={config.lr})"
        )
    model.load_state_dict(recorder.best)
    seconds = recorder.seconds_before + time.perf_counter() - started
    return FitResult(model.cpu().eval(), recorder.history, recorder.best_epoch, seconds)


def build_model(config: TrainConfig, in_dim: int, num_classes: int) -> Aggregator:
    """The untrained model of a configuration.

    Raises:
        ConfigError: an unknown model or option.
    """
    standardize = config.scaling == "standard"
    model = create_model(
        config.model, in_dim=in_dim, num_classes=num_classes, standardize=standardize, **config.options
    )
    return prepare_model(model, config)


def prepare_model(model: Aggregator, config: TrainConfig) -> Aggregator:
    """Set how the model computes, which is no part of what it is.

    Raises:
        ConfigError: compilation of a model that has nothing to compile, or with CUDA graphs where there is no CUDA.
    """
    model.checkpointing = config.checkpointing
    if config.compile == CUDA_GRAPHS and choose_device(config.device) != "cuda":
        raise ConfigError(
            f"--compile {CUDA_GRAPHS} records CUDA graphs, and this trains on {choose_device(config.device)}: "
            "use --compile default, or leave it out (on CPUs it gains nothing)"
        )
    if config.compile != "no":
        model.compile_parts(config.compile)
    return model


def _check_memory(model: Aggregator, train: BagDataset, val: BagDataset | None, config: TrainConfig) -> None:
    device = choose_device(config.device)
    check_memory(
        model,
        train,
        val,
        batch_size=share_of_memory(config, device),
        sample=config.sample,
        eval_sample=config.eval_sample,
        precision=choose_precision(config.precision, device),
        device=device,
    )


def run_training(
    module: MILModule, recorder: Recorder, train: BagDataset, val: BagDataset | None, resume: bool
) -> None:
    """Train in this process: alone, or its share.

    Raises:
        QGMILError: bags that cannot be read, memory that ran out.
        Interrupted: Ctrl-C.
    """
    config, classes = module.config, module.classes
    device = choose_device(config.device)
    loading = {"batch_size": config.batch_size, "workers": config.workers, "pin_memory": device == "cuda"}
    batches = train_loader(train, classes, seed=module.seed, sample=config.sample, share=module.share, **loading)
    loading["batch_size"] = math.ceil(config.batch_size / module.share.world)  # validation takes no more memory
    val_batches = None if val is None else eval_loader(val, classes, sample=config.eval_sample, **loading)
    checkpoint = recorder.checkpoint if resume and recorder.checkpoint and recorder.checkpoint.exists() else None
    deterministic = torch.are_deterministic_algorithms_enabled()  # before the trainer switches it on for CUDA
    settings: Any = torch.utils.deterministic
    filling = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False  # comes with that, and is a kernel for every new tensor
    try:
        trainer = _trainer(recorder, val is not None, device, config, module.share.world)
        with quiet_lightning(), explained_memory_errors(lambda: module.batch, training=True):
            trainer.fit(module, batches, val_batches, ckpt_path=None if checkpoint is None else str(checkpoint))
    except (SystemExit, KeyboardInterrupt):  # Lightning turns the first Ctrl-C into an orderly exit
        if recorder.best:
            module.model.load_state_dict(recorder.best)
        raise Interrupted(module.model.cpu().eval() if recorder.best else None) from None
    finally:
        torch.use_deterministic_algorithms(deterministic)
        settings.fill_uninitialized_memory = filling


def _trainer(recorder: Recorder, validates: bool, device: str, config: TrainConfig, processes: int) -> pl.Trainer:
    callbacks: list[pl.Callback] = [recorder]
    if validates:
        mode = "min" if config.monitor == "val_loss" else "max"
        stopping = LaterStopping(config.monitor, config.min_epochs, patience=config.patience, mode=mode)
        callbacks.insert(0, stopping)
    logger: Any = False
    if recorder.folder is not None and find_spec("tensorboard") is not None:
        from lightning.pytorch.loggers import TensorBoardLogger

        logger = TensorBoardLogger(recorder.folder, name="tensorboard", version="")
    strategy: Any = "auto"
    if processes > 1:
        # A weight that no bag of a step uses gets no gradient, as in one process. Buffers are the same everywhere.
        strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    with quiet_lightning():
        return pl.Trainer(
            max_epochs=config.epochs,
            accelerator=device,
            devices=processes,
            strategy=strategy,
            precision=choose_precision(config.precision, device),  # type: ignore[arg-type]
            gradient_clip_val=config.clip or None,
            callbacks=callbacks,
            logger=logger,
            # Lightning would look for a scheduler's environment and resume from another cell's checkpoint.
            plugins=[AtomicCheckpointIO(), LightningEnvironment()],
            default_root_dir=recorder.folder,
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1_000_000,
            use_distributed_sampler=False,
            deterministic=True if device == "cuda" else None,
        )


def check_classes(
    bag_ids: Sequence[str],
    labels: Sequence[str | None],
    val_labels: Sequence[str | None] | None,
    classes: Sequence[str],
    config: TrainConfig,
) -> None:
    """Refuse labels that cannot be trained on: of the training bags, and of the validation bags if there are any.

    Raises:
        BagError: a label that is none of the classes.
        ConfigError: one class only, or a monitor that the validation bags do not define.
    """
    for bag, label in zip(bag_ids, labels, strict=True):
        if label not in classes:
            raise BagError(f"bag {bag!r} has label {label!r}, which is none of the classes {', '.join(classes)}")
    present = sorted(set(map(str, labels)))
    if len(classes) < 2 or len(present) < 2:
        raise ConfigError(
            f"the training bags have one class only ({', '.join(present)}): "
            "a classifier needs bags of at least two classes"
        )
    if val_labels is not None and config.monitor != "val_loss":
        missing = sorted(set(classes) - set(map(str, val_labels)))
        if missing:
            raise ConfigError(
                f"{config.monitor} is undefined on the validation bags: none is {' or '.join(map(repr, missing))}; "
                "use --monitor val_loss or a larger --val"
            )


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's notices about devices, loaders and loggers."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
