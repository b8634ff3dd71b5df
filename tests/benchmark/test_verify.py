"""`qgmil verify`: sound aggregators pass, broken ones do not, and shuffled labels give chance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qgmil.bags.bag import PackedBags
from qgmil.benchmark.verify import AVOIDS, Check, _Data, check_model, judge, tasks, verify
from qgmil.benchmark.witness_bounds import Task
from qgmil.errors import ConfigError, MetricError
from qgmil.models import registry
from qgmil.models.abmil import ABMIL
from qgmil.models.output import BagOutput
from qgmil.training.predict import Predictions
from qgmil.training.rows import labels_of

EASY = Task(classes=2, bags_per_class=40)
HARD = Task(classes=2, bags_per_class=60, prevalence=0.1, separation=1.0)


@pytest.fixture(scope="module")
def easy() -> _Data:
    return _Data.load(EASY)


@pytest.fixture(scope="module")
def hard() -> _Data:
    return _Data.load(HARD)


class Inverted(ABMIL):
    """Its heat map shows what it does not attend to."""

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        out = super().forward_packed(bags, return_attention)
        if out.attention is not None:
            parts = [1 / (a + 1e-6) for a in bags.unpack(out.attention)]
            out.attention = torch.cat([a / a.sum() for a in parts])
        return out


class Deaf(ABMIL):
    """It learns from other labels than it is given."""

    def loss(self, output: BagOutput, labels: torch.Tensor, **options: Any) -> torch.Tensor:
        return super().loss(output, torch.randint_like(labels, 2), **options)


class Peeking(ABMIL):
    """It knows where in the table bags of the second class are."""

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        out = super().forward_packed(bags, return_attention)
        known = torch.tensor([int(i[-1]) % 2 for i in bags.bag_ids])
        out.logits = out.logits + 100 * torch.eye(2)[known]
        return out


class Unnormalised(ABMIL):
    """Its attention is no distribution."""

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        out = super().forward_packed(bags, return_attention)
        out.attention = None if out.attention is None else 2 * out.attention
        return out


class Raising(ABMIL):
    """It has a bug."""

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        raise RuntimeError("shapes (2, 3)\n  and (4, 5) do not fit")


class Failing(ABMIL):
    """It trains, and fails where its attention is asked for, without a word."""

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        assert not return_attention
        return super().forward_packed(bags, return_attention)


@pytest.fixture(autouse=True)
def _broken(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.model_entries()
    for cls in (Inverted, Deaf, Peeking, Unnormalised, Raising, Failing):
        monkeypatch.setitem(registry._ENTRIES, cls.__name__.lower(), registry.Entry(cls, {}, "broken"))


def said(data: _Data, right: float = 1.0, invert: bool = False, uniform: bool = False) -> Predictions:
    """Predictions that are right with that share, and attention on the witnesses, or off them, or uniform."""
    labels = labels_of(data.test, data.classes)
    wrong = np.arange(len(labels)) >= round(right * len(labels))
    chosen = np.where(wrong, 1 - labels, labels)
    attention = []
    for i in range(len(labels)):
        truth = data.truth(i)
        weights = np.ones(len(truth)) if uniform else 1e-3 + (truth != invert) + 1e-4 * np.arange(len(truth))
        attention.append((weights / weights.sum()).astype(np.float32))
    sizes = tuple(len(a) for a in attention)
    return Predictions(data.test.bag_ids, 4.0 * np.eye(2)[chosen], tuple(attention), sizes)


def test_right_predictions_and_attention_on_the_witnesses_pass(easy: _Data) -> None:
    check = judge("mine", said(easy), easy, alone=True)
    assert (check.faults, check.note) == ((), "")
    assert check.macro_f1 == check.attention_ap == 1.0
    assert check.top_10pct == pytest.approx(check.top_even, abs=0.02)
    row = check.row()
    assert (row["verdict"], row["macro_f1_high"], row["ap" if "ap" in row else "attention_ap"]) == ("ok", 1.0, 1.0)


def test_attention_that_avoids_the_witnesses_is_a_fault_where_instances_are_weighed_alone(easy: _Data) -> None:
    check = judge("mine", said(easy, invert=True), easy, alone=True)
    assert len(check.faults) == 1
    assert check.faults[0].startswith("attention AP 0.")
    assert " is below 0." in check.faults[0]
    in_context = judge("mine", said(easy, invert=True), easy, alone=False)
    assert (in_context.faults, in_context.note) == ((), AVOIDS)


def test_uniform_attention_does_not_find_witnesses_and_holds_a_tenth(easy: _Data) -> None:
    check = judge("mine", said(easy, uniform=True), easy, alone=True)
    assert "attention AP" in check.faults[0]
    assert check.top_bounds is not None
    assert check.top_10pct == pytest.approx(check.top_bounds[0], abs=1e-6)


def test_chance_and_worse_than_chance_are_too_little(easy: _Data) -> None:
    assert "is below 0." in judge("mine", said(easy, 0.5), easy).faults[0]
    assert "macro F1 0.000 is below" in judge("mine", said(easy, 0.0), easy).faults[0]


def test_training_is_long_enough_for_rare_witnesses() -> None:
    """The slowest of the presets, without QK norm and gate, needs more than a dozen epochs for three classes."""
    data = _Data.load(Task(classes=3, prevalence=0.05))
    check = check_model("qgmil_minimal", data)
    assert check.faults == () and check.macro_f1 is not None and check.macro_f1 > 0.5


def test_better_than_bayes_is_too_much(hard: _Data) -> None:
    assert hard.bounds.f1_high < 0.95
    check = judge("mine", said(hard), hard)
    assert check.faults[0] == f"macro F1 1.000 is above {hard.bounds.f1_high:.3f}"
    assert hard.bounds.f1_linear <= hard.bounds.f1_high


def test_the_linear_probe_is_held_against_the_best_of_the_means() -> None:
    data = _Data.load(Task(classes=2, prevalence=0.05, separation=4.0))
    assert data.bounds.f1_linear < data.bounds.f1_high
    assert judge("linear_probe", said(data), data).f1_bounds[1] == data.bounds.f1_linear
    assert judge("mean", said(data), data).f1_bounds[1] == data.bounds.f1_high


def test_controls_must_be_at_chance_and_so_must_all_be_on_shuffled_labels(easy: _Data) -> None:
    assert judge("majority", said(easy), easy).faults == ("macro F1 1.000 is above chance",)
    assert judge("bag_size", said(easy, 0.5), easy).faults == ()
    shuffled = replace(easy, task=replace(EASY, shuffled=True))
    assert judge("mine", said(shuffled), shuffled).faults == ("macro F1 1.000 is above chance",)
    assert judge("mine", said(shuffled, 0.6), shuffled).faults == ()
    assert judge("mine", said(shuffled, 0.0), shuffled).faults == ("macro F1 0.000 is below chance",)


def test_sound_models_pass_when_they_are_trained() -> None:
    checks = verify(["abmil", "mean", "majority", "bag_size", "linear_probe"], [EASY], quick=True)
    assert [(c.model, c.faults) for c in checks if c.faults] == []
    assert [c.attention_ap is not None for c in checks] == [True, False, False, False, False]
    assert checks[0].seconds > 0  # closed forms take less than the clock shows


@pytest.mark.parametrize(
    ("name", "said"),
    [("inverted", "attention AP 0."), ("deaf", "macro F1 0."), ("unnormalised", "MetricError: attention of bag")],
)
def test_broken_models_are_caught_when_they_are_trained(name: str, said: str, easy: _Data) -> None:
    check = check_model(name, easy, quick=True)
    assert any(fault.startswith(said) for fault in check.faults), check


def test_any_exception_in_a_model_is_its_fault_and_the_others_are_still_checked() -> None:
    seen: list[Check] = []
    checks = verify(["raising", "failing", "majority"], [EASY], quick=True, on_check=seen.append)
    assert seen == checks
    assert [c.model for c in checks] == ["raising", "failing", "majority"]
    assert checks[0].faults == ("RuntimeError: shapes (2, 3) and (4, 5) do not fit",)
    assert checks[0].row()["verdict"] == "RuntimeError: shapes (2, 3) and (4, 5) do not fit"
    assert checks[0].macro_f1 is None
    assert [f.split(":")[0] for f in checks[1].faults] == ["AssertionError"]
    assert checks[2].faults == ()
    assert checks[2].macro_f1 is not None


def test_an_interrupt_is_no_fault_of_a_model(easy: _Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> BagOutput:
        raise KeyboardInterrupt

    monkeypatch.setattr(Raising, "forward_packed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_model("raising", easy, quick=True)


def test_a_model_that_knows_the_answers_is_caught(hard: _Data) -> None:
    check = check_model("peeking", hard, quick=True)
    assert "is above" in check.faults[0]


def test_shuffled_labels_give_chance() -> None:
    seen: list[Check] = []
    checks = verify(["abmil", "linear_probe"], [replace(EASY, shuffled=True)], quick=True, on_check=seen.append)
    assert checks == seen
    for check in checks:
        assert check.faults == ()
        low, high = check.f1_bounds
        assert low <= check.macro_f1 <= high < 0.95  # type: ignore[operator]


def test_the_tasks() -> None:
    quick = tasks(quick=True)
    assert [(t.classes, t.prevalence, t.shuffled) for t in quick] == [(2, 0.2, False), (2, 0.2, True)]
    whole = tasks()
    assert len(whole) == 6
    assert [t.shuffled for t in whole] == [False] * 5 + [True]
    asked = tasks(prevalence=(0.1, 0.3), classes=(4,), separation=3.0, seed=7)
    assert [(t.classes, t.prevalence, t.separation, t.seed) for t in asked] == [
        (4, 0.1, 3.0, 7),
        (4, 0.3, 3.0, 7),
        (2, 0.1, 3.0, 7),
    ]
    assert {t.sizes for t in whole} == {(10, 30)}
    larger = tasks(sizes=(50, 60))
    assert larger == [replace(t, sizes=(50, 60)) for t in whole]


def test_sizes_are_those_of_the_bags_and_of_the_bounds(easy: _Data) -> None:
    (task, _) = tasks(quick=True, sizes=(4, 6))
    data = _Data.load(task)
    assert {len(bag) for part in (data.train, data.val, data.test) for bag in part} == {4, 5, 6}
    assert data.bounds.ap_random[1] > easy.bounds.ap_random[1]  # one witness of five is found more easily by chance


@pytest.mark.parametrize(
    ("sizes", "said"), [((5,), "sizes 5: "), ((9, 5), "sizes 9 5: "), ((1, 5), "sizes 1 5: "), ((2, 3, 4), "2 3 4: ")]
)
def test_sizes_that_are_no_range_are_named(sizes: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=f"{said}must be two whole numbers, the fewest"):
        tasks(sizes=sizes)


def test_mistakes_are_named(easy: _Data) -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'abmill': did you mean abmil"):
        verify(["abmill"], [EASY])
    with pytest.raises(ConfigError, match="name at least one model"):
        verify([], [EASY])
    with pytest.raises(ConfigError, match=r"prevalence=2.0 must be above 0"):
        verify(["abmil"], [replace(EASY, prevalence=2.0)])
    with pytest.raises(MetricError, match="sums to 2"):
        doubled = said(easy)
        judge("mine", replace(doubled, attention=tuple(2 * a for a in doubled.attention or ())), easy)
