"""MILClassifier keeps scikit-learn's conventions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, cross_val_score

import qgmil
from cohort import SMALL, features
from qgmil.errors import BagError, ConfigError

OPTIONS = dict(SMALL)


def cohort(n: int = 30, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.array(["normal", "AML"])[np.arange(n) % 2]
    bags = [features(rng, int(rng.integers(4, 20)), label == "AML") for label in y]
    return bags, y, np.arange(n) // 2 * 2 + np.arange(n) % 2


def test_fit_and_predict() -> None:
    bags, y, groups = cohort()
    classifier = qgmil.MILClassifier(**OPTIONS).fit(bags, y, groups=groups)
    assert classifier.classes_.tolist() == ["AML", "normal"] and classifier.n_features_in_ == 12
    new, truth, _ = cohort(seed=7)
    p = classifier.predict_proba(new)
    assert p.shape == (30, 2) and p.sum(axis=1) == pytest.approx(1.0)
    assert (classifier.predict(new) == classifier.classes_[p.argmax(axis=1)]).all()
    assert classifier.score(new, truth) >= 0.8
    attention = classifier.attention(new)
    assert [len(a) for a in attention] == [len(b) for b in new]
    assert [a.sum() for a in attention] == pytest.approx([1.0] * 30, abs=1e-5)


def test_parameters_clone_and_repeat() -> None:
    classifier = qgmil.MILClassifier("abmil", lr=0.01, epochs=2, random_state=3)
    assert clone(classifier).get_params() == classifier.get_params()
    assert classifier.set_params(lr=0.02).lr == 0.02
    bags, y, _ = cohort()
    a, b = (clone(classifier).fit(bags, y).predict_proba(bags) for _ in range(2))
    assert np.array_equal(a, b)


def test_not_fitted() -> None:
    with pytest.raises(NotFittedError):
        qgmil.MILClassifier().predict(cohort()[0])


def test_labels_of_any_type_and_tensors_and_bags() -> None:
    bags, y, _ = cohort()
    codes = np.where(y == "AML", 7, 3)
    mixed = [torch.tensor(b) if i % 2 else qgmil.Bag(torch.tensor(b), bag_id=str(i)) for i, b in enumerate(bags)]
    classifier = qgmil.MILClassifier(**{**OPTIONS, "epochs": 2}).fit(mixed, codes)
    assert set(classifier.predict(bags)) <= {3, 7}


def test_works_in_cross_val_score_with_groups() -> None:
    bags, y, groups = cohort()
    array = np.empty(len(bags), dtype=object)
    array[:] = bags
    scores = cross_val_score(
        qgmil.MILClassifier("linear_probe"), array, y, groups=groups, cv=GroupKFold(3), error_score="raise"
    )
    assert scores.shape == (3,) and scores.mean() > 0.8


def test_without_validation() -> None:
    bags, y, _ = cohort()
    classifier = qgmil.MILClassifier(**{**OPTIONS, "epochs": 2}, val=0).fit(bags, y)
    assert len(classifier.history_) == 2 and classifier.temperature_ == 1.0


def test_save_and_load(tmp_path: Path) -> None:
    bags, y, _ = cohort()
    classifier = qgmil.MILClassifier(**{**OPTIONS, "epochs": 1}, calibrate=False).fit(bags, y)
    classifier.save(tmp_path)
    logits = qgmil.load_model(tmp_path)(torch.tensor(bags[0])).logits
    assert logits.softmax(-1)[0].tolist() == pytest.approx(classifier.predict_proba(bags[:1])[0].tolist(), abs=1e-6)


def test_errors_are_clear() -> None:
    bags, y, groups = cohort(6)
    with pytest.raises(BagError, match="6 bags, labels of shape"):
        qgmil.MILClassifier().fit(bags, y[:5])
    with pytest.raises(BagError, match="3 groups"):
        qgmil.MILClassifier().fit(bags, y, groups=groups[:3])
    with pytest.raises(ConfigError, match="one class only"):
        qgmil.MILClassifier().fit(bags, ["a"] * 6)
    with pytest.raises(BagError, match="bag '2' is empty"):
        qgmil.MILClassifier().fit([*bags[:2], bags[2][:0], *bags[3:]], y)
    with pytest.raises(BagError, match="'3'"):
        qgmil.MILClassifier().fit([*bags[:3], bags[3][:, :5], *bags[4:]], y)
    with pytest.raises(ConfigError, match="lr = -1"):
        qgmil.MILClassifier(lr=-1).fit(bags, y)
    with pytest.raises(ConfigError, match="no attention"):
        qgmil.MILClassifier("linear_probe", val=0).fit(bags, y).attention(bags)


class Series(list):  # type: ignore[type-arg]
    """Indexed by label, iterated by position, as a filtered table's column is."""

    def __getitem__(self, label: object) -> object:
        return list(self)[::-1][label]  # type: ignore[index]


def patients_of(monkeypatch: pytest.MonkeyPatch, bags: list[object], groups: object) -> list[str]:
    from qgmil.training import classifier

    seen: list[str] = []

    def holdout(ids: object, labels: object, patients: list[str], **options: object) -> None:
        seen.extend(patients)
        raise RuntimeError("seen enough")

    monkeypatch.setattr(classifier, "holdout", holdout)
    with pytest.raises(RuntimeError, match="seen enough"):
        qgmil.MILClassifier().fit(bags, [0, 1, 0], groups=groups)  # type: ignore[arg-type]
    return seen


def test_patients_are_taken_by_position_and_none_is_a_patient_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays: list[object] = [np.zeros((2, 3), np.float32) for _ in range(3)]
    assert patients_of(monkeypatch, arrays, Series("ABC")) == ["A", "B", "C"]
    assert patients_of(monkeypatch, arrays, ["A", None, None]) == ["A", "1", "2"]
    bags: list[object] = [qgmil.Bag(torch.zeros(2, 3), patient_id=p) for p in ("P1", "P1", None)]
    assert patients_of(monkeypatch, bags, None) == ["P1", "P1", "2"]


def test_more_mistakes_are_clear() -> None:
    bags, y, _ = cohort(6)
    with pytest.raises(BagError, match="bag 2 has no label: y is nan"):
        qgmil.MILClassifier().fit(bags, [0.0, 1.0, float("nan"), 1.0, 0.0, 1.0])
    with pytest.raises(BagError, match="bag 1 is no matrix of numbers"):
        qgmil.MILClassifier().fit([bags[0], [[1, 2], [3]], *bags[2:]], y)
    random = qgmil.MILClassifier(**{**OPTIONS, "epochs": 1}, random_state=None).fit(*cohort()[:2])
    assert random.n_features_in_ == 12
