"""Small models of every registered kind, with weights that make every part matter, and small bags."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import qgmil
from qgmil.models.base import Aggregator
from qgmil.models.registry import model_options
from qgmil.testing.subject import SMALL, features, randomise

__all__ = ["C", "D", "difference", "features", "randomise", "small_model"]

D = 12  # feature width of all bags here
C = 3


def small_model(name: str = "qgmil", *, num_classes: int = C, seed: int = 0, **options: Any) -> Aggregator:
    """In evaluation mode; sizes that the model does not have are left out."""
    known = model_options(name)
    sizes = {option: value for option, value in SMALL.items() if option in known}
    model = qgmil.create_model(name, in_dim=D, num_classes=num_classes, **{**sizes, **options})
    randomise(model, seed)
    return model.eval()


def difference(a: Tensor, b: Tensor) -> float:
    """Max absolute difference of two tensors of one shape."""
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    return float((a.detach().double() - b.detach().double()).abs().max())
