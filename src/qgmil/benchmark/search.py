"""Hyper-parameter search inside the training part of a cell, by Optuna, with the same budget for each model.

Trials train on the cell's training bags and are scored on its validation bags; the test bags are no argument here.
What trial n draws follows from the seed, n and the trials before it, and trials are kept in a journal in the cell's
folder: a search that was killed goes on where it was and ends as one that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgmil.bags.dataset import BagDataset
from qgmil.benchmark.space import FIELDS, SearchSpec
from qgmil.errors import ConfigError, QGMILError
from qgmil.files import write_csv, write_json
from qgmil.models.registry import find_entry, model_options
from qgmil.training.cell import Cell
from qgmil.training.config import TrainConfig

if TYPE_CHECKING:
    import optuna

JOURNAL = Path("search") / "journal.log"
TABLE, CHOICE = "search.csv", "search.json"
RANDOM_TRIALS = 5  # before TPE learns from them
TrialHook = Callable[[int, int, dict[str, float | None]], None]
logger = logging.getLogger("qgmil")


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        config: to train with: the given one with the best trial's values.
        values: those values; empty where nothing could be searched.
        score: of the best trial on the validation bags; None without trials.
        trials: one row a finished trial, in order: number, state, score, seconds, error, a column a parameter.
        skipped: parameters of the space that this model does not have.
    """

    config: TrainConfig
    values: dict[str, Any] = field(default_factory=dict)
    score: float | None = None
    trials: tuple[dict[str, Any], ...] = ()
    skipped: tuple[str, ...] = ()


def check_search(search: dict[str, Any], aggregators: Collection[str], source: str) -> dict[str, Any]:
    """The `search:` section with its defaults filled in, as JSON values.

    Args:
        search: the section.
        aggregators: registered names of the models that will be searched.
        source: the file, for messages.

    Raises:
        ConfigError: an unknown key, a value out of range, a parameter that none of the models has, or no Optuna.
    """
    spec = SearchSpec.build(search, source)
    spec.check_options(aggregators, source)
    need_optuna()
    return spec.model_dump(mode="json", exclude_none=True)


def tuned_config(
    cell: Cell,
    bags: BagDataset,
    classes: Sequence[str],
    config: TrainConfig,
    search: dict[str, Any],
    *,
    on_trial: TrialHook | None = None,
) -> TrainConfig:
    """The configuration that a cell trains with; its test part is not looked at. Arguments as for `run_search`."""
    row = {bag: i for i, bag in enumerate(bags.bag_ids)}
    train, val = (bags.subset([row[b] for b in part]) for part in (cell.split.train, cell.split.val))
    spec = SearchSpec.build(search)
    return run_search(train, val, classes, config, spec, cell.folder, cell.seed, on_trial=on_trial).config


def run_search(
    train: BagDataset,
    val: BagDataset,
    classes: Sequence[str],
    config: TrainConfig,
    search_spec: SearchSpec,
    folder: Path,
    seed: int,
    *,
    on_trial: TrialHook | None = None,
) -> SearchResult:
    """Search hyper-parameters on training and validation bags.

    A trial that cannot be trained (heads that do not divide the width, divergence) counts in the budget and is recorded
    with its reason.

    Args:
        train, val: bags that trials are trained and scored on.
        classes: class names in the order of the logits.
        config: what the trials depart from.
        search_spec: space, budget and metric.
        folder: of the cell; gets ``search/journal.log``, ``search.csv`` (trials) and ``search.json`` (choice).
        seed: of the trainings, and with the seed of the search that of the draws.
        on_trial: told of each finished trial: how many, of how many, its scores.

    Raises:
        ConfigError: no Optuna, a space whose values the model cannot have, or not one trial that could be trained.
        Interrupted: Ctrl-C; calling again goes on.
    """
    space, skipped = _own_space(config, search_spec)
    if skipped:
        logger.info("%s has no %s: not searched", config.model, ", ".join(skipped))
    if not space:
        result = SearchResult(config, skipped=skipped)
        _write(folder, result, search_spec)
        return result
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": train.bag_ids, "val": val.bag_ids}
    study = _open_study(folder, _fingerprint(config, search_spec, seed, classes, parts), search_spec)
    while (done := len(_finished(study))) < search_spec.trials:
        trial = _ask(study, done, search_spec, seed)
        values = {name: space[name].suggest(trial, name) for name in space}
        scores = _run_trial(study, trial, train, val, classes, config, values, search_spec.metric, seed)
        if on_trial is not None:
            on_trial(done + 1, search_spec.trials, scores)
    result = _choose(study, config, search_spec.trials, skipped)
    _write(folder, result, search_spec)
    return result


def need_optuna() -> None:
    """Raise `ConfigError` where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise ConfigError("search needs Optuna, which is not installed: pip install 'qgmil[search]'")


def _own_space(config: TrainConfig, spec: SearchSpec) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The parameters that this model has, and the names of the others."""
    from qgmil.models.base import ClosedForm

    options = model_options(config.model)
    closed = issubclass(find_entry(config.model).cls, ClosedForm)  # no recipe plays a part in its fit
    known = {f"options.{name}" for name in options} | (set() if closed else FIELDS)
    space = {name: part for name, part in spec.space.items() if name in known}
    return space, tuple(name for name in spec.space if name not in known)


