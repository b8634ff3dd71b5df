"""`check_bags`: read every bag once and list everything that is wrong, instead of stopping at the first.

Names are imported when first used: the processes that read the files (`pool`) need only a part of this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qgmil.bags.check.doctor import check_bags
    from qgmil.bags.check.pool import Pool
    from qgmil.bags.check.report import CheckReport, Lock

_HOME = {"check_bags": "doctor", "CheckReport": "report", "Lock": "report", "Pool": "pool"}

__all__ = ["CheckReport", "Lock", "Pool", "check_bags"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
