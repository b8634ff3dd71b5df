"""Lookahead around rectified Adam, which PyTorch does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LookaheadRAdam(torch.optim.RAdam):
    """k steps of RAdam forward, one step back (Zhang 2019, arXiv 1907.08610, algorithm 1).

    After every k-th step the slow weights go a share of the way to the fast ones, ``s <- s + alpha (w - s)``, and the
    fast ones start anew from there, ``w <- s``. The moments of RAdam are kept, as the paper's experiments do.

    The slow weights are a tensor of each weight's state and the count of steps stands in the groups, so that
    `state_dict` holds all of it and a resumed run goes on with the same bits.

    Args:
        params: weights, or groups of them.
        k: fast steps a slow one.
        alpha: share of the way.
        options: of `torch.optim.RAdam`.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], *, k: int = 5, alpha: float = 0.5, **options: Any
    ) -> None:
        super().__init__(params, **options)
        self.k, self.alpha = k, alpha
        for group in self.param_groups:
            group.setdefault("steps", 0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One fast step, and the slow one where it is due."""
        # The gradients may only come about in the closure, so all weights that have no slow ones yet are remembered.
        start = {p: p.detach().clone() for group in self.param_groups for p in group["params"] if p not in self.state}
        loss = super().step(closure)
        for group in self.param_groups:
            group["steps"] += 1
            for p in group["params"]:
                if p not in self.state:  # it never had a gradient
                    continue
                slow = self.state[p].setdefault("slow", start.get(p))
                if group["steps"] % self.k == 0:
                    with torch.no_grad():
                        p.copy_(slow.lerp_(p, self.alpha))
        return loss
