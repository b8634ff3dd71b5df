"""Feature standardisation inside the model, so that a saved model takes raw features."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """``(x - mean) / std`` of each feature, with statistics of the training instances.

    A feature that is constant in training is centred only.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("std", torch.ones(in_dim))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store mean and standard deviation ``(in_dim,)``."""
        self.mean.copy_(mean)
        # A spread this small against the feature's size is rounding of a constant (float16 features).
        constant = std <= 1e-6 * (1.0 + mean.abs())
        self.std.copy_(torch.where(constant, torch.ones_like(std), std))

    def forward(self, x: Tensor) -> Tensor:
        """``(T, in_dim) -> (T, in_dim)``, computed in at least float32."""
        return (x.to(torch.promote_types(x.dtype, self.mean.dtype)) - self.mean) / self.std
