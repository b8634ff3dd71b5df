"""Time is scaled by arithmetic from steps that are timed."""

from __future__ import annotations

import time

import pytest

from models.small import small_model
from qgmil.planning import timing
from qgmil.planning.timing import Rates, calibrate


def test_rates_are_found_again() -> None:
    work = [(128, 6e9, 1e8), (768, 4e10, 5e9), (2048, 1.2e11, 4e10)]
    rows = [(n, int(f), int(a), 0.01 + (f - a) / 3e11 + 2 * a / 3e11) for n, f, a in work]
    rates = Rates.fit(rows, "cpu")
    assert rates.seconds(1e13, 9e12) == pytest.approx(0.01 + 1e12 / 3e11 + 2 * 9e12 / 3e11, rel=0.01)
    assert rates.seconds(0, 0, steps=100) == pytest.approx(1.0, rel=0.05)
    assert "128, 768, 2,048 instances timed here" in rates.basis


def test_a_small_share_of_attention_is_not_made_responsible_for_noise() -> None:
    """The largest timed step was disturbed; attention is a hundredth of it and everything at full size."""
    rows = [(128, 10**10, 10**7, 0.05), (768, 6 * 10**10, 10**8, 0.3), (2048, 10**11, 10**9, 1.5)]
    rates = Rates.fit(rows, "cpu")
    assert rates.seconds_per_attention_flop <= 4 * rates.seconds_per_flop


def test_calibration_foresees_a_step_of_another_size() -> None:
    model = small_model("abmil_gated")
    rates = calibrate(model, largest=10**6, training=False, precision="32-true", device="cpu")
    assert rates.at[0] == 128 and len(rates.at) >= 2
    assert 0 < rates.seconds(10**7, 0) < 5


def test_calibration_is_short_and_no_larger_than_asked() -> None:
    started = time.perf_counter()
    rates = calibrate(small_model(), largest=200, training=True, precision="32-true", device="cpu")
    assert rates.at == (128, 200) and time.perf_counter() - started < 20


def test_calibration_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"largest": 10**6, "training": False, "precision": "32-true", "device": "cpu"}
    roomy = calibrate(small_model("abmil_gated"), **asked)
    monkeypatch.setattr(timing, "MOST_BYTES", 10)
    assert roomy.at == (128, 768, 2048, 5120)
    assert calibrate(small_model("abmil_gated"), **asked).at == (128, 768)
