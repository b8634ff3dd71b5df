"""Where the truth of instances is known: does a score find those that are sought?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from qgmil.errors import MetricError
from qgmil.evaluation.checks import FloatArray


@dataclass(frozen=True)
class Agreement:
    """A score as a detector of the sought instances of one bag, or of several together.

    Args:
        auroc: chance that a sought instance scores above another one; ties count half.
        average_precision: of the ranking by score.
        enrichment: mass of attention on the sought ones over their share of the bag, 1 = uniform; None for scores that
            are no mass.
        positives: how many are sought.
    """

    auroc: float
    average_precision: float
    enrichment: float | None
    positives: int


def agreement(
    scores: ArrayLike, truth: ArrayLike, *, positives: Collection[int] | None = None, is_mass: bool = True
) -> Agreement | None:
    """Compare the scores ``(N,)`` of one bag with its instance labels ``(N,)``.

    Args:
        positives: labels that are sought; None: all above 0.
        is_mass: scores are weights that sum to 1.

    Returns:
        None where the bag has only sought instances, or none: neither figure is defined then.

    Raises:
        MetricError: lengths that differ, or scores that are not finite.
    """
    s, wanted = _sought(scores, truth, positives)
    return _agreement(s, wanted, float(s[wanted].sum() / wanted.mean()) if is_mass and wanted.any() else None)


def pooled_agreement(
    scores: Sequence[ArrayLike],
    truths: Sequence[ArrayLike],
    *,
    positives: Collection[int] | None = None,
    is_mass: bool = True,
) -> Agreement | None:
    """Compare the scores of several bags with their instance labels, all instances together.

    Here the bags without a sought instance count as well, which `agreement` cannot judge one by one. Weights that sum
    to 1 in each bag are small in large bags; they are compared as multiples of the uniform weight, N a.

    Args:
        scores, truths: ``(N_i,)`` of each bag.
        positives, is_mass: as for `agreement`; the enrichment is the mean N a of the sought instances.

    Returns:
        None where all instances are sought, or none is.

    Raises:
        MetricError: no bags, lists of different lengths, or as `agreement`.
    """
    if not len(scores) or len(scores) != len(truths):
        raise MetricError(f"scores of {len(scores)} bags and instance labels of {len(truths)}: give both for every bag")
    parts = [_sought(s, y, positives) for s, y in zip(scores, truths, strict=True)]
    s = np.concatenate([s * len(s) if is_mass else s for s, _ in parts])
    wanted = np.concatenate([w for _, w in parts])
    return _agreement(s, wanted, float(s[wanted].mean()) if is_mass and wanted.any() else None)


def _sought(
    scores: ArrayLike, truth: ArrayLike, positives: Collection[int] | None
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Scores, and which instances are sought, both ``(N,)``."""
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(truth)
    if s.ndim != 1 or s.shape != y.shape:
        raise MetricError(f"{s.shape} scores for instance labels of shape {y.shape}")
    if not np.isfinite(s).all():
        raise MetricError(f"the score of instance {int(np.flatnonzero(~np.isfinite(s))[0])} is not finite")
    return s, y > 0 if positives is None else np.isin(y, list(positives))


def _agreement(s: FloatArray, wanted: NDArray[np.bool_], enrichment: float | None) -> Agreement | None:
    if wanted.all() or not wanted.any():
        return None
    return Agreement(
        auroc=float(roc_auc_score(wanted, s)),
        average_precision=float(average_precision_score(wanted, s)),
        enrichment=enrichment,
        positives=int(wanted.sum()),
    )
