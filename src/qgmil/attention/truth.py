"""Where the truth of instances is known: does a score find those that are sought?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score

from qgmil.errors import MetricError


@dataclass(frozen=True)
class Agreement:
    """A score as a detector of the sought instances of one bag.

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
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(truth)
    if s.ndim != 1 or s.shape != y.shape:
        raise MetricError(f"{s.shape} scores for instance labels of shape {y.shape}")
    if not np.isfinite(s).all():
        raise MetricError(f"the score of instance {int(np.flatnonzero(~np.isfinite(s))[0])} is not finite")
    wanted = y > 0 if positives is None else np.isin(y, list(positives))
    if wanted.all() or not wanted.any():
        return None
    return Agreement(
        auroc=float(roc_auc_score(wanted, s)),
        average_precision=float(average_precision_score(wanted, s)),
        enrichment=float(s[wanted].sum() / wanted.mean()) if is_mass else None,
        positives=int(wanted.sum()),
    )
