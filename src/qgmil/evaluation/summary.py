"""Many cells (fold x seed) into one line: mean and spread, and pooled out-of-fold predictions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from qgmil.errors import MetricError
from qgmil.evaluation.bootstrap import bootstrap_interval
from qgmil.evaluation.checks import FloatArray, IntArray, check_predictions
from qgmil.evaluation.metrics import evaluate

__all__ = ["FoldPredictions", "bootstrap_interval", "pool", "pool_folds", "summarise"]

NOT_METRICS = {"fold", "seed", "n", "ece_bins", "kappa_weights"}


@dataclass(frozen=True, eq=False)
class FoldPredictions:
    """The test predictions of one fold under one seed."""

    seed: int
    fold: int
    bag_ids: Sequence[str]
    """``(n,)`` names."""
    probabilities: ArrayLike
    """``(n, C)``."""
    labels: ArrayLike
    """``(n,)`` class indices."""


@dataclass(frozen=True, eq=False)
class PooledPredictions:
    """Every bag once, predicted by the model that had not seen it; ordered by bag id."""

    bag_ids: tuple[str, ...]
    probabilities: FloatArray
    labels: IntArray


def summarise(cells: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread over folds and seeds of every number in the cells.

    Args:
        cells: dicts as of `evaluate`, each with ``fold`` and ``seed``. Numbers one level down are taken too, named
            with a dot ("f1_per_class.tumour"). None, NaN and a missing key count as undefined.

    Returns:
        ``n_cells``, ``n_folds``, ``n_seeds``; ``missing``: the [seed, fold] pairs of the grid that have no cell; and
        ``metrics``: {name: {``mean``, ``sd``: over all defined cells; ``sd_over_seeds``: of the per-seed means over
        folds; ``sd_over_folds``: of the per-fold means over seeds; ``n_defined``, ``n_undefined``}}. Every sd has
        ddof = 1 and is None for fewer than two values.

    Raises:
        MetricError: no cells, a cell without fold or seed, or two cells of the same fold and seed.
    """
    table: dict[tuple[Any, Any], dict[str, float | None]] = {}
    for number, cell in enumerate(cells):
        if cell.get("fold") is None or cell.get("seed") is None:
            raise MetricError(f"cell {number} lacks 'fold' or 'seed': it has {sorted(cell)}")
        key = (cell["seed"], cell["fold"])
        if key in table:
            raise MetricError(f"seed {key[0]}, fold {key[1]} is there twice (again as cell {number})")
        table[key] = dict(_scalars(cell))
    if not table:
        raise MetricError("no cells to summarise")
    seeds, folds = sorted({seed for seed, _ in table}), sorted({fold for _, fold in table})
    names = list(dict.fromkeys(name for values in table.values() for name in values))
    return {
        "n_cells": len(table),
        "n_folds": len(folds),
        "n_seeds": len(seeds),
        "missing": [[seed, fold] for seed in seeds for fold in folds if (seed, fold) not in table],
        "metrics": {name: _spread({key: values.get(name) for key, values in table.items()}) for name in names},
    }


