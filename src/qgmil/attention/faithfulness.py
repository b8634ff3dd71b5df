"""Is attention an explanation? Remove, or keep only, the most attended instances, and predict again.

Deletion: without the most attended share of the bag. Insertion: of that share alone. Both against removing and keeping
as many instances in random orders (after Petsiuk et al. 2018, arXiv 1806.07421, for the instances of a bag). The curve
is the probability of the class that the whole bag is given, and its figure is the mean height: the area under it over
the shares, divided by their span. A faithful score's deletion curve lies below random order's, its insertion above.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from qgmil.attention.inside import evaluating
from qgmil.bags.bag import Bag
from qgmil.bags.dataset import collate
from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.bootstrap import Interval, mean_interval
from qgmil.evaluation.calibration import expand_binary, softmax
from qgmil.evaluation.checks import FloatArray, check_count
from qgmil.evaluation.comparison import wilcoxon_signed_rank
from qgmil.models.base import Aggregator

#: Shares of the bag that are removed, or kept.
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8)
#: Instances in one batch of bags that are predicted again.
BATCH = 50_000
ALPHA = 0.05
#: Patients that the signed-rank test needs to reach ALPHA at all: with five, the smallest p is 2 / 2^5 = .0625.
ENOUGH = 6


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Probabilities of one class, of one bag with instances removed or kept.

    Args:
        shares: ``(S,)`` of the bag; ceil(share N) instances, but at least one stays.
        deletion: ``(S,)``, without the most attended share.
        insertion: ``(S,)``, of the most attended share alone; at share 0 the most attended instance alone.
        random_deletion, random_insertion: ``(R, S)``, the same in R random orders.
        target: the class, an index.
        probability: of the whole bag.
    """

    shares: FloatArray
    deletion: FloatArray
    insertion: FloatArray
    random_deletion: FloatArray
    random_insertion: FloatArray
    target: int
    probability: float

    @property
    def deletion_area(self) -> float:
        """Mean height of the deletion curve."""
        return _area(self.shares, self.deletion)

    @property
    def insertion_area(self) -> float:
        """Mean height of the insertion curve."""
        return _area(self.shares, self.insertion)

    @property
    def random_deletion_area(self) -> float:
        """Mean height of the deletion curves in random order."""
        return _area(self.shares, self.random_deletion.mean(axis=0))

    @property
    def random_insertion_area(self) -> float:
        """Mean height of the insertion curves in random order."""
        return _area(self.shares, self.random_insertion.mean(axis=0))

    @property
    def deletion_advantage(self) -> float:
        """Random order's deletion area minus the score's: above 0, what is attended to carries the prediction."""
        return self.random_deletion_area - self.deletion_area

    @property
    def insertion_advantage(self) -> float:
        """The score's insertion area minus random order's: above 0, what is attended to is enough for it."""
        return self.insertion_area - self.random_insertion_area


def faithfulness(
    models: Sequence[Aggregator],
    bag: Bag,
    scores: ArrayLike,
    *,
    target: int | None = None,
    shares: Sequence[float] = SHARES,
    repeats: int = 5,
    seed: int = 0,
    device: str = "cpu",
) -> Faithfulness:
    """Deletion and insertion of one bag; predictions are the mean over `models`.

    Instances with equal scores are taken in the order of their rows. Random orders depend on (seed, bag id) alone, so
    that several scores of a bag meet the same ones.

    Args:
        scores: ``(N,)``, high = attended.
        target: class whose probability is followed; None: that of the highest probability for the whole bag.
        shares: increasing, in 0 <= share < 1.
        repeats: random orders R.

    Raises:
        ConfigError: no models, repeats below 1, shares that do not increase, or a class that there is not.
        MetricError: scores of another length, or not finite (the bag is named).
    """
    check_count(repeats, "repeats")
    if not models:
        raise ConfigError("faithfulness needs at least one model to predict with")
    at, values, n = _checked_shares(shares), _checked_scores(scores, bag), len(bag)
    counts = [math.ceil(share * n - 1e-9) for share in at]
    rng = generator(seed, bag.bag_id)
    orders = [np.argsort(-values, kind="stable"), *(rng.permutation(n) for _ in range(repeats))]
    wanted: list[NDArray[np.int64]] = [np.arange(n)]
    for order in orders:
        wanted += [np.sort(order[min(k, n - 1) :]) for k in counts]
        wanted += [np.sort(order[: max(k, 1)]) for k in counts]
    said = predict_subsets(models, bag, wanted, device=device)
    classes = said.shape[1]
    if target is not None and not 0 <= target < classes:
        raise ConfigError(f"target class {target} is not one of the models' {classes}, 0 to {classes - 1}")
    of = int(said[0].argmax()) if target is None else target
    curves = said[1:, of].reshape(len(orders), 2, len(counts))
    return Faithfulness(
        shares=at,
        deletion=curves[0, 0],
        insertion=curves[0, 1],
        random_deletion=curves[1:, 0],
        random_insertion=curves[1:, 1],
        target=of,
        probability=float(said[0, of]),
    )


def _checked_shares(shares: Sequence[float]) -> FloatArray:
    at = np.asarray(shares, dtype=np.float64)
    if at.ndim != 1 or len(at) < 2 or at[0] < 0 or at[-1] >= 1 or not (np.diff(at) > 0).all():
        raise ConfigError(f"shares must increase from at least 0 to less than 1, got {list(shares)}")
    return at


def _checked_scores(scores: ArrayLike, bag: Bag) -> FloatArray:
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(bag),):
        raise MetricError(f"bag {bag.bag_id!r}: scores of shape {values.shape} for {len(bag)} instances")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise MetricError(f"bag {bag.bag_id!r}: the score of instance {row} is {values[row]}")
    return values


