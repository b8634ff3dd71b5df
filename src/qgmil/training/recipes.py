"""Recipes of the methods' original training, as the aggregators know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qgmil.errors import ConfigError

#: Fields of `TrainConfig` that a published recipe may set.
RECIPE_FIELDS = (
    "scaling",
    "optimizer",
    "lr",
    "betas",
    "weight_decay",
    "schedule",
    "warmup",
    "clip",
    "batch_size",
    "epochs",
    "min_epochs",
    "patience",
    "monitor",
    "class_weights",
    "label_smoothing",
    "sample",
)


def with_published(values: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Given fields of a `TrainConfig`, and those of the model's published recipe where nothing is given.

    A configuration that gives every field, like that of a run folder, stays as it is, whatever the recipe is by then.

    Raises:
        ConfigError: an unknown model, or one without a published recipe.
    """
    if all(name in values for name in RECIPE_FIELDS):
        return dict(values)
    return {**published_recipe(model), **values}


def published_recipe(model: str) -> dict[str, Any]:
    """The published recipe of a model; empty for one that is fitted in one go, where there is nothing to choose.

    Raises:
        ConfigError: an unknown model, or one without a published recipe.
    """
    from qgmil.models.registry import find_entry, model_entries  # late: the options of a command need no models

    cls = find_entry(model).cls
    if hasattr(cls, "fit_closed_form"):
        return {}
    if not cls.published_recipe:
        have = [name for name, entry in model_entries().items() if entry.cls.published_recipe]
        raise ConfigError(
            f"recipe = 'published': no published recipe of {model!r} is known; take recipe common, or one of the "
            f"models that have one: {', '.join(have)}"
        )
    unknown = sorted(set(cls.published_recipe) - set(RECIPE_FIELDS))
    if unknown:
        raise ConfigError(
            f"the published recipe of {model!r} sets {', '.join(unknown)}, which is none of {', '.join(RECIPE_FIELDS)}"
        )
    return dict(cls.published_recipe)
