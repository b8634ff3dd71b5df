"""A whole run: bags, splits, every cell, and the summary over cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.bags.made import carry_settings
from qgmil.bags.manifest import BagRecord
from qgmil.bags.readers import listing
from qgmil.bags.split_files import MatchedSplits, from_files
from qgmil.bags.splits import Split, from_column, holdout, kfold
from qgmil.errors import ConfigError, MetricError, RunError
from qgmil.evaluation.bootstrap import Interval, bootstrap_interval
from qgmil.evaluation.summary import FoldPredictions, pool, pool_folds, summarise
from qgmil.files import read_csv, write_csv, write_json
from qgmil.models.base import ClosedForm
from qgmil.training.cell import Cell, run_cell, split_rows
from qgmil.training.config import TrainConfig
from qgmil.training.device import choose_device
from qgmil.training.fit import Interrupted, build_model, check_classes
from qgmil.training.rows import INTERVALS
from qgmil.training.runfolder import (
    METRICS,
    PREDICTIONS,
    SKIPPED,
    SPLIT,
    cell_folders,
    check_same_manifest,
    create_run,
    drop_checkpoints,
    is_finished,
    read_metrics,
    read_predictions,
    read_run,
)
from qgmil.training.share import count_processes

IN_MEMORY_BYTES = 2 * 1024**3


class Progress(Protocol):
    """Told how a run goes on; the command line draws it."""

    def start(self, cells: int, done: int) -> None:
        """The run has that many cells, of which some are already done."""

    def epoch(self, cell: str, done: int, most: int, scores: dict[str, float | None]) -> None:
        """A cell finished an epoch."""

    def cell(self, metrics: dict[str, Any]) -> None:
        """A cell is finished."""


class Silent:
    """Progress that says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_: object) -> None: ...

    def start(self, cells: int, done: int) -> None: ...

    def epoch(self, cell: str, done: int, most: int, scores: dict[str, float | None]) -> None: ...

    def cell(self, metrics: dict[str, Any]) -> None: ...


def train_run(manifest: str | Path, output: str | Path, config: TrainConfig, progress: Progress | None = None) -> Path:
    """Train on a manifest into a new run folder.

    Args:
        manifest: table of bags, or long table of instances.
        output: a folder that does not exist yet.
        config: everything else.
        progress: told how it goes.

    Returns:
        The run folder.

    Raises:
        QGMILError: bags, splits or options that cannot be trained on; the run folder is made only after they are
            checked.
        Interrupted: Ctrl-C; continue with `resume_run`.
    """
    manifest, output = Path(manifest), Path(output)
    config = config.model_copy(update={"split_file": tuple(p.resolve() for p in config.split_file)})
    bags, cells = _plan(manifest, output, config)
    create_run(output, config, manifest)
    carry_settings(bags.items, output)
    if bags.skipped:
        write_csv(output / SKIPPED, [{"bag_id": bag, "reason": reason} for bag, reason in bags.skipped])
    for cell in cells:
        cell.folder.mkdir(parents=True, exist_ok=True)
        write_csv(cell.folder / SPLIT, split_rows(cell, bags))
    return _run_cells(output, bags, cells, config, progress or Silent(), resume=False)


def resume_run(folder: str | Path, progress: Progress | None = None) -> Path:
    """Continue an interrupted run: finished cells stay, an unfinished one continues at its last checkpoint.

    Raises:
        RunError: not a run folder; its manifest is gone or has changed; or the bags behind it or its split files
            have, so that the splits would not be those that the run began with.
    """
    folder = Path(folder)
    config, manifest = read_run(folder)
    check_same_manifest(folder, manifest)
    bags, cells = _plan(manifest, folder, config)
    _check_same_cells(folder, cells)
    for cell in cells:
        _check_same_split(cell, bags)
    return _run_cells(folder, bags, cells, config, progress or Silent(), resume=True)


def _check_same_cells(folder: Path, cells: Sequence[Cell]) -> None:
    """A split file that has come or gone since would add models to the run, or forget those it has."""
    before, now = {p.name for p in cell_folders(folder)}, {c.folder.name for c in cells}
    if before != now:
        raise RunError(
            f"{folder}: began with the models {listing(sorted(before))} and would now have {listing(sorted(now))}: "
            "its split files have changed since; restore them, or start a new run"
        )


