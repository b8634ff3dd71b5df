"""The cells of the grid: every data set x features x model x fold x seed, checked before the first one trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qgmil.bags.dataset import BagDataset
from qgmil.bags.readers.base import listing
from qgmil.bags.splits import Split, with_val
from qgmil.benchmark.few import keep_patients
from qgmil.benchmark.sources import describe_source, open_source, reading
from qgmil.benchmark.spec import BenchmarkSpec, DatasetSpec, SourceSpec
from qgmil.errors import ConfigError, QGMILError
from qgmil.models.base import ClosedForm
from qgmil.training.config import SplitConfig, TrainConfig
from qgmil.training.device import choose_device, choose_precision
from qgmil.training.fit import build_model, check_classes
from qgmil.training.run import make_splits
from qgmil.training.share import count_processes

#: Raised when a change of the library changes results (a default, an aggregator, a metric): all cells are then new.
RESULT_VERSION = 1
#: Fields that decide where and how fast a cell is computed, not what comes out.
EXECUTION = ("device", "workers", "in_memory", "memory_check", "checkpoint_seconds", "checkpointing", "compile")
GRID = ("dataset", "features", "model", "fold", "seed")


@dataclass(frozen=True)
class PlannedCell:
    """One cell, with everything that decides its result.

    Args:
        dataset, features, model: names in the yaml; `features` is empty where there is one feature set.
        fold, seed: its place in the grid.
        draw: which draw of the data set its bags are, for data sets that are drawn.
        recipe: "common" or "published".
        config: of the training.
        split: bags to train, validate and test on.
        classes: in the order of the logits.
        source: the bags, as `describe_source` has them.
        identity: hash of the bags.
        search: the section of the yaml, checked; None without a search.
        salt: of the hashes that stand for names in the results: the identity of the bags, for a data set that is drawn
            that of its first draw.
        precision: what `config.precision` means on this machine, which decides it for all that compute cells.
    """

    dataset: str
    features: str
    model: str
    fold: int
    seed: int
    draw: int | None
    recipe: str
    config: TrainConfig
    split: Split
    classes: tuple[str, ...]
    source: dict[str, Any]
    identity: str
    search: dict[str, Any] | None = None
    salt: str = ""
    precision: str = "32"

    @property
    def key(self) -> tuple[Any, ...]:
        """The cell's place in the grid."""
        return tuple(getattr(self, name) for name in GRID)

    @property
    def id(self) -> str:
        """The cell's folder under ``cells``, which names it everywhere."""
        data = f"{self.dataset}.{self.features}" if self.features else self.dataset
        return f"{data}/{self.model}/fold{self.fold}_seed{self.seed}"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON: what two fingerprints differ in.

        The precision "auto" counts as what it comes to, and as the default, which is left out, where that is float32.
        """
        fields = self.config.model_dump(mode="json", exclude_defaults=True)
        if self.config.precision == "auto" and self.precision != "32":
            fields["precision"] = self.precision
        left_out = {*EXECUTION, *SplitConfig.model_fields, "model", "options", "recipe"}  # its values count
        split = json.dumps([self.split.train, self.split.val, self.split.test])
        return {
            "version": RESULT_VERSION,
            "data": self.identity,
            "split": hashlib.sha256(split.encode()).hexdigest(),
            "classes": list(self.classes),
            "model": self.config.model,
            "options": json.loads(json.dumps(self.config.options)),
            "training": {k: v for k, v in sorted(fields.items()) if k not in left_out},
            "seed": self.seed,
            **({} if self.search is None else {"search": self.search}),
        }

    @cached_property
    def fingerprint(self) -> str:
        """Hash of `settings`."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    def job(self, folder: str) -> dict[str, Any]:
        """The cell as JSON, for `qgmil.benchmark.worker.run_job`."""
        names = (*GRID, "draw", "recipe", "source", "identity", "search", "salt", "settings", "fingerprint", "id")
        return {
            **{name: getattr(self, name) for name in names},
            "folder": folder,
            "config": {**self.config.model_dump(mode="json"), "precision": self.precision},
            "split": {"name": self.split.name, **{side: list(ids) for side, ids in self.split.sides().items()}},
            "classes": list(self.classes),
        }


@dataclass(frozen=True)
class _Facts:
    """What planning keeps of a source's bags."""

    source: dict[str, Any]
    labels: dict[str, str | None]
    groups: dict[str, str]
    classes: tuple[str, ...]
    width: int
    identity: str


