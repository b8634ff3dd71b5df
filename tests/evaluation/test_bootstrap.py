"""The bootstrap, and the weighted metrics under it, which must equal scikit-learn's."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn import metrics as sk

from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.bootstrap import Interval, _patients, _resamples, bootstrap_interval, mean_interval
from qgmil.evaluation.metrics import evaluate
from qgmil.evaluation.weighted import METRICS, Sample


def predictions(seed: int = 0, n: int = 60, c: int = 3, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(c), rng.integers(0, c, n - c)])
    p = rng.dirichlet(np.ones(c), n) + 0.3 * np.eye(c)[labels]
    p = np.round(p * 5) / 5 + 0.01 if ties else p
    return p / p.sum(1, keepdims=True), labels


@pytest.mark.parametrize("c", [2, 3])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_weighted_equals_evaluating_the_resample(metric: str, c: int, ties: bool) -> None:
    p, y = predictions(c=c, n=80, ties=ties)
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, 80, (5, 80))
    weights = np.stack([np.bincount(rows, minlength=80) for rows in drawn]).astype(float)
    got = METRICS[metric](Sample(p, y, 8), weights)
    want = [evaluate(p[rows], y[rows], [str(k) for k in range(c)])[metric] for rows in drawn]
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_weighted_equals_sklearn_with_sample_weights() -> None:
    p, y = predictions(n=100)
    w = np.random.default_rng(2).integers(0, 4, (6, 100)).astype(float)
    sample = Sample(p, y, 10)
    for metric, score in {
        "macro_f1": lambda v: sk.f1_score(y, p.argmax(1), average="macro", sample_weight=v),
        "balanced_accuracy": lambda v: sk.balanced_accuracy_score(y, p.argmax(1), sample_weight=v),
        "kappa_quadratic": lambda v: sk.cohen_kappa_score(y, p.argmax(1), weights="quadratic", sample_weight=v),
        "nll": lambda v: sk.log_loss(y, p, sample_weight=v),
        "average_precision": lambda v: sk.average_precision_score(np.eye(3)[y], p, sample_weight=v),
        "auroc": lambda v: np.mean([sk.roc_auc_score(y == k, p[:, k], sample_weight=v) for k in range(3)]),
    }.items():
        np.testing.assert_allclose(METRICS[metric](sample, w), [score(v) for v in w], atol=1e-12, err_msg=metric)


def test_undefined_resamples_are_nan_not_zero() -> None:
    p, y = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])
    w = np.array([[2.0, 0.0], [1.0, 1.0]])
    for metric in ("macro_f1", "balanced_accuracy", "auroc", "average_precision", "kappa"):
        values = METRICS[metric](Sample(p, y, 1), w)
        assert np.isnan(values[0]) and values[1] == 1.0, metric


def test_whole_patients_are_drawn() -> None:
    patients = _patients(["b", "a", "b", "c", "a"], 5)
    for weights in _resamples(patients, 50, 0):
        assert weights.shape == (50, 5)
        assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 4]).all()
        assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_seed_decides() -> None:
    p, y = predictions()
    args = (p, y, range(60), ["a", "b", "c"], ("macro_f1", "auroc", "ece"))
    one = bootstrap_interval(*args, n=200, seed=3)
    assert one == bootstrap_interval(*args, n=200, seed=3)
    assert one != bootstrap_interval(*args, n=200, seed=4)
    assert list(one) == ["macro_f1", "auroc", "ece"]
    alone = bootstrap_interval(*args[:4], "auroc", n=200, seed=3)
    assert alone == {"auroc": one["auroc"]}  # the resamples do not depend on what else is asked


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y = predictions()
    whole = bootstrap_interval(p, y, range(60), ["a", "b", "c"], n=100)
    monkeypatch.setattr("qgmil.evaluation.bootstrap.CHUNK", 60 * 7)
    assert bootstrap_interval(p, y, range(60), ["a", "b", "c"], n=100) == whole


def test_patients_give_wider_intervals_than_bags() -> None:
    p, y = predictions(n=40)
    p, y, patient = np.repeat(p, 5, axis=0), np.repeat(y, 5), np.repeat(np.arange(40), 5)

    def width(groups: np.ndarray) -> float:
        low, high, n_defined = bootstrap_interval(p, y, groups, ["a", "b", "c"], n=1000)["macro_f1"]
        assert low is not None and high is not None and n_defined == 1000
        return high - low

    assert width(patient) > 1.8 * width(np.arange(200))  # sqrt(5) in expectation


def test_interval_holds_the_estimate_and_widens_with_the_level() -> None:
    p, y = predictions(n=120)
    estimate = evaluate(p, y, ["a", "b", "c"])
    wide = bootstrap_interval(p, y, range(120), ["a", "b", "c"], ("macro_f1", "accuracy"), n=500, level=0.99)
    narrow = bootstrap_interval(p, y, range(120), ["a", "b", "c"], ("macro_f1", "accuracy"), n=500, level=0.8)
    for metric in wide:
        assert wide[metric][0] < narrow[metric][0] < estimate[metric] < narrow[metric][1] < wide[metric][1]


def test_undefined_resamples_are_counted() -> None:
    p = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]
    found = bootstrap_interval(p, [0, 0, 1, 0], list("wxyz"), ["a", "b"], ("macro_f1", "accuracy"), n=1000)
    assert found["accuracy"].n_defined == 1000
    share = 1 - (3 / 4) ** 4 - (1 / 4) ** 4  # the one bag of class b, and one of class a, are drawn
    assert abs(found["macro_f1"].n_defined / 1000 - share) < 0.05
    none = bootstrap_interval(p, [0, 0, 0, 0], list("wxyz"), ["a", "b"], n=10)
    assert none == {"macro_f1": Interval(None, None, 0)}


def test_two_thousand_resamples_of_two_hundred_bags_are_quick() -> None:
    p, y = predictions(n=200, c=6)
    start = time.perf_counter()
    bootstrap_interval(p, y, range(200), [str(k) for k in range(6)], "macro_f1", n=2000)
    assert time.perf_counter() - start < 3


P, Y = predictions(n=4, c=2)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (["a", "b"], "2 groups for 4 bags"),
        (["a", "a", "a", "a"], "patient a"),
        (["a", None, "b", "c"], "row 1"),
        (["a", "b", " ", "c"], "row 2"),
        ([1.0, 2.0, 3.0, np.nan], "row 3"),
    ],
)
def test_bad_groups(groups: list[object], says: str) -> None:
    with pytest.raises(MetricError, match=says):
        bootstrap_interval(P, Y, groups, ["a", "b"])


@pytest.mark.parametrize("options", [{"metrics": "f2"}, {"metrics": ()}, {"n": 0}, {"level": 1.0}, {"level": 95}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(ConfigError):
        bootstrap_interval(P, Y, list("abcd"), ["a", "b"], **options)


def test_the_interval_of_a_mean_draws_patients() -> None:
    """Two patients: their bags come together, so that the mean can only be a, b or the mean of all."""
    found = mean_interval([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"], n=500)
    assert (found.low, found.high) == (1.0, 5.0)
    same = mean_interval([2.0, 2.0, None], ["a", "b", "c"])
    assert same == (2.0, 2.0, 2000)
    assert mean_interval([1.0, 2.0, np.nan], ["a", "a", "b"]) == (None, None, 0)
    assert mean_interval([1.0, 3.0], ["a", "b"], seed=1) == mean_interval([1.0, 3.0], ["a", "b"], seed=1)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high, _ = mean_interval(rng.normal(size=60), range(60), n=300)
        assert low is not None and high is not None
        hits += low <= 0 <= high
    assert 178 <= hits <= 199  # 95 % of 200, with three standard errors of a binomial


def test_the_interval_of_a_mean_wants_a_patient_a_bag() -> None:
    with pytest.raises(MetricError, match="1 groups for 2 bags"):
        mean_interval([1.0, 2.0], ["a"])
    with pytest.raises(ConfigError, match="level"):
        mean_interval([1.0, 2.0], ["a", "b"], level=1.0)
