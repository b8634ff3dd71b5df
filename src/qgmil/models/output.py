"""What every aggregator returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class BagOutput:
    """Result of an aggregator on B bags; also readable as a mapping (``out["logits"]``).

    Args:
        logits: ``(B, C)``; C = 1 means one logit with binary cross-entropy.
        embedding: ``(B, E)``, the bag vectors before the head.
        attention: weight of each instance, summing to 1 in each bag, when asked for and where the aggregator
            defines it: packed ``(T,)``, or ``(B, N)`` with zeros at padding for dense input; else None.
        auxiliary: further outputs by name (a method's own losses need them).
    """

    logits: Tensor
    embedding: Tensor
    attention: Tensor | None = None
    auxiliary: dict[str, Tensor] = field(default_factory=dict)

    def keys(self) -> Iterator[str]:
        """Names that ``out[name]`` accepts."""
        yield from ("logits", "embedding", "attention", *self.auxiliary)

    def __iter__(self) -> Iterator[str]:
        return self.keys()

    def __contains__(self, name: object) -> bool:
        return name in tuple(self.keys())

    def __getitem__(self, name: str) -> Any:
        if name in ("logits", "embedding", "attention"):
            return getattr(self, name)
        if name in self.auxiliary:
            return self.auxiliary[name]
        raise KeyError(f"no output {name!r}: there are {', '.join(self.keys())}")
