"""A cohort that several benchmarks are about."""

from __future__ import annotations

from pathlib import Path

import pytest

from cohort import make_cohort


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 16 patients with two bags each."""
    return make_cohort(tmp_path_factory.mktemp("cohort"), patients=16)
