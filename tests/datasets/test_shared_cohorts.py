"""The named data sets on the real data beside the checkout: exact counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from conftest import SHARED, shared_data
from qgmil.bags.dataset import open_bags
from qgmil.bags.manifest import Manifest
from qgmil.bags.splits import from_column
from qgmil.datasets import load_dataset, write_manifest
from qgmil.errors import ConfigError

pytestmark = pytest.mark.shared


def test_deepapl_has_82_patients_and_13999_cells() -> None:
    shared_data("deepapl")
    loaded = load_dataset("deepapl", SHARED)
    assert Counter(loaded.bags.labels) == {"AML": 60, "APL": 22}
    sizes = [len(loaded.bags[i]) for i in range(len(loaded.bags))]
    assert (len(sizes), sum(sizes), min(sizes), max(sizes)) == (82, 13_999, 59, 821)
    assert (loaded.info.bags, loaded.bags.classes, loaded.bags.width) == (82, loaded.info.classes, 1280)
    assert len(loaded.splits) == 5
    assert all(Counter(loaded.bags.subset(s.test).labels)["APL"] in (4, 5) for s in loaded.splits)
    with pytest.raises(ConfigError, match="holds the Discovery cohort only"):
        load_dataset("deepapl", SHARED, cohort="Validation")


def test_glas_has_165_images_of_16_patients_of_whom_11_are_in_both_parts() -> None:
    shared_data("glas")
    loaded = load_dataset("glas", SHARED)
    assert (len(loaded.bags), len(set(loaded.bags.groups))) == (165, 16)
    assert Counter(loaded.bags.labels) == {"benign": 74, "malignant": 91}
    (published,) = loaded.published
    assert (len(published.train), len(published.test)) == (85, 80)
    assert "the published parts share 11 of 16 patients: do not use them to report results" in loaded.notes
    patient = dict(zip(loaded.bags.bag_ids, loaded.bags.groups, strict=True))
    for split in loaded.splits:
        sides = [{patient[i] for i in ids} for ids in split.sides().values()]
        assert not sides[0] & sides[1]
        assert not (sides[0] | sides[1]) & sides[2]


def test_pbc_has_6000_cells_from_which_bags_are_made(tmp_path: Path) -> None:
    if not (SHARED / "pbc" / "cells.csv").exists():
        pytest.skip("the shared data set pbc is not beside this checkout")
    loaded = load_dataset("pbc", SHARED, bags=20, prevalence=0.05)
    truth = [int(loaded.bags[i].instance_labels.sum()) for i in range(20)]  # type: ignore[union-attr]
    sizes = [len(loaded.bags[i]) for i in range(20)]
    assert all(50 <= size <= 200 for size in sizes)
    assert truth[0::2] == [0] * 10
    assert truth[1::2] == [round(0.05 * size) for size in sizes[1::2]]
    cells = [set(loaded.bags[i].instance_ids or ()) for i in range(20)]
    side = {i: s for s, ids in loaded.splits[0].sides().items() for i in ids}
    seen: dict[str, str] = {}
    for bag_id, ids in zip(loaded.bags.bag_ids, cells, strict=True):
        for cell in ids:
            assert seen.setdefault(cell, side[bag_id]) == side[bag_id]
    out = write_manifest("pbc", SHARED, tmp_path / "bags.csv", bags=20, prevalence=0.05)
    assert from_column(Manifest.read(out).records, "split") == loaded.splits
    again = open_bags(out)[3]
    assert again.features.dtype == loaded.bags[3].features.dtype
    assert again.features.equal(loaded.bags[3].features)
    assert tuple(again.instance_ids or ()) == loaded.bags[3].instance_ids
    with pytest.raises(ConfigError, match="the val part has"):
        load_dataset("pbc", SHARED, bags=20, sizes=(450, 450))
