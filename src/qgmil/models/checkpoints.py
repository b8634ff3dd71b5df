"""What reading the baselines' released checkpoints has in common."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from qgmil.errors import ConfigError


def matrix_shape(state: Mapping[str, Tensor], name: str, release: str) -> tuple[int, int]:
    """Rows and columns of a weight that every checkpoint of the release has.

    Raises:
        ConfigError: it is not there, or no matrix.
    """
    if name not in state:
        raise ConfigError(f"not a checkpoint of the {release} release: it lacks {name}")
    if state[name].ndim != 2:
        raise ConfigError(f"not a checkpoint of the {release} release: {name} is {tuple(state[name].shape)}")
    rows, columns = state[name].shape
    return rows, columns


def released_options(
    config: Mapping[str, Any] | None, sizes: Mapping[str, int], options: Collection[str]
) -> dict[str, Any]:
    """The fields of a released configuration that are options here.

    Args:
        config: the configuration; None and missing fields leave the options at their defaults.
        sizes: fields that the weights decide, with the weights' values.
        options: fields that weights do not tell.

    Raises:
        ConfigError: an unknown field, or a size that is not the weights'.
    """
    config = {} if config is None else config
    unknown = [name for name in config if name not in sizes and name not in options]
    if unknown:
        known = ", ".join([*sizes, *options])
        raise ConfigError(f"not fields of the released configuration: {', '.join(unknown)}; they are {known}")
    for name, size in sizes.items():
        if config.get(name, size) != size:
            raise ConfigError(f"the configuration says {name} = {config[name]!r}, but the weights have {size}")
    return {name: config[name] for name in options if name in config}
