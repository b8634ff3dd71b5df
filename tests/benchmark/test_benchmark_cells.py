"""The grid of cells: its order, its splits, and what makes a cell another cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_benchmark import ABMIL, COMMON, values

from cohort import make_cohort
from qgmil.bags.dataset import open_bags
from qgmil.bags.splits import Split, kfold
from qgmil.benchmark.cells import PlannedCell, chosen, plan
from qgmil.benchmark.few import keep_patients
from qgmil.benchmark.spec import BenchmarkSpec
from qgmil.errors import ConfigError, SplitError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("data"), patients=16)


def cells(manifest: Path, **changes: Any) -> list[PlannedCell]:
    return plan(BenchmarkSpec.build(values(manifest, **changes)))


def test_every_model_sees_the_same_splits_and_comes_in_turn(manifest: Path) -> None:
    models = {"abmil": ABMIL, "mean": {"options": {"width": 8}}}
    found = cells(manifest, models=models, seeds=2, folds=3, seed=5)
    assert [(c.seed, c.fold, c.model) for c in found] == [
        (s, f, m) for s in (5, 6) for f in (0, 1, 2) for m in ("abmil", "mean")
    ]
    bags = open_bags(manifest)
    expected = kfold(bags.bag_ids, bags.labels, bags.groups, k=3, val=0.2, seed=5)
    assert all(c.split == expected[c.fold] for c in found)
    assert len({c.id for c in found}) == len({c.fingerprint for c in found}) == 12


def test_resplit_draws_folds_for_every_seed(manifest: Path) -> None:
    found = {(c.seed, c.fold): c for c in cells(manifest, seeds=2, resplit=True)}
    assert set(found[0, 0].split.test) != set(found[1, 0].split.test)
    assert set(found[1, 0].split.test) | set(found[1, 1].split.test) == set(found[0, 0].split.test) | set(
        found[0, 1].split.test
    )


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"common": {**COMMON, "device": "auto", "workers": 2, "checkpoint_seconds": 1.0, "in_memory": "no"}}, True),
        ({"common": {**COMMON, "epochs": 2, "label_smoothing": 0.1}}, True),  # its default
        ({"common": {**COMMON, "epochs": 3}}, False),
        ({"common": {**COMMON, "optimizer": "adam"}}, False),
        ({"models": {"abmil": {"options": {**ABMIL["options"], "width": 24}}}}, False),
        ({"models": {"abmil": {**ABMIL, "model": "abmil_gated"}}}, False),
        ({"seed": 1}, False),
        ({"val": 0.4}, False),
        ({"models": {"other": {**ABMIL, "model": "abmil"}}}, True),  # a label decides nothing
    ],
)
def test_what_decides_a_cell(manifest: Path, changes: dict[str, Any], same: bool) -> None:
    before, now = cells(manifest)[0], cells(manifest, **changes)[0]
    assert (before.fingerprint == now.fingerprint) is same


def test_another_table_is_another_cell(manifest: Path, tmp_path: Path) -> None:
    copy = make_cohort(tmp_path / "copy", patients=16)
    assert cells(copy)[0].fingerprint == cells(manifest)[0].fingerprint  # wherever it lies
    copy.write_text(copy.read_text().replace(",P00,", ",P99,"))
    assert cells(copy)[0].fingerprint != cells(manifest)[0].fingerprint


def test_feature_sets_share_the_splits(manifest: Path, tmp_path: Path) -> None:
    other = make_cohort(tmp_path / "other", patients=16, seed=1)
    lines = other.read_text().splitlines()
    other.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    datasets = {"two": {"features": {"a": {"manifest": str(manifest)}, "b": {"manifest": str(other)}}}}
    found = {(c.features, c.fold): c for c in cells(manifest, datasets=datasets)}
    assert found["a", 1].split == found["b", 1].split
    assert found["b", 1].id == "two.b/abmil/fold1_seed0"
    other.write_text(other.read_text().replace("p03_0", "p99_0", 1))
    with pytest.raises(ConfigError, match=r"datasets\.two: features\.b: its bags or labels .*p03_0"):
        cells(manifest, datasets=datasets)


def test_draws_are_other_bags_with_a_split_each(tmp_path: Path) -> None:
    write_cells(tmp_path / "pbc")
    options = {"prevalence": 0.2, "bags": 20, "sizes": [5, 8]}
    drawn = {"drawn": {"named": "pbc", "root": str(tmp_path), "options": options, "draws": True}}
    found = cells(tmp_path, datasets=drawn, folds=3, seeds=2)
    assert [(c.seed, c.fold, c.draw) for c in found] == [(s, f, f) for s in (0, 1) for f in range(3)]
    assert len({c.identity for c in found}) == 3
    assert all((len(c.split.train), len(c.split.val), len(c.split.test)) == (12, 4, 4) for c in found)
    again = cells(tmp_path, datasets=drawn, folds=3, seeds=2, resplit=True)
    assert [c.draw for c in again] == list(range(6))
    assert [c.identity for c in again[:3]] == [c.identity for c in found[:3]]


def write_cells(folder: Path) -> None:
    """A little PBC: 40 cells of each type."""
    folder.mkdir()
    types = ["neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil", "ig"]
    rows = [f"{i},c{i},{types[i % 6]},{types[i % 6]}" for i in range(240)]
    (folder / "cells.csv").write_text("\n".join(["row,cell_id,class,subtype", *rows]) + "\n")
    np.save(folder / "features_x.npy", np.random.default_rng(0).normal(size=(240, 6)).astype(np.float16))


def test_only_a_part_of_the_grid(manifest: Path) -> None:
    found = cells(manifest, seeds=2)
    assert [c.key for c in chosen(found, {"fold": ["1"], "seed": [0]})] == [found[1].key]
    with pytest.raises(ConfigError, match=r"--only model=qgmil: there is none; there are 'abmil'"):
        chosen(found, {"model": ["qgmil"]})
    with pytest.raises(ConfigError, match=r"there is no colour"):
        chosen(found, {"colour": ["red"]})


@given(
    labels=st.lists(st.sampled_from("abc"), min_size=8, max_size=40),
    per_patient=st.integers(1, 3),
    patients=st.integers(3, 8),
    seed=st.integers(0, 99),
)
def test_few_patients_keep_every_class_and_favour_none(
    labels: list[str], per_patient: int, patients: int, seed: int
) -> None:
    names = [f"b{i}" for i in range(len(labels))]
    groups = {b: f"p{i // per_patient}" for i, b in enumerate(names)}
    truth: dict[str, str | None] = dict(zip(names, labels, strict=True))
    split = Split(tuple(names[:-2]), (names[-2],), (names[-1],))
    few = keep_patients(split, truth, groups, patients, seed=seed, fold=0)
    assert (few.val, few.test) == (split.val, split.test)
    assert few == keep_patients(split, truth, groups, patients, seed=seed, fold=0)
    everyone, kept = ({groups[b] for b in part} for part in (split.train, few.train))
    assert len(kept) == min(patients, len(everyone))
    assert few.train == tuple(b for b in split.train if groups[b] in kept)  # whole patients, in order
    assert {truth[b] for b in few.train} == {truth[b] for b in split.train}


def test_too_few_patients_for_the_classes() -> None:
    split = Split(("a", "b", "c"), ("d",), ("e",))
    truth = {"a": "x", "b": "y", "c": "z", "d": "x", "e": "x"}
    with pytest.raises(SplitError, match=r"2 training patients cannot cover .*z"):
        keep_patients(split, truth, {b: b for b in truth}, 2, seed=0, fold=0)
