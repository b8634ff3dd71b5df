"""Does an aggregator learn what can be learnt, and nothing else? Trains on the witness task and checks against bounds.

The bounds (`qgmil.benchmark.witness_bounds`) are known before anything is trained:

- Macro F1 is at most that of Bayes, and at least that of the nearest class mean of the bags' means, learnt on as many
  bags. At low prevalence the latter is chance: mean pooling can do no better there, and more is asked of nobody. The
  linear probe sees the means alone, so that it is at most as good as Bayes on the means.
- Controls that see no feature are at chance, and so is everyone where labels are shuffled: macro F1 within what the
  same predictions get on permuted labels.
- Attention, as a detector of witnesses in bags of positive classes, has an average precision of at most that of the
  likelihood ratio. Where the task is easy and an instance's weight depends on the instance alone, up to the sum over
  the bag, it must be above that of a random order: the loss only falls if witnesses gain weight. Where instances have
  seen each other before they are pooled, each of them can carry what was learnt from all: a model may be right and
  attend anywhere. Nothing is asked of such attention; that it avoids the witnesses is said, and no fault.
- The tenth of instances with the most attention holds at least what it would under uniform attention, and at most all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from qgmil.attention.concentration import concentration
from qgmil.bags.dataset import BagDataset
from qgmil.benchmark.weighing import weighs_alone
from qgmil.benchmark.witness_bounds import Bounds, Task, average_precision, bounds, chance_interval
from qgmil.datasets.registry import load_dataset
from qgmil.errors import ConfigError
from qgmil.models.registry import find_entry, list_models, model_options
from qgmil.training.config import TrainConfig
from qgmil.training.fit import fit_model
from qgmil.training.predict import Predictions, predict
from qgmil.training.rows import labels_of

#: Sizes at which a model trains in a second or a few; those that it does not have are left out.
SMALL = {"width": 32, "num_heads": 4, "ffn_dim": 64, "attention_dim": 16, "dropout": 0.1}
#: One recipe for every aggregator; as many epochs as training has by default, for rare witnesses are learnt late.
RECIPE: dict[str, Any] = {
    "epochs": 20, "min_epochs": 10, "patience": 6, "batch_size": 8, "lr": 5e-3, "weight_decay": 1e-2, "device": "cpu",
    "precision": "32", "memory_check": False,
}  # fmt: skip
QUICK: dict[str, Any] = {"epochs": 8, "min_epochs": 6}
QUICK_BAGS = 40
AVOIDS = "its attention avoids the witnesses: it does not show where the evidence is"
EASY = 0.9  # typical macro F1 of the nearest mean from which on witnesses must be found
#: Bayes is well below 1 here: a model above it knows what it must not know.
HARD: dict[str, Any] = {"separation": 1.5, "prevalence": 0.1}
SHUFFLED_EPOCHS = 3  # chance is chance after any number of epochs
BLIND = frozenset({"majority", "bag_size"})
LINEAR = frozenset({"linear_probe"})


@dataclass(frozen=True)
class Check:
    """One model on one task.

    Args:
        model: its name.
        task: what it was trained on.
        macro_f1: on the test bags; None where training failed.
        f1_bounds: within which it must be.
        attention_ap: mean over the positive test bags; None without attention.
        ap_bounds: within which that must be.
        top_10pct: mean attention mass of the tenth of instances with the most of it, over the same bags.
        top_bounds: uniform attention, and all of it.
        top_even: what it would be if the witnesses shared all attention evenly.
        faults: what is out of bounds, in words; empty: the model passes.
        note: what to know, though it is no fault.
        seconds: of training.
    """

    model: str
    task: Task
    macro_f1: float | None = None
    f1_bounds: tuple[float, float] = (0.0, 1.0)
    attention_ap: float | None = None
    ap_bounds: tuple[float, float] | None = None
    top_10pct: float | None = None
    top_bounds: tuple[float, float] | None = None
    top_even: float | None = None
    faults: tuple[str, ...] = field(default=())
    note: str = ""
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """One flat row for tables."""
        values: dict[str, Any] = {"model": self.model, **asdict(self.task), "macro_f1": self.macro_f1}
        values["sizes"] = "-".join(map(str, self.task.sizes))
        for name, limits in (
            ("macro_f1", self.f1_bounds),
            ("attention_ap", self.ap_bounds),
            ("top_10pct", self.top_bounds),
        ):
            values[name] = getattr(self, name)
            values[f"{name}_low"], values[f"{name}_high"] = limits or (None, None)
        return {
            **values,
            "top_even": self.top_even,
            "seconds": self.seconds,
            "verdict": "; ".join(self.faults) or "ok",
            "note": self.note,
        }


def tasks(
    *,
    quick: bool = False,
    prevalence: Sequence[float] = (),
    classes: Sequence[int] = (),
    separation: float | None = None,
    sizes: Sequence[float] = (),
    seed: int = 0,
) -> list[Task]:
    """The tasks of a verification, the shuffled one last.

    Args:
        quick: one small task and the shuffled one.
        prevalence: shares of witnesses; none: 0.2, and unless quick 0.05.
        classes: numbers of classes; none: 2, and unless quick 3.
        separation: of the witnesses' means, in standard deviations of an instance; None: 5, and unless anything is
            given a task in which even Bayes errs.
        sizes: fewest and most instances of a bag; none: 10 and 30. They change the tasks' bags, not which tasks there
            are.
        seed: of the bags.

    Raises:
        ConfigError: sizes that are no range.
    """
    shared: dict[str, Any] = {"seed": seed, **({"bags_per_class": QUICK_BAGS} if quick else {})}
    if sizes:
        shared["sizes"] = _range(sizes)
    standard = not (quick or prevalence or classes or separation is not None)
    distance = 5.0 if separation is None else separation
    prevalences = tuple(prevalence) or ((0.2,) if quick else (0.2, 0.05))
    numbers = tuple(classes) or ((2,) if quick else (2, 3))
    asked = [Task(c, p, distance, **shared) for p in prevalences for c in numbers]
    hard = [Task(2, **HARD, **shared)] if standard else []
    return [*asked, *hard, Task(2, prevalences[0], distance, **shared, shuffled=True)]


def _range(sizes: Sequence[float]) -> tuple[int, int]:
    whole = all(float(size).is_integer() for size in sizes)
    if not whole or len(sizes) != 2 or not 2 <= sizes[0] <= sizes[1]:
        given = " ".join(f"{size:g}" for size in sizes)
        raise ConfigError(
            f"sizes {given}: must be two whole numbers, the fewest (2 or more) and the most instances a bag, as 10 30"
        )
    return int(sizes[0]), int(sizes[1])


def verify(
    models: Sequence[str] | None = None,
    on: Sequence[Task] | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    on_check: Callable[[Check], None] | None = None,
) -> list[Check]:
    """Train each model on each task and check it.

    Args:
        models: registered names; None: all. Yours, too, once it is registered.
        on: the tasks; None: `tasks(quick=quick)`.
        quick: fewer epochs.
        seed: of the trainings.
        on_check: told of each result.

    Raises:
        ConfigError: an unknown model, or a task out of range. What goes wrong within a model is its verdict.
    """
    names = list(models) if models is not None else list_models()
    if not names:
        raise ConfigError("verify: name at least one model")
    for name in names:
        find_entry(name)
    done = []
    for task in tasks(quick=quick, seed=seed) if on is None else on:
        data = _Data.load(task)
        for name in names:
            done.append(check_model(name, data, quick=quick, seed=seed))
            if on_check is not None:
                on_check(done[-1])
    return done


@dataclass(frozen=True, eq=False)
class _Data:
    """The bags of a task in their parts, and what is known of them."""

    task: Task
    classes: tuple[str, ...]
    train: BagDataset
    val: BagDataset
    test: BagDataset
    bounds: Bounds

    @classmethod
    def load(cls, task: Task) -> _Data:
        loaded = load_dataset("witness", **asdict(task))
        (split,) = loaded.splits
        train, val, test = (loaded.bags.subset(ids) for ids in (split.train, split.val, split.test))
        limits = bounds(task, len(test) // task.classes)
        return cls(task, loaded.info.classes, train, val, test, limits)

    def truth(self, index: int) -> np.ndarray:
        """The witnesses of a test bag."""
        instances = self.test[index].instance_labels
        assert instances is not None
        return instances.numpy().astype(bool)


def recipe(name: str, task: Task, *, quick: bool) -> TrainConfig:
    """The common recipe, and the small sizes of those options that the model has."""
    known = model_options(name)
    length = {"epochs": SHUFFLED_EPOCHS} if task.shuffled else QUICK if quick else {}
    options = {option: value for option, value in SMALL.items() if option in known}
    return TrainConfig.build({**RECIPE, **length, "model": name, "options": options})


def check_model(name: str, data: _Data, *, quick: bool = False, seed: int = 0) -> Check:
    """Train a model on the training bags and check its figures on the test bags.

    Whatever goes wrong in there, in code that may be anyone's, is the model's fault: others are still to be checked.
    """
    try:
        config = recipe(name, data.task, quick=quick)
        fit = fit_model(data.train, data.val, data.classes, config, seed=seed)
        said = predict(fit.model, data.test, device="cpu", precision="32")
        alone = weighs_alone(name, config.options, data.test[0].features.shape[1], len(data.classes))
        return judge(name, said, data, alone=alone, seconds=fit.seconds)
    except Exception as error:
        text = " ".join(str(error).split())  # one line: it stands in a table
        return Check(name, data.task, faults=(f"{type(error).__name__}{': ' if text else ''}{text}",))


def judge(name: str, said: Predictions, data: _Data, *, alone: bool = False, seconds: float = 0.0) -> Check:
    """Hold a model's predictions of the test bags against the bounds.

    Args:
        name: of the model.
        said: its predictions of the test bags.
        data: the task.
        alone: whether it weighs every instance by itself (`weighs_alone`).
        seconds: of its training.

    Raises:
        MetricError: predictions or attention that are no such thing.
    """
    from qgmil.evaluation.metrics import evaluate

    task, rng = data.task, np.random.default_rng([data.task.seed, 32])
    labels = labels_of(data.test, data.classes)
    probabilities = said.probabilities()
    f1 = evaluate(probabilities, labels, data.classes)["macro_f1"]
    low, high = data.bounds.f1_low, data.bounds.f1_linear if name in LINEAR else data.bounds.f1_high
    if task.shuffled or name in BLIND:
        low, high = chance_interval(rng, probabilities.argmax(axis=1), labels, task.classes)
    faults = _outside("macro F1", f1, low, high, task.shuffled or name in BLIND)
    found: dict[str, Any] = {}
    if said.attention is not None and not task.shuffled:
        found, more = _judge_attention(said, labels, data, rng, alone)
        faults += more
    return Check(name, task, f1, (low, high), **found, faults=tuple(faults), seconds=round(seconds, 2))


def _judge_attention(
    said: Predictions, labels: np.ndarray, data: _Data, rng: np.random.Generator, alone: bool
) -> tuple[dict[str, Any], list[str]]:
    assert said.attention is not None
    precision, top, uniform, even = [], [], [], []
    for i in np.flatnonzero(labels).tolist():
        weights, truth = said.attention[i], data.truth(i)
        precision.append(average_precision(weights, truth, rng))
        top.append(concentration(weights, said.bag_ids[i])["top_10pct"])
        tenth = -(-len(truth) // 10)
        uniform.append(tenth / len(truth))
        even.append(min(1.0, tenth / truth.sum()))
    ap, mass = float(np.mean(precision)), float(np.mean(top))
    random_low, random_high = data.bounds.ap_random
    low = (random_high if data.bounds.f1_typical >= EASY else random_low) if alone else 0.0
    note = "" if alone or ap >= random_low else AVOIDS
    limits = {"ap_bounds": (low, data.bounds.ap_high), "top_bounds": (float(np.mean(uniform)), 1.0)}
    faults = _outside("attention AP", ap, *limits["ap_bounds"])
    faults += _outside("top-10 % mass", mass, *limits["top_bounds"])
    return {"attention_ap": ap, "top_10pct": mass, "top_even": float(np.mean(even)), **limits, "note": note}, faults


def _outside(what: str, value: float | None, low: float, high: float, chance: bool = False) -> list[str]:
    slack = 1e-6
    if value is None or low - slack <= value <= high + slack:
        return []
    if chance:
        return [f"{what} {value:.3f} is {'below' if value < low else 'above'} chance"]
    return [f"{what} {value:.3f} is {'below' if value < low else 'above'} {low if value < low else high:.3f}"]
