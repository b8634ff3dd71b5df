"""Device and precision by name."""

from __future__ import annotations

import os
from typing import Any

import torch

from qgmil.errors import ConfigError


def choose_device(name: str) -> str:
    """ "auto" becomes cuda, mps or cpu, the first that is there.

    Raises:
        ConfigError: a device that is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if name not in available:
        raise ConfigError(f"unknown device {name!r}: choose one of auto, {', '.join(available)}")
    if not available[name]:
        raise ConfigError(f"device {name!r} is not available here: choose auto or cpu")
    if name == "cuda":  # deterministic matrix products; must be set before the first one
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return name


def choose_precision(name: str, device: str) -> str:
    """Lightning's name for "auto", "32", "bf16" or "16".

    auto is bfloat16 autocast where the hardware computes in it (GPUs since Ampere, CPUs with AMX or AVX512-BF16;
    benchmarks/aggregator.py) and float32 elsewhere. Weights, norms, softmax and heads stay in float32 either way.
    """
    if name == "auto":
        name = "bf16" if _fast_bfloat16(device) else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[name]


def _fast_bfloat16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return capability == "AVX512" and bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def autocast(precision: str, device: str) -> torch.autocast:
    """The autocast context that prediction uses for one of `choose_precision`'s names."""
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device, dtype=dtype, enabled=precision != "32-true")
