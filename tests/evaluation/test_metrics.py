"""`evaluate` and `reliability_curve`: against hand computation and scikit-learn; undefined cases; refusals."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from qgmil.errors import ConfigError, MetricError, QGMILError
from qgmil.evaluation.metrics import calibration_bins, evaluate, reliability_curve


def predictions(seed: int = 0, n: int = 60, c: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(c), rng.integers(0, c, n - c)])
    p = rng.dirichlet(np.ones(c), n) + 0.3 * np.eye(c)[labels]
    return p / p.sum(1, keepdims=True), labels


def names(c: int) -> list[str]:
    return [f"class {i}" for i in range(c)]


def test_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    m = evaluate(p, [0, 0, 1, 1], ["normal", "tumour"])
    # predicted 0 1 1 1: normal TP 1 FN 1 FP 0 -> 2/3; tumour TP 2 FP 1 -> 4/5
    assert m["f1_per_class"] == pytest.approx({"normal": 2 / 3, "tumour": 4 / 5})
    assert m["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert m["accuracy"] == m["balanced_accuracy"] == 0.75
    assert m["auroc"] == m["average_precision"] == 1.0
    assert m["kappa"] == pytest.approx((0.75 - 0.5) / 0.5)
    assert m["confusion"] == [[1, 1], [0, 2]]
    assert m["brier"] == pytest.approx(2 * (0.01 + 0.36 + 0.04 + 0.09) / 4)
    assert m["nll"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean())
    assert m["mean_confidence"] == pytest.approx(0.75)
    assert m["ece_bins"] == 1 and m["ece"] == pytest.approx(0.0)  # one bin: 0.75 confidence, 0.75 accuracy
    assert m["classwise_ece"] == pytest.approx(abs(0.45 - 0.5))
    assert m["n"] == 4 and m["n_per_class"] == {"normal": 2, "tumour": 2} and m["undefined"] == {}


@pytest.mark.parametrize("c", [2, 3, 6])
def test_against_sklearn(c: int) -> None:
    p, y = predictions(c=c, n=90)
    m, called = evaluate(p, y, names(c)), p.argmax(1)
    assert next(iter(m)) == "macro_f1"
    assert m["macro_f1"] == pytest.approx(sk.f1_score(y, called, average="macro"))
    assert m["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, called))
    assert m["kappa"] == pytest.approx(sk.cohen_kappa_score(y, called))
    assert m["kappa_quadratic"] == pytest.approx(sk.cohen_kappa_score(y, called, weights="quadratic"))
    assert m["nll"] == pytest.approx(sk.log_loss(y, p))
    assert m["confusion"] == sk.confusion_matrix(y, called).tolist()
    positive = p[:, 1] if c == 2 else p
    assert m["auroc"] == pytest.approx(sk.roc_auc_score(y, positive, multi_class="ovr"))
    onehot = np.eye(c)[y]
    expected = sk.average_precision_score(y, p[:, 1]) if c == 2 else sk.average_precision_score(onehot, p)
    assert m["average_precision"] == pytest.approx(expected)
    if c == 2:
        assert m["brier"] == pytest.approx(2 * sk.brier_score_loss(y, p[:, 1]))
    assert json.loads(json.dumps(m, allow_nan=False)) == m


def test_kappa_weights_is_recorded_and_changes_no_number() -> None:
    p, y = predictions()
    plain, quadratic = evaluate(p, y, names(3)), evaluate(p, y, names(3), kappa_weights="quadratic")
    assert quadratic.pop("kappa_weights") == "quadratic" and plain.pop("kappa_weights") is None
    assert plain == quadratic


def test_absent_class_is_undefined_with_a_reason_and_without_warnings() -> None:
    p = np.array([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m = evaluate(p, [0, 0, 1], ["a", "b", "rare"])
    for key in ("macro_f1", "balanced_accuracy", "auroc", "average_precision"):
        assert m[key] is None and "'rare'" in m["undefined"][key]
    assert m["f1_per_class"] == pytest.approx({"a": 2 / 3, "b": 1.0, "rare": None})
    assert "f1_per_class.rare" in m["undefined"] and len(m["undefined"]) == 5
    assert m["kappa"] is not None and m["ece"] is not None
    json.dumps(m, allow_nan=False)


def test_one_class_only() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m = evaluate([[0.9, 0.1], [0.8, 0.2]], [0, 0], ["a", "b"])
    assert m["kappa"] is None and m["kappa_quadratic"] is None and m["auroc"] is None and m["accuracy"] == 1.0
    assert "'a'" in m["undefined"]["kappa"]


def test_class_never_predicted_scores_zero() -> None:
    m = evaluate([[0.9, 0.1], [0.8, 0.2]], [0, 1], ["a", "b"])
    assert m["f1_per_class"]["b"] == 0.0 and m["macro_f1"] == pytest.approx((2 / 3) / 2) and not m["undefined"]


def test_nll_is_clipped() -> None:
    m = evaluate([[1.0, 0.0], [0.0, 1.0]], [1, 1], ["a", "b"])
    assert m["nll"] == pytest.approx(-np.log(1e-12) / 2)


def test_float32_rows_and_rounded_rows_are_accepted() -> None:
    p, y = predictions()
    whole = evaluate(p, y, names(3))
    assert evaluate(p.astype(np.float32), y.astype(np.uint8), names(3))["nll"] == pytest.approx(whole["nll"], abs=1e-5)
    assert evaluate(p.round(4), y, names(3))["nll"] == pytest.approx(whole["nll"], abs=1e-3)


@given(st.integers(0, 10_000))
def test_order_of_bags_does_not_matter(seed: int) -> None:
    p, y = predictions(seed, n=40)
    p = np.round(p * 4) / 4 + 1e-3  # many ties
    p /= p.sum(1, keepdims=True)
    order = np.random.default_rng(seed).permutation(len(y))
    one, other = evaluate(p, y, names(3)), evaluate(p[order], y[order], names(3))
    for key in ("macro_f1", "auroc", "ece", "classwise_ece", "brier"):
        assert one[key] == pytest.approx(other[key], abs=1e-12)


@given(st.lists(st.tuples(st.integers(11, 20), st.integers(1, 4)), min_size=1, max_size=6), st.integers(1, 20))
def test_perfectly_calibrated_has_no_error(levels: list[tuple[int, int]], n_bins: int) -> None:
    p, y = [], []
    for twentieth, copies in levels:  # of 20 bags at confidence k/20 exactly k are right
        p += [[1 - twentieth / 20, twentieth / 20]] * 20 * copies
        y += ([1] * twentieth + [0] * (20 - twentieth)) * copies
    curve = reliability_curve(p, y, n_bins)
    np.testing.assert_allclose(curve.confidence, curve.accuracy, atol=1e-12)
    assert curve.count.sum() == len(y)
    assert evaluate(p, y, ["a", "b"])["ece"] == pytest.approx(0, abs=1e-12)


def test_reliability_curve_by_hand_and_agrees_with_ece() -> None:
    p = np.array([[0.4, 0.6], [0.3, 0.7], [0.2, 0.8], [0.1, 0.9]])
    curve = reliability_curve(p, [1, 0, 1, 1], 2)
    np.testing.assert_allclose(curve.confidence, [0.65, 0.85])
    np.testing.assert_allclose(curve.accuracy, [0.5, 1.0])
    assert curve.count.tolist() == [2, 2]
    p, y = predictions(n=200)
    curve = reliability_curve(p, y)
    assert len(curve.count) == 15 and set(curve.count) <= {13, 14}
    gap = (curve.count * np.abs(curve.accuracy - curve.confidence)).sum() / 200
    assert evaluate(p, y, names(3))["ece"] == pytest.approx(gap)


def test_overconfident_ties_share_one_bin() -> None:
    curve = reliability_curve([[0.0, 1.0]] * 30 + [[0.4, 0.6]] * 10, [1] * 20 + [0] * 10 + [1] * 10, 15)
    assert curve.count.tolist() == [10, 30] and curve.accuracy[1] == pytest.approx(2 / 3)


def test_bins_follow_the_number_of_bags() -> None:
    assert [calibration_bins(n) for n in (1, 19, 20, 149, 150, 10_000)] == [1, 1, 2, 14, 15, 15]


GOOD = [[0.5, 0.5], [0.2, 0.8]]


@pytest.mark.parametrize(
    ("p", "y", "says"),
    [
        ([[0.5, np.nan], [0.2, 0.8]], [0, 1], "row 0, class 1"),
        ([[0.5, 0.5], [0.2, 0.9]], [0, 1], "row 1 sum to 1.1"),
        ([[1.5, -0.5], [0.2, 0.8]], [0, 1], "row 0, class 0 is 1.5"),
        ([0.5, 0.5], [0, 1], "expand_binary"),
        ([[1.0], [1.0]], [0, 0], "expand_binary"),
        (np.zeros((0, 2)), [], "no rows"),
        (GOOD, [0, 2], "label of row 1 is 2"),
        (GOOD, [0, -1], "label of row 1 is -1"),
        (GOOD, [0], "shape (2,)"),
        (GOOD, [0.0, 1.0], "integer"),
        (GOOD, ["a", "b"], "integer"),
        ([["x", "y"]], [0], "not a matrix of numbers"),
    ],
)
def test_bad_predictions_are_named(p: object, y: object, says: str) -> None:
    with pytest.raises(MetricError) as caught:
        evaluate(p, y, ["a", "b"])  # type: ignore[arg-type]
    assert says in str(caught.value) and isinstance(caught.value, QGMILError | ValueError)


@pytest.mark.parametrize("classes", [["a"], ["a", "a"], ["a", "b", "c"], "ab"])
def test_bad_classes(classes: list[str]) -> None:
    with pytest.raises(ConfigError, match="class"):
        evaluate(GOOD, [0, 1], classes)


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="kappa_weights"):
        evaluate(GOOD, [0, 1], ["a", "b"], kappa_weights="linear")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_bins"):
        reliability_curve(GOOD, [0, 1], 0)