def plan(spec: BenchmarkSpec, source: str = "benchmark", *, check_device: bool = True) -> list[PlannedCell]:
    """All cells in the order in which they are run: data set by data set, and inside it seed by seed and fold by fold
    over all models, so that what is finished early compares all of them.

    Args:
        spec: the benchmark.
        source: the yaml's name, for messages.
        check_device: whether cells are computed on this machine, which must then have the device.

    Raises:
        ConfigError: a data set that cannot be opened or split, classes that cannot be trained on, or a model that
            cannot be built for it. The entry of the yaml is named.
    """
    search = _checked_search(spec, source)
    cells: list[PlannedCell] = []
    for name, dataset in spec.datasets.items():
        where = f"{source}: datasets.{name}"
        try:
            cells += _Planner(spec, name, dataset, search, check_device).cells()
        except QGMILError as error:
            raise ConfigError(f"{where}: {error}") from error
    return cells


def chosen(cells: Sequence[PlannedCell], only: Mapping[str, Collection[str]]) -> list[PlannedCell]:
    """The cells that `only` asks for, as {"dataset": names, "model": names, ...}.

    Raises:
        ConfigError: a part of the grid that there is not, or a name that no cell has.
    """
    for part, names in only.items():
        if part not in GRID:
            raise ConfigError(f"--only {part}=...: there is no {part}; the grid has {', '.join(GRID)}")
        there = {str(getattr(cell, part)) for cell in cells}
        for name in names:
            if str(name) not in there:
                raise ConfigError(f"--only {part}={name}: there is none; there are {listing(sorted(there), 40)}")
    return [c for c in cells if all(str(getattr(c, p)) in {str(n) for n in names} for p, names in only.items())]


class _Planner:
    """The cells of one data set."""

    def __init__(
        self, spec: BenchmarkSpec, name: str, dataset: DatasetSpec, search: dict[str, Any] | None, check_device: bool
    ) -> None:
        self.spec, self.name, self.dataset, self.search = spec, name, dataset, search
        self.check_device = check_device
        self.folds = dataset.folds or spec.folds
        self.seeds = range(spec.seed, spec.seed + (dataset.seeds or spec.seeds))
        self.resplit = spec.resplit if dataset.resplit is None else dataset.resplit
        self.val = dataset.val or spec.val
        self.built: set[str] = set()

    def cells(self) -> list[PlannedCell]:
        cells = []
        first: dict[tuple[int, int], tuple[Split, dict[str, str | None]]] = {}
        for features, source in self.dataset.sources().items():
            parts = list(self._parts(source))
            salt = parts[0][3].identity
            if features == next(iter(self.dataset.sources())):
                first = {(seed, fold): (split, facts.labels) for seed, fold, _, facts, split in parts}
            else:
                _same_grid(next(iter(self.dataset.sources())), features, first, {(part[0], part[1]) for part in parts})
            for seed, fold, draw, facts, split in parts:
                split = _same_bags(features, facts, *first[seed, fold])
                for label in self.spec.all_models():
                    config = self._config(source, label, seed)
                    self._check(label, config, facts, split)
                    place = (self.name, features, label, fold, seed, draw, self.spec.recipe_of(label))
                    data = (split, facts.classes, facts.source, facts.identity)
                    cells.append(PlannedCell(*place, config, *data, self.search, salt, _precision(label, config)))
        return cells

    def _parts(self, source: SourceSpec) -> Iterator[tuple[int, int, int | None, _Facts, Split]]:
        """Seed, fold, draw, facts and split, in the order of the cells."""
        known: dict[Any, tuple[_Facts, tuple[Split, ...]]] = {}
        for position, seed in enumerate(self.seeds):
            split_seed = seed if self.resplit else self.spec.seed
            first = position * self.folds if self.resplit else 0
            for draw in range(first, first + self.folds) if source.draws else [None]:
                if (split_seed, draw) not in known:
                    known[split_seed, draw] = self._open(source, split_seed, draw)
                facts, splits = known[split_seed, draw]
                for fold, split in enumerate(splits):
                    yield seed, fold if draw is None else draw - first, draw, facts, split

    def _open(self, source: SourceSpec, seed: int, draw: int | None) -> tuple[_Facts, tuple[Split, ...]]:
        described = describe_source(source, draw)
        opened = open_source(described, in_memory="no", splits=source.draws or source.official)
        bags = opened.bags
        if len(bags.classes) < 2:
            raise ConfigError(f"one class only ({', '.join(bags.classes)}): a classifier needs at least two")
        labels = dict(zip(bags.bag_ids, bags.labels, strict=True))
        groups = dict(zip(bags.bag_ids, bags.groups, strict=True))
        facts = _Facts(described, labels, groups, bags.classes, bags.width, opened.identity)
        if source.draws and len(opened.splits) != 1:
            raise ConfigError(f"draws needs a data set with one split of its own; {source.named} has none or several")
        splits = self._splits(opened.splits, bags, labels, groups, seed)
        few = self.dataset.train_patients
        if few is not None:
            number = seed if draw is None else seed + draw
            splits = tuple(
                keep_patients(s, labels, groups, few, seed=number, fold=fold) for fold, s in enumerate(splits)
            )
        return facts, splits

    def _splits(
        self,
        own: tuple[Split, ...],
        bags: BagDataset,
        labels: dict[str, str | None],
        groups: dict[str, str],
        seed: int,
    ) -> tuple[Split, ...]:
        if own:
            return tuple(with_val(s, labels, groups, val=self.val, seed=seed) for s in own)
        how: dict[str, Any] = {"val": self.val}
        how |= {"split_column": self.dataset.split_column} if self.dataset.split_column else {"folds": self.folds}
        return tuple(make_splits(bags, TrainConfig.build(how), seed))

    def _config(self, source: SourceSpec, label: str, seed: int) -> TrainConfig:
        model = self.spec.all_models()[label]
        values = {**reading(source), **self.spec.train_values(self.name, label), "recipe": self.spec.recipe_of(label)}
        values |= {"model": model.model or label, "options": model.options, "seed": seed, "val": self.val}
        return TrainConfig.build(values, f"models.{label}")

    def _check(self, label: str, config: TrainConfig, facts: _Facts, split: Split) -> None:
        """What would stop the cell later stops the benchmark now."""
        train, val = ([facts.labels[b] for b in part] for part in (split.train, split.val))
        check_classes(split.train, train, val, facts.classes, config)
        what = json.dumps([config.model_dump(exclude={"seed"}), facts.width, facts.classes], default=str)
        if what in self.built:
            return
        self.built.add(what)
        try:
            model = build_model(config, facts.width, len(facts.classes))
            if self.check_device and not isinstance(model, ClosedForm):
                count_processes(config, choose_device(config.device))
        except ConfigError as error:
            raise ConfigError(f"models.{label}: {error}") from None