def _scalars(cell: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """The numbers and Nones of a cell, one level down too, without counts and settings."""
    for name, value in cell.items():
        if not prefix and name in NOT_METRICS:
            continue
        if isinstance(value, Mapping) and not prefix and name not in ("undefined", "n_per_class"):
            yield from _scalars(value, f"{name}.")
        elif value is None:
            yield prefix + name, None
        elif isinstance(value, int | float | np.number) and not isinstance(value, bool):
            yield prefix + name, float(value) if math.isfinite(value) else None


def _spread(values: Mapping[tuple[Any, Any], float | None]) -> dict[str, Any]:
    defined = {key: value for key, value in values.items() if value is not None}
    by_seed, by_fold = defaultdict(list), defaultdict(list)
    for (seed, fold), value in defined.items():
        by_seed[seed].append(value)
        by_fold[fold].append(value)
    return {
        "mean": _mean(list(defined.values())),
        "sd": _sd(list(defined.values())),
        "sd_over_seeds": _sd([float(np.mean(group)) for group in by_seed.values()]),
        "sd_over_folds": _sd([float(np.mean(group)) for group in by_fold.values()]),
        "n_defined": len(defined),
        "n_undefined": len(values) - len(defined),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _sd(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def pool_folds(
    predictions: Iterable[FoldPredictions], *, expected_ids: Iterable[str] | None = None
) -> dict[int, PooledPredictions]:
    """For each seed the predictions of all folds together, ordered by bag id, so that seeds line up.

    Args:
        predictions: one entry per seed and fold.
        expected_ids: every bag that each seed must predict; None asks only that all seeds predict the same bags.

    Raises:
        MetricError: no predictions; a bag that is in two folds of a seed, is missing under a seed, is not expected, or
            changes its label between seeds (the bag is named); shapes that do not agree.
    """
    by_seed: dict[int, list[FoldPredictions]] = defaultdict(list)
    for part in predictions:
        by_seed[part.seed].append(part)
    if not by_seed:
        raise MetricError("no predictions to pool")
    pooled = {seed: _pool_seed(by_seed[seed]) for seed in sorted(by_seed)}
    if expected_ids is not None:
        expected = set(expected_ids)
        for seed, whole in pooled.items():
            for bag in sorted(expected ^ set(whole.bag_ids)):
                fault = "under no fold" if bag in expected else "but is not an expected bag"
                raise MetricError(f"bag {bag!r} is predicted {fault}, seed {seed}")
    first, *others = pooled
    for seed in others:
        one, other = pooled[first], pooled[seed]
        for bag in sorted(set(one.bag_ids) ^ set(other.bag_ids)):
            lacks, has = (seed, first) if bag in one.bag_ids else (first, seed)
            raise MetricError(f"bag {bag!r} is predicted under seed {has} but under no fold of seed {lacks}")
        for row in np.flatnonzero(one.labels != other.labels)[:1]:
            raise MetricError(f"bag {one.bag_ids[row]!r} has different labels under seeds {first} and {seed}")
    return pooled


def _pool_seed(parts: Sequence[FoldPredictions]) -> PooledPredictions:
    fold_of: dict[str, int] = {}
    checked = []
    for part in parts:
        p, y = check_predictions(part.probabilities, part.labels)
        if len(part.bag_ids) != len(y):
            raise MetricError(
                f"seed {part.seed}, fold {part.fold}: {len(part.bag_ids)} bag ids for {len(y)} predictions"
            )
        for bag in part.bag_ids:
            if bag in fold_of:
                raise MetricError(
                    f"bag {bag!r} is predicted in fold {fold_of[bag]} and again in {part.fold}, seed {part.seed}"
                )
            fold_of[bag] = part.fold
        checked.append((p, y))
    if len({p.shape[1] for p, _ in checked}) > 1:
        raise MetricError(f"seed {parts[0].seed}: the folds have different numbers of classes")
    names = list(fold_of)
    order = sorted(range(len(names)), key=names.__getitem__)
    return PooledPredictions(
        tuple(names[i] for i in order),
        np.concatenate([p for p, _ in checked])[order],
        np.concatenate([y for _, y in checked])[order],
    )


def pool(
    predictions: Iterable[FoldPredictions],
    classes: Sequence[str],
    *,
    expected_ids: Iterable[str] | None = None,
    kappa_weights: Literal["quadratic"] | None = None,
) -> dict[str, Any]:
    """Metrics of pooled out-of-fold predictions, for each seed and over seeds.

    Pooling keeps macro F1 defined where a rare class is absent from single folds. Pooled AUROC and average precision
    compare scores of different folds' models, and fall where those are calibrated differently (Forman and Scholz
    2010); read them beside the per-fold ones of `summarise`.

    Args:
        predictions: one entry per seed and fold.
        classes: the class names.
        expected_ids: every bag that each seed must predict, as for `pool_folds`.
        kappa_weights: as for `evaluate`.

    Returns:
        ``n_bags``, ``n_seeds``; ``per_seed``: the dict of `evaluate` with ``seed``, one per seed; ``metrics``:
        {name: {``mean``, ``sd`` (over seeds, ddof = 1), ``n_defined``, ``n_undefined``}}.

    Raises:
        MetricError: as `pool_folds` and `evaluate`.
    """
    pooled = pool_folds(predictions, expected_ids=expected_ids)
    per_seed = [
        {"seed": seed, **evaluate(p.probabilities, p.labels, classes, kappa_weights=kappa_weights)}
        for seed, p in pooled.items()
    ]
    spread = summarise({**metrics, "fold": 0} for metrics in per_seed)["metrics"]
    keep = ("mean", "sd", "n_defined", "n_undefined")
    return {
        "n_bags": per_seed[0]["n"],
        "n_seeds": len(per_seed),
        "per_seed": per_seed,
        "metrics": {name: {key: values[key] for key in keep} for name, values in spread.items()},
    }