def generator(*of: object) -> np.random.Generator:
    """Random numbers that depend on these things alone (a seed, a bag's id), on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, of)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def predict_subsets(
    models: Sequence[Aggregator], bag: Bag, subsets: Sequence[NDArray[np.int64]], *, device: str = "cpu"
) -> FloatArray:
    """Mean probabilities ``(S, C)`` over models of parts of a bag, given by their rows; equal parts are asked once."""
    keys = [rows.tobytes() for rows in subsets]
    distinct = dict(zip(keys, subsets, strict=True))
    total = np.zeros(0)
    for model in models:
        logits = []
        with torch.inference_mode(), evaluating(model, device):
            for batch in _batches(list(distinct.values())):
                packed = collate([bag.take(torch.from_numpy(rows)) for rows in batch]).to(device)
                logits.append(model(packed).logits.double().cpu().numpy())
        p = softmax(expand_binary(np.concatenate(logits)))
        total = p if total.size == 0 else total + p
    place = {key: i for i, key in enumerate(distinct)}
    return (total / len(models))[[place[key] for key in keys]]


def _batches(subsets: Sequence[NDArray[np.int64]]) -> Iterator[list[NDArray[np.int64]]]:
    batch: list[NDArray[np.int64]] = []
    size = 0
    for rows in subsets:
        if batch and size + len(rows) > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(rows)
        size += len(rows)
    yield batch


def _area(shares: FloatArray, curve: FloatArray) -> float:
    return float(np.trapezoid(curve, shares) / (shares[-1] - shares[0]))


@dataclass(frozen=True)
class Advantage:
    """A score against random order, over bags.

    Args:
        area, random_area: means over bags.
        advantage: mean over bags, above 0 is faithful.
        interval: 95 % bootstrap interval of it over patients.
        p: two-sided, Wilcoxon signed-rank over patients; None where it is undefined.
        bags, patients: how many.
    """

    area: float
    random_area: float
    advantage: float
    interval: Interval
    p: float | None
    bags: int
    patients: int

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "no better" than random order: the interval and the test must agree.

        "too few" below `ENOUGH` patients, of whom no test could say anything else than "no better".
        """
        if self.patients < ENOUGH:
            return "too few"
        low, high = self.interval.low, self.interval.high
        if low is None or high is None or self.p is None or self.p >= ALPHA:
            return "no better"
        return "better" if low > 0 else "worse" if high < 0 else "no better"


def advantage(
    areas: Iterable[float], random_areas: Iterable[float], patients: Iterable[object], *, kind: str, seed: int = 0
) -> Advantage:
    """Sum up one kind of curve, "deletion" (low is good) or "insertion" (high is good), over bags.

    Raises:
        ConfigError: another kind.
        MetricError: no bags, or lists of different lengths.
    """
    if kind not in ("deletion", "insertion"):
        raise ConfigError(f"unknown kind of curve {kind!r}: choose deletion or insertion")
    own, other, who = list(areas), list(random_areas), list(patients)
    if not own or not len(own) == len(other) == len(who):
        raise MetricError(f"{len(own)} areas, {len(other)} of random order and {len(who)} patients: give one a bag")
    gains = (np.array(own) - np.array(other)) * (1 if kind == "insertion" else -1)
    of_patient: dict[object, list[float]] = {}
    for patient, gain in zip(who, gains, strict=True):
        of_patient.setdefault(patient, []).append(float(gain))
    test = wilcoxon_signed_rank([float(np.mean(g)) for g in of_patient.values()])
    return Advantage(
        area=float(np.mean(own)),
        random_area=float(np.mean(other)),
        advantage=float(gains.mean()),
        interval=mean_interval(gains, who, seed=seed),
        p=test.p,
        bags=len(own),
        patients=len(of_patient),
    )


def verdict(deletion: Advantage, insertion: Advantage) -> str:
    """What both curves say, in words."""
    parts = [_sentence(deletion, "removing the most attended instances lowers"), ""]
    parts[1] = _sentence(insertion, "keeping only the most attended instances holds up")
    both = {deletion.verdict, insertion.verdict}
    if "too few" in both:
        patients = min(deletion.patients, insertion.patients)
        head = f"Too few patients to tell ({patients}; the test needs {ENOUGH})"
    elif both == {"better"}:
        head = "Faithful: the prediction rests on what is attended to"
    elif both == {"better", "worse"} and deletion.verdict == "better":
        head = "Divided: the prediction needs what is attended to, but that alone says less than random instances do"
    elif both == {"better", "worse"}:
        head = (
            "Divided: what is attended to is enough for the prediction, but it is needed less than random instances are"
        )
    elif "worse" in both:
        head = "Misleading: the attended instances carry the prediction less than random ones do"
    elif "better" in both:
        head = "Faithful by one of two measures"
    else:
        head = "No better than random: a picture, not an explanation"
    return f"{head}. {parts[0]} {parts[1]}"


def _sentence(found: Advantage, what: str) -> str:
    low, high = found.interval.low, found.interval.high
    interval = "" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]"
    p = "p undefined" if found.p is None else "p < .001" if found.p < 0.001 else f"p = {found.p:.3f}"
    than = {"better": "more than", "worse": "less than", "no better": "no more than"}.get(found.verdict)
    if than is None:
        than = "more than" if found.advantage > 0 else "less than" if found.advantage < 0 else "as much as"
        than = f"on average {than}"
    figures = f"mean {found.area:.3f} against {found.random_area:.3f}, advantage {found.advantage:+.3f}{interval}, {p}"
    start = f"{what[0].upper()}{what[1:]} the predicted class's probability {than} at random"
    return f"{start} ({figures}, {found.bags} bags)."
