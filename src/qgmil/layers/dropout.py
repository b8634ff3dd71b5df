"""Dropout with cheap random numbers on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 2**16  # of a draw: one 16-bit number an entry


class Dropout(nn.Dropout):
    """As `torch.nn.Dropout`: zero with probability p, scale the rest by ``1 / (1 - p)``.

    PyTorch draws one random number an entry, one after the other, on CPUs: for small bags that is a tenth of a training
    step. Here one draw of 64 bits decides four entries, so that p is met to 1 part in 65,536.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape and dtype."""
        if not self.training or self.p == 0.0 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        with torch.no_grad():
            bits = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
            draws = bits.view(torch.int16)[: input.numel()].view(input.shape)
            # Written as numbers straight away: truth values, converted afterwards, cost four times as much.
            least = round(self.p * LEVELS) - LEVELS // 2
            keep = torch.ge(draws, least, out=torch.empty_like(draws, dtype=input.dtype))
            keep.mul_(1.0 / (1.0 - self.p))
        return input * keep
