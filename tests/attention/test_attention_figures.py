"""The attention-mass figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qgmil.attention.concentration import SHARES, mass_curves, mean_mass_curve
from qgmil.attention.figures import mass_curve_figure, save_figure
from qgmil.errors import ConfigError, MetricError


@pytest.fixture
def bags(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.dirichlet(np.ones(n)) for n in (5, 50, 500)]


@pytest.mark.parametrize("log_share", [False, True])
def test_draws_every_model(bags: list[np.ndarray], tmp_path: Path, log_share: bool) -> None:
    curves = {"QG-MIL": mass_curves(bags), "ABMIL": mean_mass_curve(bags)}
    fig = mass_curve_figure(curves, log_share=log_share, title="All bags")
    labels = [line.get_label() for line in fig.axes[0].lines]
    assert labels == ["uniform", "QG-MIL", "ABMIL"] and len(fig.axes[0].collections) == 1
    drawn = fig.axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(drawn, mean_mass_curve(bags)[SHARES > 0 if log_share else slice(None)])
    assert save_figure(fig, tmp_path / "mass.png").stat().st_size > 1000


def test_refusals(bags: list[np.ndarray]) -> None:
    with pytest.raises(MetricError, match="no attention-mass curves"):
        mass_curve_figure({})
    with pytest.raises(ConfigError, match="'QG-MIL'"):
        mass_curve_figure({"QG-MIL": mass_curves(bags, [0, 0.5, 1])})
    with pytest.raises(MetricError, match="'QG-MIL'"):
        mass_curve_figure({"QG-MIL": [0.0, 2.0]}, grid=[0, 1])
