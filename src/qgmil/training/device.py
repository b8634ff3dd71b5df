"""Device and precision by name. They are chosen in `qgmil.planning.device`, which planning needs as well."""

from __future__ import annotations

from qgmil.planning.device import autocast, choose_device, choose_precision

__all__ = ["autocast", "choose_device", "choose_precision"]
