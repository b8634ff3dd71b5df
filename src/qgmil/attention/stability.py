"""Does attention stay where it is when instances go missing at random, and from seed to seed?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from qgmil.attention.faithfulness import generator, predict_subsets
from qgmil.bags.bag import Bag
from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.checks import FloatArray, check_count
from qgmil.models.base import Aggregator

FRACTIONS = (0.1, 0.5)
Weigh = Callable[[Bag], NDArray[np.float64]]


@dataclass(frozen=True)
class Removal:
    """Agreement of a bag with itself, some of its instances removed at random; means over repeats.

    Args:
        fraction: of the instances that were removed.
        same_class: share of repeats in which the predicted class stays.
        probability_tv: total-variation distance of the probabilities.
        attention_tv: of the new weights from the old ones of the instances that stay, divided by their sum.
        attention_rank: Spearman correlation of the new and the old weights of the instances that stay, over the repeats
            in which it is defined; None where it never is (one instance stays, or its weights are all equal).
    """

    fraction: float
    same_class: float
    probability_tv: float
    attention_tv: float
    attention_rank: float | None = None


def total_variation(a: ArrayLike, b: ArrayLike) -> float:
    """``sum_i |a_i - b_i| / 2`` of two distributions over the same things: 0 if they are the same, 1 if disjoint.

    Raises:
        MetricError: not two vectors of one length.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise MetricError(f"total variation is of two vectors of one length, got shapes {x.shape} and {y.shape}")
    return float(np.abs(x - y).sum() / 2)


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float | None:
    """Spearman's correlation, ties at their average rank; None where one side is constant or has one value.

    Raises:
        MetricError: not two vectors of one length.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise MetricError(f"a rank correlation is of two vectors of one length, got shapes {x.shape} and {y.shape}")
    if x.size < 2 or (x == x[0]).all() or (y == y[0]).all():
        return None
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def removal_agreement(
    models: Sequence[Aggregator],
    bag: Bag,
    weigh: Weigh,
    *,
    fractions: Sequence[float] = FRACTIONS,
    repeats: int = 5,
    seed: int = 0,
    device: str = "cpu",
) -> list[Removal]:
    """Predict and weigh a bag again without a random part of its instances.

    Args:
        models: whose mean prediction is compared.
        weigh: weights ``(N,)`` of a bag, not negative, summing to 1.
        fractions: of the instances to remove, each in 0 < fraction < 1; at least one instance goes and one stays.
        repeats: random removals for each.
        seed: they depend on (seed, bag id) alone.

    Raises:
        ConfigError: fractions outside 0 to 1, repeats below 1, or a bag of one instance.
    """
    n = len(bag)
    check_count(repeats, "repeats")
    if n < 2:
        raise ConfigError(f"bag {bag.bag_id!r} has one instance: nothing can be removed from it")
    if not fractions or not all(0 < f < 1 for f in fractions):
        raise ConfigError(f"fractions to remove must lie between 0 and 1, got {list(fractions)}")
    rng = generator("removal", seed, bag.bag_id)
    kept = [np.sort(rng.permutation(n)[min(max(round(f * n), 1), n - 1) :]) for f in fractions for _ in range(repeats)]
    said = predict_subsets(models, bag, [np.arange(n), *kept], device=device)
    whole = weigh(bag)
    again = [weigh(bag.take(torch.from_numpy(rows))) for rows in kept]
    distances = [_kept_distance(whole, new, rows) for new, rows in zip(again, kept, strict=True)]
    ranks = [rank_correlation(whole[rows], new) for new, rows in zip(again, kept, strict=True)]
    found = []
    for number, fraction in enumerate(fractions):
        at = slice(number * repeats, (number + 1) * repeats)
        after = said[1:][at]
        defined = [r for r in ranks[at] if r is not None]
        found.append(
            Removal(
                fraction=fraction,
                same_class=float(np.mean(after.argmax(axis=1) == said[0].argmax())),
                probability_tv=float(np.mean([total_variation(said[0], p) for p in after])),
                attention_tv=float(np.mean(distances[at])),
                attention_rank=float(np.mean(defined)) if defined else None,
            )
        )
    return found


def seed_distance(probabilities: ArrayLike, attention: Sequence[ArrayLike] | None = None) -> tuple[float, float | None]:
    """How far models that differ in their seed are apart on one bag: means over all pairs of models.

    Args:
        probabilities: ``(S, C)``, one row a model.
        attention: S weights ``(N,)`` of the bag's instances, or None.

    Returns:
        Total-variation distance of the probabilities, and of the attention (None without).

    Raises:
        MetricError: fewer than two models.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or len(p) < 2:
        raise MetricError(f"a distance between seeds needs at least two models, got probabilities of shape {p.shape}")
    pairs = list(combinations(range(len(p)), 2))
    between = float(np.mean([total_variation(p[i], p[j]) for i, j in pairs]))
    if attention is None:
        return between, None
    return between, float(np.mean([total_variation(attention[i], attention[j]) for i, j in pairs]))


def _kept_distance(whole: FloatArray, new: FloatArray, rows: NDArray[np.int64]) -> float:
    left = whole[rows].sum()
    # all the weight was on what is gone: whatever the rest now gets, it did not have before
    return total_variation(whole[rows] / left, new) if left > 0 else 1.0
