"""Scores against instance truth: by hand, with ties, where nothing is defined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qgmil.attention.truth import agreement
from qgmil.errors import MetricError


def test_by_hand() -> None:
    found = agreement([0.1, 0.4, 0.2, 0.3], [0, 1, 0, 1])
    assert found is not None
    assert (found.auroc, found.average_precision, found.positives) == (1.0, 1.0, 2)
    assert found.enrichment == pytest.approx(0.7 / 0.5)


def test_ties_count_half_and_uniform_is_one() -> None:
    found = agreement([0.25] * 4, [0, 1, 0, 0])
    assert found is not None
    assert found.auroc == 0.5
    assert found.average_precision == 0.25
    assert found.enrichment == pytest.approx(1)


def test_which_labels_are_sought() -> None:
    found = agreement([0.1, 0.2, 0.3, 0.4], [0, 5, 7, 5], positives={7})
    assert found is not None
    assert found.positives == 1
    assert found.auroc == pytest.approx(2 / 3)


@pytest.mark.parametrize("truth", [[0, 0], [1, 1]])
def test_undefined_where_there_is_one_kind(truth: list[int]) -> None:
    assert agreement([0.5, 0.5], truth) is None


def test_scores_that_are_no_mass_have_no_enrichment() -> None:
    found = agreement([-3.0, 2.0], [0, 1], is_mass=False)
    assert found is not None
    assert (found.auroc, found.enrichment) == (1.0, None)


@given(arrays(np.float64, 12, elements=st.integers(0, 5)), arrays(np.int64, 12, elements=st.integers(0, 1)))
def test_auroc_is_the_share_of_ordered_pairs(scores: np.ndarray, truth: np.ndarray) -> None:
    found = agreement(scores, truth, is_mass=False)
    pairs = [(a > b) + (a == b) / 2 for a in scores[truth == 1] for b in scores[truth == 0]]
    assert (found is None) == (not pairs)
    if found is not None:
        assert found.auroc == pytest.approx(np.mean(pairs))


def test_lengths_and_numbers_are_checked() -> None:
    with pytest.raises(MetricError, match="instance labels"):
        agreement([0.5, 0.5], [1])
    with pytest.raises(MetricError, match="instance 1 is not finite"):
        agreement([0.5, np.inf], [1, 0])