def _check_same_split(cell: Cell, bags: BagDataset) -> None:
    """A file that has come or gone since (with `skip`) would move bags from test to training."""
    path = cell.folder / SPLIT
    if not path.is_file():
        raise RunError(f"{cell.folder} has no {SPLIT}: this run cannot be resumed, start a new one")
    before = {r["bag_id"]: r["part"] for r in read_csv(path)}
    now = {str(r["bag_id"]): str(r["part"]) for r in split_rows(cell, bags)}
    changed = sorted(b for b in before.keys() | now.keys() if before.get(b) != now.get(b))
    if changed:
        bag = next((b for b in changed if (b in before) != (b in now)), changed[0])
        raise RunError(
            f"{cell.folder}: bag {bag!r} was in part {before.get(bag, 'none')} when the run began and would now be in "
            f"{now.get(bag, 'none')} ({len(changed)} bags differ): its files or split files have changed since; "
            "start a new run"
        )


def open_training_bags(manifest: Path, config: TrainConfig) -> BagDataset:
    """The labelled bags of a manifest, kept in memory where the configuration says so."""
    bags = open_bags(manifest, **config.opening(), skip=config.skip)
    keep = config.in_memory == "yes" or (config.in_memory == "auto" and bags.bytes_on_disk() <= IN_MEMORY_BYTES)
    return bags.in_memory() if keep else bags


def make_splits(bags: BagDataset, config: TrainConfig, seed: int) -> list[Split]:
    """The splits of one seed, by patient, from the manifest's column, from split files, or drawn."""
    known = (bags.bag_ids, bags.labels, bags.groups)
    if config.split_file:
        return list(_from_files(bags, config, seed).splits)
    if config.split_column:
        records = [item for item in bags.items if isinstance(item, BagRecord)]
        if len(records) < len(bags):
            raise ConfigError("split_column needs a manifest; a long table of instances has no columns for splits")
        return list(from_column(records, config.split_column, val=config.val, seed=seed))
    if config.folds:
        return list(kfold(*known, k=config.folds, val=config.val, seed=seed))
    return [holdout(*known, val=config.val, test=config.test, seed=seed)]


def _from_files(bags: BagDataset, config: TrainConfig, seed: int) -> MatchedSplits:
    return from_files(
        config.split_file,
        bags.items,
        val=config.val,
        seed=seed,
        missing=[bag_id for bag_id, _ in bags.skipped],
        skip_unknown="missing" in config.skip,
    )


def _without_unused(bags: BagDataset, config: TrainConfig) -> BagDataset:
    """The bags that the split files use; the others are noted like those that were skipped."""
    matched = _from_files(bags, config, config.seed)
    unused = set(matched.unused)
    kept = bags.subset([i for i in bags.bag_ids if i not in unused])
    kept.skipped = (*bags.skipped, *matched.left_out)
    return kept


def _plan(manifest: Path, output: Path, config: TrainConfig) -> tuple[BagDataset, list[Cell]]:
    bags = open_training_bags(manifest, config)
    if config.split_file:
        bags = _without_unused(bags, config)
    if len(bags.classes) < 2:
        raise ConfigError(f"{manifest}: one class only ({', '.join(bags.classes)}): a classifier needs at least two")
    cells = []
    for seed in range(config.seed, config.seed + config.seeds):
        splits = make_splits(bags, config, seed if config.resplit else config.seed)
        for fold, split in enumerate(splits):
            cells.append(Cell(split, fold, seed, output / "cells" / f"fold{fold}_seed{seed}"))
    if len(cells) == 1:
        cells = [Cell(cells[0].split, 0, config.seed, output)]
    _check_trainable(bags, cells, config)
    return bags, cells


def _check_trainable(bags: BagDataset, cells: Sequence[Cell], config: TrainConfig) -> None:
    """What would stop the run later stops it before there is a folder: device, model, options, classes, monitor."""
    device = choose_device(config.device)
    if not isinstance(build_model(config, bags.width, len(bags.classes)), ClosedForm):
        count_processes(config, device)
    label = dict(zip(bags.bag_ids, bags.labels, strict=True))
    for cell in cells:
        train, val = ([label[b] for b in part] for part in (cell.split.train, cell.split.val))
        check_classes(cell.split.train, train, val, bags.classes, config)


