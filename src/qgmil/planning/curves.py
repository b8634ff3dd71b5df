"""Least squares in 1, N and N^2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

#: Share of the largest value that the square must explain to be believed beyond what was seen: loops over pieces make
#: small steps in what is linear otherwise.
LEAST_SQUARE = 0.05


@dataclass(frozen=True)
class Curve:
    """``c0 + c1 N + c2 N^2``, never falling where N grows."""

    coefficients: tuple[float, float, float]

    @classmethod
    def fit(cls, at: Sequence[float], values: Sequence[float]) -> Self:
        """Through at least one point; as many terms as there are points, and the square only where it matters."""
        x, y = np.asarray(at, dtype=float), np.asarray(values, dtype=float)
        top = x.max()
        for terms in range(min(3, len(set(at))), 0, -1):
            found = np.linalg.lstsq(np.vander(x / top, terms, increasing=True), y, rcond=None)[0]
            c = np.zeros(3)
            c[:terms] = found
            if terms == 3 and c[2] < LEAST_SQUARE * abs(y).max():
                continue
            if terms == 2 and c[1] < 0:
                continue
            break
        return cls((float(c[0]), float(c[1] / top), float(c[2] / top**2)))

    def __call__(self, n: float) -> float:
        """The value at N."""
        c = self.coefficients
        return c[0] + c[1] * n + c[2] * n * n
