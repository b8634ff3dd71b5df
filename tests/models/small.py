"""Small models of every registered kind, with weights that make every part matter, and small bags."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import qgmil
from qgmil.models.base import Aggregator
from qgmil.models.registry import model_options

D = 12  # feature width of all bags here
C = 3
SMALL: dict[str, Any] = {"width": 32, "num_heads": 4, "ffn_dim": 48, "attention_dim": 16}


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights of the size of a trained model's: at an init of 0.02 every attention is flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim >= 2:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)
            elif name.endswith("weight"):
                parameter.copy_(1.0 + 0.3 * noise)
            else:
                parameter.copy_(0.5 * noise)
    return model


def small_model(name: str = "qgmil", *, num_classes: int = C, seed: int = 0, **options: Any) -> Aggregator:
    """In evaluation mode; sizes that the model does not have are left out."""
    known = model_options(name)
    sizes = {option: value for option, value in SMALL.items() if option in known}
    model = qgmil.create_model(name, in_dim=D, num_classes=num_classes, **{**sizes, **options})
    randomise(model, seed)
    return model.eval()


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def difference(a: Tensor, b: Tensor) -> float:
    """Max absolute difference of two tensors of one shape."""
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    return float((a.detach().double() - b.detach().double()).abs().max())