def _run_cells(
    folder: Path, bags: BagDataset, cells: list[Cell], config: TrainConfig, progress: Progress, resume: bool
) -> Path:
    done = [c for c in cells if resume and is_finished(c.folder)]
    progress.start(len(cells), len(done))
    for cell in cells:
        if cell in done:
            drop_checkpoints(cell.folder)
            continue

        def on_epoch(n: int, most: int, scores: dict[str, float | None], cell: Cell = cell) -> None:
            progress.epoch(cell.folder.name, n, most, scores)

        try:
            metrics = run_cell(cell, bags, bags.classes, config, resume=resume, on_epoch=on_epoch)
        except Interrupted as stop:
            raise Interrupted(stop.model, f"interrupted; continue with: qgmil train --resume {folder}") from None
        progress.cell(metrics)
    if len(cells) > 1:
        _summarise(folder, cells)
    return folder


def _summarise(folder: Path, cells: list[Cell]) -> None:
    found = [read_metrics(c.folder) for c in cells]
    tests = [[r for r in read_predictions(c.folder) if r["part"] == "test"] for c in cells]
    write_csv(folder / PREDICTIONS, [r for rows in tests for r in rows])
    grid = {"fold", "seed"}
    place = [{k: m[k] for k in grid} for m in found]
    attention = [
        {**p, **{k: v for k, v in m["attention"].items() if k != "curve"}}
        for p, m in zip(place, found, strict=True)
        if m["attention"] is not None
    ]
    result = {
        "model": found[0]["model"],
        "classes": found[0]["classes"],
        "cells": [c.folder.name for c in cells],
        "parameters": found[0]["parameters"],
        "seconds": round(sum(m["seconds"] for m in found), 1),
        "summary": summarise({**m["test"], **p} for m, p in zip(found, place, strict=True)),
        "summary_calibrated": summarise({**m["test_calibrated"], **p} for m, p in zip(found, place, strict=True)),
        "attention": summarise(attention) if attention else None,
        "attention_curve": _mean_curve(found),
        **_pooled(tests, found[0]["classes"]),
    }
    write_json(folder / METRICS, result)


def _mean_curve(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    curves = [m["attention"]["curve"] for m in found if m["attention"] is not None]
    if not curves:
        return None
    return {"share": curves[0]["share"], "mass": np.mean([c["mass"] for c in curves], axis=0).tolist()}


def _pooled(tests: list[list[dict[str, str]]], classes: Sequence[str]) -> dict[str, Any]:
    """Metrics of the pooled out-of-fold predictions, plain and calibrated, with bootstrap intervals over patients."""
    result: dict[str, Any] = {}
    for name, column in (("pooled", "probability"), ("pooled_calibrated", "calibrated")):
        parts = [_fold_predictions(t, classes, column) for t in tests]
        try:
            result[name] = pool(parts, classes)
            seeds = pool_folds(parts)
        except MetricError as error:  # hold-outs drawn anew, or folds that overlap: nothing to pool
            return {"pooled": None, "pooled_calibrated": None, "intervals": None, "not_pooled": str(error)}
        patients = {r["bag_id"]: r["patient_id"] for rows in tests for r in rows}
        whole = next(iter(seeds.values()))
        groups = [patients[b] for b in whole.bag_ids]
        if len(set(groups)) > 1:
            found = [bootstrap_interval(p.probabilities, p.labels, groups, classes, INTERVALS) for p in seeds.values()]
            result[name.replace("pooled", "intervals")] = {k: _typical([f[k] for f in found]) for k in INTERVALS}
    return result


def _typical(intervals: Sequence[Interval]) -> dict[str, float | int | None]:
    """The interval of a typical seed: the mean of the seeds' limits."""
    lows, highs = [i.low for i in intervals if i.low is not None], [i.high for i in intervals if i.high is not None]
    return {
        "low": float(np.mean(lows)) if lows else None,
        "high": float(np.mean(highs)) if highs else None,
        "n_defined": min(i.n_defined for i in intervals),
    }


def _fold_predictions(rows: list[dict[str, str]], classes: Sequence[str], column: str) -> FoldPredictions:
    index = {c: i for i, c in enumerate(classes)}
    return FoldPredictions(
        seed=int(rows[0]["seed"]),
        fold=int(rows[0]["fold"]),
        bag_ids=[r["bag_id"] for r in rows],
        probabilities=np.array([[float(r[f"{column}_{c}"]) for c in classes] for r in rows]),
        labels=[index[r["label"]] for r in rows],
    )
