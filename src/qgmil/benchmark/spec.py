"""The benchmark's yaml: which data sets, models, folds and seeds, under which recipe."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qgmil.benchmark.collect import CONTROLS
from qgmil.datasets.registry import dataset_options, list_datasets
from qgmil.errors import ConfigError
from qgmil.models.registry import find_entry, model_entries
from qgmil.training.config import DataConfig, FitConfig, TrainConfig, describe, read_yaml

Recipe = Literal["common", "published"]
#: What `common` and `train` may set: how to train, not which bags or which model.
TRAINING = (*(name for name in FitConfig.model_fields if name != "recipe"), "scaling")
#: Fields of `common` that also hold under the published recipe: where and how it is computed, not what.
MACHINE = (
    *("device", "devices", "precision", "checkpointing", "compile", "memory_check", "workers", "in_memory"),
    "checkpoint_seconds",
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+=-]{0,79}")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]{0,79}")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(DataConfig):
    """Where bags come from: a table of bags, or a named data set."""

    manifest: str | None = Field(None, description="Table of bags; relative to the yaml file.")
    named: str | None = Field(None, description="Name of a data set (qgmil datasets) instead of a manifest.")
    root: str | None = Field(None, description="Folder of the named data sets.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the named data set.")
    draws: bool = Field(False, description="Folds are draws of the named data set (its seed), each with its own split.")
    official: bool = Field(False, description="Take the named data set's own splits instead of drawing folds.")


class DatasetSpec(SourceSpec):
    """One data set of the benchmark; `features` may also be several feature sets by name, each with its own source."""

    features: str | dict[str, dict[str, Any]] | None = None  # type: ignore[assignment]
    folds: int | None = Field(None, ge=2)
    seeds: int | None = Field(None, ge=1)
    val: float | None = Field(None, gt=0, lt=1)
    resplit: bool | None = None
    split_column: tuple[str, ...] = Field((), description="Column(s) of the manifest that hold the split.")
    train_patients: int | None = Field(None, ge=2, description="Most patients in each fold's training part.")
    train: dict[str, Any] = Field(default_factory=dict, description="Fields of TrainConfig for this data set.")

    @field_validator("split_column", mode="before")
    @classmethod
    def _one_column(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def sources(self) -> dict[str, SourceSpec]:
        """The feature sets by name; one without a name where there is only one."""
        own = {k: getattr(self, k) for k in self.model_fields_set if k in SourceSpec.model_fields}
        if not isinstance(self.features, dict):
            return {"": SourceSpec(**own)}
        own.pop("features", None)
        return {name: SourceSpec(**{**own, **values}) for name, values in self.features.items()}


class ModelSpec(_Section):
    """One model of the benchmark: an aggregator with options, and what it does differently."""

    model: str | None = Field(None, description="Registered name; absent: the label.")
    options: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict, description="Fields of TrainConfig for this model.")
    recipe: Recipe | None = None


class BenchmarkSpec(_Section):
    """The whole benchmark."""

    output: Path | None = None
    folds: int = Field(5, ge=2)
    seeds: int = Field(3, ge=1)
    seed: int = Field(0, ge=0, description="First seed.")
    val: float = Field(0.2, gt=0, lt=1)
    resplit: bool = False
    recipe: Recipe = "common"
    common: dict[str, Any] = Field(default_factory=dict)
    datasets: dict[str, DatasetSpec]
    models: dict[str, ModelSpec]
    controls: bool = True
    known: tuple[Path, ...] = ()
    search: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: str | Path, **overrides: Any) -> Self:
        """Read a yaml file; paths in it are relative to its folder, environment variables in them are expanded.

        Raises:
            ConfigError: unreadable, or an unknown or impossible key; the file, the key and the value are named.
        """
        path = Path(path)
        return cls.build({**read_yaml(path), **overrides}, str(path), path.parent)

    @classmethod
    def build(cls, values: Mapping[str, Any], source: str = "benchmark", base: str | Path = ".") -> Self:
        """Validate values, as `read` does.

        Raises:
            ConfigError: as `read`.
        """
        raw = dict(values)
        for section, kind, pattern in (("datasets", DatasetSpec, NAME), ("models", ModelSpec, MODEL_NAME)):
            entries = raw.get(section)
            if not isinstance(entries, dict) or not entries:
                raise ConfigError(f"{source}: {section} must be a table of name: settings with at least one entry")
            _check_names(list(entries), pattern, f"{source}: {section}")
            raw[section] = {n: _section(kind, e, f"{source}: {section}.{n}") for n, e in entries.items()}
        raw["known"] = tuple(_path(p, base, f"{source}: known").absolute() for p in _known(raw.get("known"), source))
        if raw.get("output") is not None:
            raw["output"] = _path(raw["output"], base, f"{source}: output")
        raw["datasets"] = {n: _placed(d, Path(base), f"{source}: datasets.{n}") for n, d in raw["datasets"].items()}
        spec = _section(cls, {k: v for k, v in raw.items() if v is not None}, source)
        spec._check(source)
        return spec

    def all_models(self) -> dict[str, ModelSpec]:
        """The models by label, with the controls that are registered and not there by themselves."""
        there = {spec.model or label for label, spec in self.models.items()}
        controls = [c for c in CONTROLS if self.controls and c not in there and c in model_entries()]
        return {**self.models, **{c: ModelSpec() for c in controls if c not in self.models}}

    def recipe_of(self, label: str) -> Recipe:
        """Which recipe a model trains by: its own choice, else the benchmark's.

        Where the whole benchmark is to be as published, models of which no original training is known (mean, the plain
        transformer) train by the common recipe; the results table says so.
        """
        model = self.all_models()[label]
        if model.recipe is None and self.recipe == "published":
            return "published" if find_entry(model.model or label).cls.published_recipe else "common"
        return model.recipe or self.recipe

    def train_values(self, dataset: str, label: str) -> dict[str, Any]:
        """The fields of TrainConfig that the common recipe, a data set and a model set, the later winning."""
        model = self.all_models()[label]
        published = self.recipe_of(label) == "published"  # TrainConfig fills in what is not given
        base = {k: v for k, v in self.common.items() if k in MACHINE or not published}
        return {**base, **self.datasets[dataset].train, **model.train}

    def _check(self, source: str) -> None:
        for where, values in (
            ("common", self.common),
            *((f"datasets.{n}.train", d.train) for n, d in self.datasets.items()),
            *((f"models.{n}.train", m.train) for n, m in self.models.items()),
        ):
            unknown = [k for k in values if k not in TRAINING]
            if unknown:
                raise ConfigError(
                    f"{source}: {where}: {unknown[0]!r} is not a field of training; there are {', '.join(TRAINING)}"
                )
            TrainConfig.build(values, f"{source}: {where}")
        for label, model in self.all_models().items():
            try:
                find_entry(model.model or label)
                how = {"model": model.model or label, "options": model.options, "recipe": self.recipe_of(label)}
                TrainConfig.build(how)
            except ConfigError as error:
                raise ConfigError(f"{source}: models.{label}: {error}") from None


S = TypeVar("S", bound=BaseModel)


def _section(kind: type[S], values: Any, source: str) -> S:
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source} is {values!r}; it must be a table of name: value")
    try:
        return kind(**{str(k): v for k, v in values.items()})
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error, list(kind.model_fields))}") from None


def _check_names(names: list[Any], pattern: re.Pattern[str], source: str) -> None:
    """Names are parts of paths, on file systems that do not tell capitals apart as well."""
    for name in names:
        if not isinstance(name, str) or not pattern.fullmatch(name):
            raise ConfigError(
                f"{source}: the name {name!r} cannot be used: it names folders, so letters, digits, _, -, + and = only"
            )
    lower = [n.lower() for n in names]
    for name in names:
        if lower.count(name.lower()) > 1:
            raise ConfigError(f"{source}: the name {name!r} is there twice, apart from capitals")


def _known(value: Any, source: str) -> list[str | Path]:
    values = [] if value is None else [value] if isinstance(value, str | Path) else value
    if not isinstance(values, list | tuple) or not all(isinstance(v, str | Path) for v in values):
        raise ConfigError(f"{source}: known is {value!r}; it must be a results table, or a list of them")
    return list(values)


def _path(text: Any, base: str | Path, source: str) -> Path:
    expanded = os.path.expandvars(str(text))
    left = re.search(r"\$\{?(\w+)", expanded)
    if left:
        raise ConfigError(f"{source}: {str(text)!r} names the environment variable {left[1]}, which is not set")
    return Path(base) / Path(expanded).expanduser()


def _placed(dataset: DatasetSpec, base: Path, source: str) -> DatasetSpec:
    """The data set with whole paths, each of its sources checked for what excludes what."""
    changes: dict[str, Any] = {}
    if isinstance(dataset.features, dict):
        _check_names(list(dataset.features), NAME, f"{source}.features")
        if not dataset.features:
            raise ConfigError(f"{source}.features: names no feature set")
        placed = {}
        for name, values in dataset.features.items():
            where = f"{source}.features.{name}"
            part = _section(SourceSpec, values, where)
            placed[name] = {**{k: getattr(part, k) for k in part.model_fields_set}, **_paths(part, base, where)}
        changes["features"] = placed
    changes |= _paths(dataset, base, source)
    dataset = dataset.model_copy(update=changes)
    for name, part in dataset.sources().items():
        _check_source(part, dataset, f"{source}.features.{name}" if name else source)
    return dataset


def _paths(part: SourceSpec, base: Path, source: str) -> dict[str, str]:
    given = {k: getattr(part, k) for k in ("manifest", "root") if getattr(part, k) is not None}
    return {k: str(_path(v, base, f"{source}.{k}").absolute()) for k, v in given.items()}


def _check_source(part: SourceSpec, dataset: DatasetSpec, source: str) -> None:
    if (part.manifest is None) == (part.named is None):
        raise ConfigError(f"{source}: needs either manifest (a table of bags) or named (a data set's name)")
    if part.named is None:
        for key in ("root", "options", "draws", "official"):
            if key in part.model_fields_set and getattr(part, key):
                raise ConfigError(f"{source}: {key} belongs to a named data set, not to a manifest")
    else:
        column = next((k for k in DataConfig.model_fields if k in part.model_fields_set), None)
        if column is not None or dataset.split_column:
            raise ConfigError(f"{source}: {column or 'split_column'} belongs to a manifest, not to a named data set")
        _check_options(part, source)
    if part.official and dataset.folds:
        raise ConfigError(f"{source}: official and folds exclude each other: the data set's own splits are the folds")
    if part.draws and part.official:
        raise ConfigError(f"{source}: draws and official exclude each other: every draw has its own split")
    if dataset.split_column and (part.draws or part.official or dataset.folds):
        other = "draws" if part.draws else "official" if part.official else "folds"
        raise ConfigError(f"{source}: split_column and {other} exclude each other: the column decides the split")


def _check_options(part: SourceSpec, source: str) -> None:
    """Options of a named data set must be of the types of their defaults; unknown names are said on opening."""
    if part.named not in list_datasets():
        return
    defaults = dataset_options(part.named)
    for name, value in part.options.items():
        if name in defaults and not _is_like(value, defaults[name]):
            kind = _kind(defaults[name])
            raise ConfigError(f"{source}.options.{name} is {value!r}; {part.named} takes {kind} there")


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(_is_like(v, default[0] if default else "") for v in value)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, int | float if isinstance(default, float) else type(default))


def _kind(default: Any) -> str:
    if isinstance(default, tuple):
        return f"a list, like {list(default)!r}" if default else "a list of words"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return f"{names[type(default)]}, like {default!r}"
