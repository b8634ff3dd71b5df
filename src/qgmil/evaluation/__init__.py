"""How good, how sure and how stable: metrics, calibration, pooling over folds and seeds, intervals.

Pure functions over numpy arrays. `qgmil.evaluation.figures` draws them and is imported only where used.
"""

from qgmil.evaluation.bootstrap import Interval, bootstrap_interval
from qgmil.evaluation.calibration import (
    apply_temperature,
    calibration_problem,
    expand_binary,
    fit_temperature,
    softmax,
)
from qgmil.evaluation.metrics import ReliabilityCurve, evaluate, reliability_curve
from qgmil.evaluation.summary import FoldPredictions, pool, pool_folds, summarise

__all__ = [
    "FoldPredictions",
    "Interval",
    "ReliabilityCurve",
    "apply_temperature",
    "bootstrap_interval",
    "calibration_problem",
    "evaluate",
    "expand_binary",
    "fit_temperature",
    "pool",
    "pool_folds",
    "reliability_curve",
    "softmax",
    "summarise",
]
