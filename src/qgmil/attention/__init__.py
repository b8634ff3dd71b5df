"""Where a model looks: how concentrated its attention is, whether it is faithful, and pictures of it."""

from qgmil.attention.concentration import (
    attention_mass_curve,
    check_attention,
    concentration,
    mass_curves,
    mean_mass_curve,
)

__all__ = ["attention_mass_curve", "check_attention", "concentration", "mass_curves", "mean_mass_curve"]