def with_values(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """The configuration with these values, those named ``options.NAME`` among the model's options.

    Raises:
        ConfigError: a value out of range.
    """
    options = {name.removeprefix("options."): v for name, v in values.items() if name.startswith("options.")}
    recipe = {name: v for name, v in values.items() if not name.startswith("options.")}
    merged = {**config.model_dump(), **recipe, "options": {**config.options, **options}}
    return TrainConfig.build(merged, "search")


def _run_trial(
    study: optuna.Study,
    trial: optuna.Trial,
    train: BagDataset,
    val: BagDataset,
    classes: Sequence[str],
    config: TrainConfig,
    values: dict[str, Any],
    metric: str,
    seed: int,
) -> dict[str, float | None]:
    from optuna.trial import TrialState

    started = time.perf_counter()
    scores: dict[str, float | None] = {}
    try:
        scores = score(train, val, classes, with_values(config, values), seed)
        if scores.get(metric) is None:
            raise ConfigError(f"{metric} is undefined on the validation bags")
    except QGMILError as error:
        trial.set_user_attr("error", str(error))
        trial.set_user_attr("seconds", round(time.perf_counter() - started, 2))
        study.tell(trial, state=TrialState.FAIL)
        return scores
    trial.set_user_attr("scores", scores)
    trial.set_user_attr("seconds", round(time.perf_counter() - started, 2))
    study.tell(trial, scores[metric])
    return scores


def score(
    train: BagDataset, val: BagDataset, classes: Sequence[str], config: TrainConfig, seed: int
) -> dict[str, float | None]:
    """Train one configuration and score it on the validation bags: val_loss, val_nll, val_macro_f1, val_auroc."""
    from qgmil.evaluation.metrics import evaluate
    from qgmil.training.fit import fit_model
    from qgmil.training.predict import predict
    from qgmil.training.rows import labels_of

    fit = fit_model(train, val, classes, config, seed=seed)
    said = predict(
        fit.model,
        val,
        batch_size=config.batch_size,
        device=config.device,
        precision=config.precision,
        sample=config.eval_sample,
        workers=config.workers,
        attention=False,
    )
    found = evaluate(said.probabilities(), labels_of(val, classes), classes)
    loss = fit.history[fit.best_epoch]["val_loss"] if fit.history else found["nll"]
    return {"val_loss": loss, **{f"val_{name}": found[name] for name in ("nll", "macro_f1", "auroc")}}


def _open_study(folder: Path, name: str, spec: SearchSpec) -> optuna.Study:
    """The study of this search in the cell's journal; a trial that a kill left unfinished is set aside."""
    need_optuna()
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    path = folder / JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    with _quiet():
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=name,
            direction="minimize" if spec.metric in ("val_nll", "val_loss") else "maximize",
            load_if_exists=True,
        )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _ask(study: optuna.Study, number: int, spec: SearchSpec, seed: int) -> optuna.Trial:
    """A new trial whose draws follow from the seeds, its number and the trials before."""
    import optuna

    digest = hashlib.sha256(f"{spec.seed} {seed} {number}".encode()).digest()
    drawn = int.from_bytes(digest[:4], "little")
    with _quiet():
        if spec.sampler == "random":
            study.sampler = optuna.samplers.RandomSampler(seed=drawn)
        else:
            study.sampler = optuna.samplers.TPESampler(seed=drawn, n_startup_trials=RANDOM_TRIALS)
        return study.ask()


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that count: with a score, or with a reason why they have none."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state == TrialState.COMPLETE or "error" in t.user_attrs]


def _choose(study: optuna.Study, config: TrainConfig, most: int, skipped: tuple[str, ...]) -> SearchResult:
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    rows, scored = [], []
    for number, trial in enumerate(_finished(study)[:most]):
        complete = trial.state == TrialState.COMPLETE
        rows.append(
            {
                "trial": number,
                "state": "finished" if complete else "failed",
                "score": trial.value if complete else None,
                "seconds": trial.user_attrs.get("seconds"),
                "error": trial.user_attrs.get("error"),
                **trial.params,
            }
        )
        if complete and trial.value is not None:
            scored.append((trial.value, number, trial.params))
    if not scored:
        raise ConfigError(
            f"search: none of the {len(rows)} trials of {config.model} could be trained: {rows[0]['error']}"
        )
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    value, _, params = min(scored, key=lambda s: (sign * s[0], s[1]))  # of equal ones the first
    return SearchResult(with_values(config, params), params, value, tuple(rows), skipped)


def _write(folder: Path, result: SearchResult, spec: SearchSpec) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if result.trials:
        write_csv(folder / TABLE, result.trials)
    choice = {
        "metric": spec.metric,
        "score": result.score,
        "choice": result.values,
        "skipped": list(result.skipped),
        "search": spec.model_dump(mode="json", exclude_none=True),
        "trials": list(result.trials),
    }
    write_json(folder / CHOICE, choice)


def _fingerprint(
    config: TrainConfig,
    spec: SearchSpec,
    seed: int,
    classes: Sequence[str],
    parts: dict[str, tuple[str, ...]],
) -> str:
    """The name of the study: another question in the same folder is another study, not a mixture of both."""
    decides = {
        "config": config.model_dump(mode="json"),
        "search": spec.model_dump(mode="json", exclude={"trials"}),  # more trials go on from those that are there
        "seed": seed,
        "classes": list(classes),
        **parts,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's notices of every trial and of experimental parts."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"optuna\..*")
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        yield
