"""Patho-Bench: a tab-separated table slide_id, case_id, the task's column, fold_0 ...; features are TRIDENT's.

The table says everything by its columns, so that a folder need not be of this format for it to be read.
"""

from __future__ import annotations

from qgmil.bags.layouts.base import Columns
from qgmil.bags.layouts.plain import recognises as recognises
from qgmil.bags.layouts.trident import find as find

NAME = "pathobench"
SUMMARY = "Patho-Bench: TRIDENT's features and a table with folds"
COLUMNS = Columns(id=("slide_id",), patient=("case_id",))
