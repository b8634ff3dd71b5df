"""Witness: made bags whose truth is known, of every instance and of the best that any model can do.

The instances of a bag are Gaussian noise N(0, I). In a bag of class c > 0 a share of them, the witnesses, is drawn
around a mean of their own: N(m_c, I), the m_c orthogonal and `separation` long. Class 0 has no witnesses. Sizes are
drawn in groups, one bag of each class, so that the number of instances says nothing about the label. With `shuffled`
the labels of each part are dealt anew whatever is in the bags: nothing can be learnt then. `qgmil verify` trains on it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset
from qgmil.bags.splits import Split
from qgmil.bags.stratify import generator
from qgmil.datasets.base import DatasetInfo, NamedDataset
from qgmil.errors import ConfigError

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}

INFOS = (
    DatasetInfo(
        "witness",
        "made bags of Gaussian instances with known witnesses",
        "which kind of witness a bag holds, if any; the truth of each instance is known",
        ("0", "1"),
        None,
        "none needed (made here)",
        "the standard assumption of multiple instances: Foulds and Frank: A review of multi-instance learning "
        "assumptions, The Knowledge Engineering Review 25 (2010)",
        "nowhere: it is made when it is loaded",
        "made with the bags: 60/20/20, the same for the same seed",
        "no files",
    ),
)


def find(info: DatasetInfo, root: Path | None) -> Path | None:
    """This file, which is all that it needs."""
    return Path(__file__)


def load(
    info: DatasetInfo,
    path: Path,
    *,
    prevalence: float = 0.2,
    classes: int = 2,
    bags_per_class: int = 60,
    sizes: tuple[int, int] = (20, 60),
    separation: float = 4.0,
    width: int = 16,
    seed: int = 0,
    shuffled: bool = False,
) -> NamedDataset:
    """Make the bags.

    Args:
        prevalence: share of witnesses in a bag of a class above 0; at least one instance.
        classes: how many, called "0", "1", ...; class 0 has no witnesses.
        bags_per_class: in all parts together, 60/20/20.
        sizes: fewest and most instances a bag.
        separation: length of the means of the witnesses, in standard deviations of an instance.
        width: features of an instance.
        seed: of the means and of every draw; the same seed gives the same bags.
        shuffled: deal the labels of each part anew, independent of the bags. Instance labels stay true.

    Raises:
        ConfigError: a value out of range.
    """
    _check(prevalence, classes, bags_per_class, sizes, separation, width)
    means = witness_means(classes, width, separation, seed)
    sides: dict[str, tuple[str, ...]] = {}
    made: list[Bag] = []
    for number, (side, groups) in enumerate(_groups(bags_per_class).items()):
        rng = generator(seed, 21, number)
        labels = np.tile(np.arange(classes), groups)
        bags = []
        for size in rng.integers(sizes[0], sizes[1] + 1, size=groups).tolist():
            bags += [draw_bag(rng, size, prevalence, c, means) for c in range(classes)]
        if shuffled:
            labels = generator(seed, 22, number).permutation(labels)
        part = [
            _bag(f"{side}_{i:04d}", x, truth, str(label))
            for i, ((x, truth), label) in enumerate(zip(bags, labels.tolist(), strict=True))
        ]
        sides[side] = tuple(bag.bag_id for bag in part)
        made += part
    split = Split(sides["train"], sides["val"], sides["test"], "split")
    card = replace(info, classes=tuple(str(c) for c in range(classes)), bags=len(made))
    notes = ("the labels are shuffled: nothing can be learnt",) if shuffled else ()
    return NamedDataset(card, BagDataset.from_bags(made), lambda: (split,), path, ("split",), notes=notes)


def witness_means(classes: int, width: int, separation: float, seed: int) -> np.ndarray:
    """The means of the witnesses ``(classes - 1, width)``: orthogonal, in random directions, `separation` long."""
    directions, _ = np.linalg.qr(generator(seed, 20).normal(size=(width, classes - 1)))
    return separation * directions.T


def witness_count(size: int, prevalence: float) -> int:
    """Witnesses in a bag of `size` instances: its share of them, at least one."""
    return max(1, min(size, round(prevalence * size)))


def draw_bag(
    rng: np.random.Generator, size: int, prevalence: float, label: int, means: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The features ``(size, width)`` and the truth ``(size,)`` of one bag, witnesses anywhere in it."""
    x = rng.normal(size=(size, means.shape[1]))
    truth = np.zeros(size, dtype=np.int64)
    places = rng.permutation(size)  # also for class 0, so that classes use as many random numbers
    if label:
        truth[places[: witness_count(size, prevalence)]] = 1
        x[truth == 1] += means[label - 1]
    return x, truth


def _bag(name: str, x: np.ndarray, truth: np.ndarray, label: str) -> Bag:
    return Bag(torch.from_numpy(x.astype(np.float32)), label, name, instance_labels=torch.from_numpy(truth))


def _groups(bags_per_class: int) -> dict[str, int]:
    """Bags of each class in each part, which add up."""
    val, test = (max(1, round(SHARES[side] * bags_per_class)) for side in ("val", "test"))
    return {"train": bags_per_class - val - test, "val": val, "test": test}


def _check(
    prevalence: float, classes: int, bags_per_class: int, sizes: tuple[int, ...], separation: float, width: int
) -> None:
    if not 0 < prevalence < 1:
        raise ConfigError(f"prevalence={prevalence} must be above 0 and below 1")
    if classes < 2 or width < classes - 1:
        raise ConfigError(
            f"classes={classes} must be at least 2, and width={width} at least classes - 1: each class but the first "
            "has a direction of its own"
        )
    if bags_per_class < 5:
        raise ConfigError(f"bags_per_class={bags_per_class} must be at least 5, so that every part has some")
    if len(sizes) != 2 or not 2 <= sizes[0] <= sizes[1]:
        raise ConfigError(f"sizes={sizes} must be the fewest (2 or more) and the most instances of a bag")
    if not 0 <= separation < np.inf:
        raise ConfigError(f"separation={separation} must be a number of at least 0")
