"""How concentrated the attention of one bag is.

a_1..a_N >= 0 sum to 1 over the instances of a bag; a_(1) >= a_(2) >= ... are the same, sorted. Bags of different
sizes are compared only on the normalised figures: top-p % mass, `entropy`, `effective_share`, `ess_share`, `gini`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.checks import SUM_TOLERANCE, FloatArray

TOP_K = (1, 5, 10)
TOP_PERCENT = (1, 5, 10, 20, 50)
SHARES: FloatArray = np.union1d(np.linspace(0, 1, 101), np.geomspace(1e-4, 1, 161))
"""Shares of instances at which mass curves are read by default: every percent, and 40 a decade from 0.01 %."""


def check_attention(a: ArrayLike, bag_id: str | None = None) -> FloatArray:
    """The weights ``(N,)`` of one bag in float64, divided by their sum.

    Raises:
        MetricError: not a vector, empty, NaN or infinite, negative, or a sum further than 1e-3 from 1; the bag (where
            `bag_id` is given) and the first instance at fault are named.
    """
    where = "attention" if bag_id is None else f"attention of bag {bag_id!r}"
    weights = np.asarray(a, dtype=np.float64)
    if weights.ndim != 1 or weights.size == 0:
        raise MetricError(f"{where} must be one weight per instance, shape (N,) with N >= 1, got {weights.shape}")
    for name, wrong in (("not finite", ~np.isfinite(weights)), ("negative", weights < 0)):
        at = np.flatnonzero(wrong)
        if at.size:
            raise MetricError(
                f"{where} is {name} at instance {at[0]}: {weights[at[0]]:g} ({at.size} of {weights.size})"
            )
    total = weights.sum()
    if abs(total - 1) > SUM_TOLERANCE:
        raise MetricError(f"{where} sums to {total:.6g}, not 1; normalise it over the bag's instances first")
    return weights / total


def concentration(a: ArrayLike, bag_id: str | None = None) -> dict[str, float | int]:
    """Every concentration figure of one bag's attention weights ``(N,)``.

    Returns:
        ``n_instances``; ``top_1``, ``top_5``, ``top_10``: sum of the k largest weights; ``top_1pct`` ...
        ``top_50pct``: of the ceil(p N / 100) largest; ``entropy`` = -sum a ln a / ln N, normalised, 1 for N = 1;
        ``effective_number`` = exp(-sum a ln a) and ``effective_share``, that over N; ``ess`` = 1 / sum a^2 and
        ``ess_share``, that over N; ``gini`` = sum_i (N + 1 - 2 i) a_(i) / N, i counted from the largest, 0 for
        uniform and (N - 1) / N for one instance; ``max_over_uniform`` = N a_(1).

    Raises:
        MetricError: as `check_attention`.
    """
    ordered = np.sort(check_attention(a, bag_id))[::-1]
    n = ordered.size
    mass = np.minimum(np.cumsum(ordered), 1.0)
    held = ordered[ordered > 0]
    entropy = max(0.0, -float((held * np.log(held)).sum()))
    ess = 1 / float((ordered**2).sum())
    effective = float(np.clip(np.exp(entropy), 1, n))
    gini = float(((n + 1 - 2 * np.arange(1, n + 1)) * ordered).sum()) / n
    figures: dict[str, float | int] = {"n_instances": n}
    figures |= {f"top_{k}": float(mass[min(k, n) - 1]) for k in TOP_K}
    figures |= {f"top_{p}pct": float(mass[-(-p * n // 100) - 1]) for p in TOP_PERCENT}
    return figures | {
        "entropy": min(1.0, entropy / float(np.log(n))) if n > 1 else 1.0,
        "effective_number": effective,
        "effective_share": effective / n,
        "ess": float(np.clip(ess, 1, n)),
        "ess_share": float(np.clip(ess, 1, n)) / n,
        "gini": max(0.0, gini),
        "max_over_uniform": n * float(ordered[0]),
    }


def attention_mass_curve(a: ArrayLike, grid: ArrayLike = SHARES, bag_id: str | None = None) -> FloatArray:
    """Cumulative mass ``(G,)`` of the most attended instances at given shares ``(G,)`` of the bag.

    The curve goes through (k / N, a_(1) + ... + a_(k)) for k = 0..N and is straight between: concave, from 0 to 1,
    and the diagonal where attention is uniform. It is read the same way for bags of every size.

    Raises:
        MetricError: as `check_attention`.
        ConfigError: a share outside 0..1 or a grid that is no vector.
    """
    at = _check_grid(grid)
    ordered = np.sort(check_attention(a, bag_id))[::-1]
    mass = np.minimum(np.concatenate([[0.0], np.cumsum(ordered)]), 1.0)
    mass[-1] = 1.0
    return np.interp(at, np.arange(mass.size) / ordered.size, mass)


def mass_curves(bags: Iterable[ArrayLike], grid: ArrayLike = SHARES) -> FloatArray:
    """The mass curves of several bags, ``(B, G)``.

    Raises:
        MetricError: no bags, or as `check_attention` (the bag is named by its number).
        ConfigError: as `attention_mass_curve`.
    """
    curves = [attention_mass_curve(a, grid, str(number)) for number, a in enumerate(bags)]
    if not curves:
        raise MetricError("no bags to draw an attention-mass curve of")
    return np.stack(curves)


def mean_mass_curve(bags: Iterable[ArrayLike], grid: ArrayLike = SHARES) -> FloatArray:
    """The mean over bags of their mass curves, ``(G,)``; every bag counts the same. Errors as `mass_curves`."""
    return mass_curves(bags, grid).mean(axis=0)


def _check_grid(grid: ArrayLike) -> FloatArray:
    at = np.asarray(grid, dtype=np.float64)
    if at.ndim != 1 or at.size == 0 or not ((at >= 0) & (at <= 1)).all():
        raise ConfigError("grid must be a list of shares of instances, each between 0 and 1")
    return at
