"""Aggregators by name. One is a file in this folder, or an entry point of another package: it is found by itself."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from torch import Tensor

from qgmil.errors import ConfigError
from qgmil.layers.standardize import Standardize
from qgmil.models.base import Aggregator

A = TypeVar("A", bound=type[Aggregator])

#: Group of entry points by which other packages make their aggregators known: importing the module registers them.
ENTRY_POINTS = "qgmil.models"


@dataclass(frozen=True)
class Entry:
    """A registered name: the class, the preset's options, and one line about it."""

    cls: type[Aggregator]
    preset: Mapping[str, Any]
    summary: str


_ENTRIES: dict[str, Entry] = {}


def register_model(name: str, summary: str, **preset: Any) -> Callable[[A], A]:
    """Class decorator: make an aggregator, or a preset of it, available by name.

    Raises:
        ConfigError: the name is taken by another class.
    """

    def register(cls: A) -> A:
        taken = _ENTRIES.get(name)
        if taken is not None and _full_name(taken.cls) != _full_name(cls):  # the same one again is a reloaded module
            raise ConfigError(f"model name {name!r} of {_full_name(cls)} is already taken by {_full_name(taken.cls)}")
        _ENTRIES[name] = Entry(cls, preset, summary)
        return cls

    return register


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@functools.cache
def _discover() -> None:
    import qgmil.models as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value)):
        try:
            point.load()
        except Exception as error:  # a broken package of somebody else must not take ours down with it
            owner = f" of the package {point.dist.name}" if point.dist is not None else ""
            warnings.warn(
                f"the aggregators of the entry point {point.name} = {point.value!r}{owner} are not available: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )


def model_entries() -> dict[str, Entry]:
    """All registered models by name, sorted."""
    _discover()
    return dict(sorted(_ENTRIES.items()))


def list_models() -> list[str]:
    """Names that `create_model` accepts."""
    return list(model_entries())


def find_entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        ConfigError: unknown name; close ones are suggested.
    """
    entries = model_entries()
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ConfigError(f"unknown model {name!r}: {hint}there are {', '.join(entries)}")
    return entries[name]


def model_options(name: str) -> dict[str, Any]:
    """The options of a model with their defaults (a preset's own where it has them)."""
    entry = find_entry(name)
    parameters = list(inspect.signature(entry.cls.__init__).parameters.values())
    options = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return {**options, **entry.preset}


def create_model(name: str, *, in_dim: int, num_classes: int, standardize: bool = False, **options: Any) -> Aggregator:
    """Build an aggregator.

    Args:
        name: one of `list_models()`.
        in_dim: width of the instance features.
        num_classes: number of logits; 1 means one logit with binary cross-entropy.
        standardize: standardise the features inside the model; statistics are set from training bags.
        options: the model's own options; `model_options(name)` lists them.

    Raises:
        ConfigError: unknown model or option (close ones are suggested), or a value out of range.
    """
    entry = find_entry(name)
    known = model_options(name)
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=2)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise ConfigError(f"model {name!r} has no option {option!r}: {hint}its options are {', '.join(known)}")
    preset = {
        option: value
        for option, value in entry.preset.items()
        if not any(source in options for source in entry.cls.derived_options.get(option, ()))
    }
    model = entry.cls(in_dim, num_classes, **{**preset, **options})
    model.name, model.options = name, dict(options)
    if standardize:
        model.standardize = Standardize(in_dim)
    return model


def load_released(name: str, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Aggregator:
    """An aggregator with the weights of its original release.

    Args:
        name: "qgmil" or a baseline's name.
        state_dict: the weights under the release's names.
        config: the fields of the release's configuration; where it can, None is inferred from the weights.

    Raises:
        ConfigError: unknown name, or weights and configuration that do not fit.
    """
    entry = find_entry(name)
    model = entry.cls.from_released(state_dict, config)
    found = find_entry(model.name).preset
    if any(entry.preset.get(option, value) != value for option, value in found.items()):
        raise ConfigError(f"these weights are of {model.name!r}, not of {name!r}")
    return model
