"""Which aggregators weigh each instance by itself."""

from __future__ import annotations

import pytest
import torch

from qgmil.benchmark.verify import SMALL
from qgmil.benchmark.weighing import weighs_alone
from qgmil.models.registry import find_entry, list_models, model_options


@pytest.mark.parametrize(("width", "classes"), [(16, 2), (16, 3), (40, 4)])
def test_which_models_weigh_instances_alone(width: int, classes: int) -> None:
    """By what the architecture can do, not by what one has learnt: training does not come into it."""
    found = set()
    before = torch.get_rng_state()
    for name in list_models():
        if not find_entry(name).cls.__module__.startswith("qgmil."):  # another package's, or a broken one of a test's
            continue
        options = {option: value for option, value in SMALL.items() if option in model_options(name)}
        if weighs_alone(name, options, width, classes):
            found.add(name)
    assert found == {"abmil", "abmil_gated", "clam_sb", "clam_mb", "acmil"}
    assert torch.equal(before, torch.get_rng_state())
