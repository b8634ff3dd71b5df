"""Shared fixtures: small bags made on the spot, the shared data where it is present."""

from __future__ import annotations

import os
from pathlib import Path

# Small tensors are quickest on one thread; child processes inherit it, so that their results are the same bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

from cohort import make_cohort

VECTORS = Path(__file__).parent / "vectors"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(name: str) -> Path:
    """The manifest of a shared data set, or a skip that says why."""
    manifest = SHARED / name / "bags.csv"
    if not manifest.exists():
        pytest.skip(f"the shared data set {name} is not beside this checkout")
    return manifest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 16 patients with two bags each; not to be changed."""
    return make_cohort(tmp_path_factory.mktemp("cohort"), patients=16)
