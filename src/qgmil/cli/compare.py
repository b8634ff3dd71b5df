"""``qgmil compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def compare(runs: Annotated[list[Path], Parameter(negative=())], /) -> None:
    """Put finished runs side by side: macro F1, AUROC, calibration, attention, size, time.

    Parameters
    ----------
    runs
        Run folders. Compare only runs on the same manifest and splits.
    """
    from qgmil.cli.output import console, say
    from qgmil.report.data import same_bags
    from qgmil.report.tables import comparison_table

    console.print(comparison_table(runs))
    if not same_bags(runs):
        say("these runs were trained or tested on different bags or splits: their figures do not compare")
