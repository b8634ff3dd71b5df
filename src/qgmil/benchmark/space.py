"""The `search:` section of a benchmark: which hyper-parameters, how many trials, which validation metric."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qgmil.errors import ConfigError
from qgmil.models.registry import model_options
from qgmil.training.config import FitConfig, ModelConfig, TrainConfig, describe

if TYPE_CHECKING:
    import optuna

#: Fields of the recipe that may be searched: what trains, not where it runs or what chooses the epoch.
FIELDS = frozenset(
    name
    for name in (
        "epochs", "batch_size", "optimizer", "lr", "weight_decay", "schedule", "warmup", "clip", "class_weights",
        "label_smoothing", "sample", "min_epochs", "patience", "scaling",
    )
    if name in FitConfig.model_fields or name in ModelConfig.model_fields
)  # fmt: skip


class Parameter(BaseModel):
    """A range (`low` to `high`, on a log scale with `log`, in steps with `step`) or `choices`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = Field(None, gt=0)
    choices: tuple[bool | int | float | str | None, ...] | None = None

    @field_validator("low", "high", "step", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        """YAML reads 1e-5 as text."""
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                raise ValueError(f"{value!r} is no number") from None
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.step is not None:
                raise ValueError("give choices, or low and high, not both")
            if not self.choices or len(set(map(repr, self.choices))) < len(self.choices):
                raise ValueError("choices must be at least one value, none of them twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a log scale needs low above 0, and has no step")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to check in advance: all choices, or the ends of the range."""
        return self.choices if self.choices is not None else (self.low, self.high)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """The trial's value; whole numbers where both ends are."""
        if self.choices is not None:
            return trial.suggest_categorical(name, list(self.choices))
        assert self.low is not None and self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step or 1, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log, step=int(self.step or 1))
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)


class SearchSpec(BaseModel):
    """The section `search:`, the same for every model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trials: int = Field(20, ge=1, description="Trials of each model in each cell.")
    metric: Literal["val_nll", "val_loss", "val_macro_f1", "val_auroc"] = Field(
        "val_nll", description="Figure of the validation bags that chooses the trial."
    )
    sampler: Literal["tpe", "random"] = Field("tpe", description="How trials are drawn.")
    seed: int = Field(0, ge=0, description="Of the draws, with the seed of the cell.")
    space: dict[str, Parameter] = Field(description="Parameters: fields of the recipe, or options.NAME.")

    @classmethod
    def build(cls, values: Mapping[str, Any], source: str = "search") -> Self:
        """Validate values.

        Raises:
            ConfigError: unknown keys, values out of range, or a parameter that is no field of the recipe.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: search is a table with trials, metric and space, not {values!r}")
        try:
            spec = cls(**values)
        except ValidationError as error:
            raise ConfigError(f"{source}: search: {describe(error, list(cls.model_fields))}") from None
        spec._check_fields(source)
        return spec

    @field_validator("space", mode="before")
    @classmethod
    def _names(cls, space: Any) -> Any:
        if not isinstance(space, Mapping) or not space:
            raise ValueError("space is a table of parameters, such as lr: {low: 1.0e-5, high: 1.0e-3, log: true}")
        return {str(name).replace("-", "_"): part for name, part in space.items()}

    def _check_fields(self, source: str) -> None:
        for name, part in self.space.items():
            if name.startswith("options."):
                continue
            if name not in FIELDS:
                close = difflib.get_close_matches(name, FIELDS, n=2)
                hint = f"did you mean {' or '.join(close)}? " if close else ""
                raise ConfigError(
                    f"{source}: search: space has {name!r}, which cannot be searched: {hint}there are "
                    f"{', '.join(sorted(FIELDS))}, and options.NAME for the aggregators' own options"
                )
            for value in part.ends:
                TrainConfig.build({name: value}, f"{source}: search: space")

    def check_options(self, aggregators: Collection[str], source: str) -> None:
        """Refuse an option that none of the aggregators has: it is misspelt.

        Raises:
            ConfigError: such an option, or an unknown aggregator.
        """
        known = sorted({option for name in aggregators for option in model_options(name)})
        for name in self.space:
            option = name.removeprefix("options.")
            if name.startswith("options.") and option not in known:
                close = difflib.get_close_matches(option, known, n=2)
                hint = f"did you mean {' or '.join(f'options.{c}' for c in close)}? " if close else ""
                raise ConfigError(
                    f"{source}: search: space has {name!r}, but no model of this benchmark has that option: {hint}"
                    f"their options are {', '.join(known)}"
                )
