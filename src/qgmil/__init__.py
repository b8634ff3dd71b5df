"""QG-MIL: gated transformer aggregation for multiple instance learning.

The public door. Names are imported when first used, so that ``import qgmil`` is quick.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

logging.getLogger("qgmil").addHandler(logging.NullHandler())  # programs that use the library choose what is shown

if TYPE_CHECKING:
    from qgmil.bags.bag import Bag, PackedBags
    from qgmil.bags.dataset import BagDataset, open_bags
    from qgmil.errors import QGMILError
    from qgmil.models.base import Aggregator
    from qgmil.models.output import BagOutput
    from qgmil.models.persistence import load_model, save_model
    from qgmil.models.registry import create_model, list_models, load_released, register_model
    from qgmil.training.classifier import MILClassifier

_HOME = {
    "Bag": "qgmil.bags.bag",
    "PackedBags": "qgmil.bags.bag",
    "BagDataset": "qgmil.bags.dataset",
    "open_bags": "qgmil.bags.dataset",
    "QGMILError": "qgmil.errors",
    "Aggregator": "qgmil.models.base",
    "BagOutput": "qgmil.models.output",
    "load_model": "qgmil.models.persistence",
    "save_model": "qgmil.models.persistence",
    "create_model": "qgmil.models.registry",
    "list_models": "qgmil.models.registry",
    "load_released": "qgmil.models.registry",
    "register_model": "qgmil.models.registry",
    "MILClassifier": "qgmil.training.classifier",
}

__all__ = [
    "Aggregator", "Bag", "BagDataset", "BagOutput", "MILClassifier", "PackedBags", "QGMILError", "create_model",
    "list_models", "load_model", "load_released", "open_bags", "register_model", "save_model",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'qgmil' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])
