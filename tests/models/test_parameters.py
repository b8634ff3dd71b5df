"""Sizes of the presets: those of the release, to the last parameter."""

from __future__ import annotations

import pytest

import qgmil

RELEASED = {
    "qgmil": 5_120_386,
    "qgmil_elementwise": 5_378_434,
    "qgmil_no_gate": 5_116_290,
    "qgmil_layernorm": 5_122_818,
    "qgmil_no_qknorm": 5_120_258,
    "qgmil_minimal": 5_118_722,
    "qgmil_deep": 17_719_042,
    "qgmil_light": 2_461_058,
}


@pytest.mark.parametrize("name", RELEASED)
def test_preset_has_the_released_number_of_parameters(name: str) -> None:
    model = qgmil.create_model(name, in_dim=1024, num_classes=1)
    assert sum(p.numel() for p in model.parameters()) == RELEASED[name]
    assert model.num_parameters() == RELEASED[name]
    assert not list(model.buffers())


def test_no_released_preset_is_missing() -> None:
    ours = {name for name in qgmil.list_models() if name.startswith("qgmil")}
    assert ours == set(RELEASED)


@pytest.mark.parametrize("name", RELEASED)
def test_initial_weights_are_truncated_normal(name: str) -> None:
    """Section 5: truncated normal of 0.02 for weights, zero biases, norms at one."""
    model = qgmil.create_model(name, in_dim=64, num_classes=2)
    for key, value in model.state_dict().items():
        if value.ndim >= 2:
            if value.numel() > 10_000:
                assert abs(float(value.std()) - 0.02) < 0.001, key
                assert abs(float(value.mean())) < 0.001, key
        else:
            assert bool((value == (1.0 if key.endswith("weight") else 0.0)).all()), key
