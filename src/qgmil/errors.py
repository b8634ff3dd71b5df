"""The errors that users can cause. Every message names the culprit and says what to do."""

from __future__ import annotations


class QGMILError(Exception):
    """Base of every error that this package raises on purpose."""


class BagError(QGMILError, ValueError):
    """A bag is empty, has the wrong width, NaN features or inconsistent shapes."""


class ReadError(QGMILError):
    """A file is missing, broken, unsafe or not of the layout it should have."""


class ManifestError(QGMILError, ValueError):
    """The table of bags lacks a column, has blank or duplicate ids, or unknown labels."""


class SplitError(QGMILError, ValueError):
    """A split leaks a patient, has too few patients, or names unknown bags."""


class ConfigError(QGMILError, ValueError):
    """An option is unknown, out of range or inconsistent with another."""


class RunError(QGMILError):
    """A run folder exists already, cannot be written, or is not a run folder."""


class MetricError(QGMILError, ValueError):
    """Predictions, labels or attention weights from which no figure can be computed."""


class ContractError(QGMILError, AssertionError):
    """An aggregator breaks its contract: the message names the check, the model, the input and the two values."""