def _precision(label: str, config: TrainConfig) -> str:
    """The precision as `TrainConfig` names it, with "auto" decided by this machine's device."""
    if config.precision != "auto":
        return config.precision
    try:
        lightning = choose_precision("auto", choose_device(config.device))
    except ConfigError as error:
        raise ConfigError(
            f"models.{label}: precision is auto, which this machine decides for all cells, but {error}; set precision "
            "to 32, bf16 or 16"
        ) from None
    return {"32-true": "32", "bf16-mixed": "bf16", "16-mixed": "16"}[lightning]


def _same_grid(one: str, other: str, first: Collection[tuple[int, int]], there: Collection[tuple[int, int]]) -> None:
    """Feature sets are compared cell by cell, so each must have all seeds and folds of the others."""
    different = sorted(set(first) ^ set(there))
    if different:
        seed, fold = different[0]
        having, lacking = (one, other) if different[0] in first else (other, one)
        raise ConfigError(
            f"features.{one} and features.{other} have different splits, {len(first)} and {len(there)} pairs of seed "
            f"and fold: features.{having} has seed {seed}, fold {fold}, and features.{lacking} has not; a comparison "
            "of features needs the same ones"
        )


def _same_bags(features: str, facts: _Facts, split: Split, labels: dict[str, str | None]) -> Split:
    """The first feature set's split, for another one of the same bags."""
    every = labels.keys() | facts.labels.keys()
    different = sorted(b for b in every if labels.get(b, "") != facts.labels.get(b, ""))
    if different:
        raise ConfigError(
            f"features.{features}: its bags or labels are not those of the first feature set ({len(different)} "
            f"differ: {listing(different)}); a comparison of features needs the same bags"
        )
    return split


def _checked_search(spec: BenchmarkSpec, source: str) -> dict[str, Any] | None:
    if spec.search is None:
        return None
    from qgmil.benchmark.search import check_search  # only where one is asked for

    aggregators = {model.model or label for label, model in spec.all_models().items()}
    return check_search(spec.search, aggregators, source)
