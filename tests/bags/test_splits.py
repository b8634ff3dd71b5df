"""Splits: patients never cross, classes are spread, seeds repeat, and leaks are named."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import shared_data
from qgmil.bags.manifest import BagRecord, Manifest, records_per_patient
from qgmil.bags.splits import Split, check_split, from_column, holdout, kfold
from qgmil.errors import SplitError


def cohort(sizes: list[int], labels: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Patients with these numbers of bags and one label each: ids, labels, groups."""
    rows = [
        (f"b{p}_{i}", label, f"p{p}")
        for p, (size, label) in enumerate(zip(sizes, labels, strict=True))
        for i in range(size)
    ]
    ids, found, groups = (list(column) for column in zip(*rows, strict=True))
    return ids, found, groups


def check_sound(split: Split, ids: list[str], groups: list[str]) -> None:
    check_split(split, dict(zip(ids, groups, strict=True)))
    assert sorted(split.train + split.val + split.test) == sorted(ids)
    assert split.train and split.val and split.test


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[str], list[str], list[str]]:
    classes = draw(st.integers(1, 3))
    per_class = [draw(st.integers(6, 14)) for _ in range(classes)]
    labels = [f"c{c}" for c, n in enumerate(per_class) for _ in range(n)]
    sizes = [draw(st.integers(1, 4)) for _ in labels]
    return cohort(sizes, labels)


@given(cohorts(), st.integers(0, 2**31))
def test_a_holdout_never_divides_a_patient_and_trains_on_every_class(data: tuple, seed: int) -> None:
    ids, labels, groups = data
    split = holdout(ids, labels, groups, seed=seed)
    check_sound(split, ids, groups)
    label_of = dict(zip(ids, labels, strict=True))
    for part in split.sides().values():
        assert {label_of[i] for i in part} == set(labels)
    assert split == holdout(ids, labels, groups, seed=seed)


@given(cohorts(), st.integers(2, 6), st.integers(0, 2**31))
def test_folds_test_every_bag_once_and_never_divide_a_patient(data: tuple, k: int, seed: int) -> None:
    ids, labels, groups = data
    splits = kfold(ids, labels, groups, k=k, seed=seed)
    assert [s.name for s in splits] == [f"fold_{i}" for i in range(k)]
    for split in splits:
        check_sound(split, ids, groups)
        label_of = dict(zip(ids, labels, strict=True))
        assert {label_of[i] for i in split.train} == set(labels)
    assert sorted(i for s in splits for i in s.test) == sorted(ids)
    assert splits == kfold(ids, labels, groups, k=k, seed=seed)


@given(st.integers(0, 1000))
def test_patients_of_several_classes_stay_together(seed: int) -> None:
    ids = [f"b{i}" for i in range(60)]
    groups = [f"p{i % 15}" for i in range(60)]
    labels = ["xyz"[(i * i) % 3] for i in range(60)]
    for split in (*kfold(ids, labels, groups, k=5, seed=seed), holdout(ids, labels, groups, seed=seed)):
        check_sound(split, ids, groups)


@pytest.mark.parametrize("seed", range(5))
def test_single_bags_are_stratified_exactly(seed: int) -> None:
    ids, labels, _ = cohort([1] * 100, ["a"] * 70 + ["b"] * 30)
    label_of = dict(zip(ids, labels, strict=True))

    def counts(part: tuple[str, ...]) -> tuple[int, int]:
        found = Counter(label_of[i] for i in part)
        return found["a"], found["b"]

    split = holdout(ids, labels, seed=seed)
    assert [counts(p) for p in (split.train, split.val, split.test)] == [(42, 18), (14, 6), (14, 6)]
    for fold in kfold(ids, labels, k=5, val=0.25, seed=seed):
        assert [counts(p) for p in (fold.train, fold.val, fold.test)] == [(42, 18), (14, 6), (14, 6)]


def test_shares_hold_for_patients_of_several_bags() -> None:
    ids, labels, groups = cohort([1, 2, 3, 4, 5] * 40, ["a", "b"] * 100)
    split = holdout(ids, labels, groups, val=0.1, test=0.3, seed=1)
    assert abs(len(split.test) / len(ids) - 0.3) < 0.01
    assert abs(len(split.val) / len(ids) - 0.1) < 0.01


def test_seeds_differ_and_every_patient_of_fitting_size_is_tested_at_some_seed() -> None:
    ids, labels, groups = cohort([3, 1, 1, 1, 1, 2, 1, 1, 1, 1], ["a"] * 5 + ["b"] * 5)
    splits = [holdout(ids, labels, groups, seed=s) for s in range(40)]
    assert len({s.test for s in splits}) > 5
    assert {i for s in splits for i in s.test} >= {
        i for i in ids if not i.startswith(("b0_", "b5_"))
    }  # these two are too large


def test_parts_can_be_left_out_on_purpose() -> None:
    ids, labels, groups = cohort([1] * 10, ["a", "b"] * 5)
    assert holdout(ids, labels, groups, val=0).val == ()
    assert holdout(ids, labels, groups, test=0).test == ()
    assert all(s.val == () for s in kfold(ids, labels, groups, k=2, val=0))


def test_rare_classes_stay_in_training() -> None:
    ids, labels, groups = cohort([1] * 12, ["a"] * 10 + ["rare"] + ["pair"])
    labels[10] = "rare"
    split = holdout(ids, labels, groups, seed=0)
    assert "b10_0" in split.train and "b11_0" in split.train
    ids, labels, groups = cohort([1] * 12, ["a"] * 10 + ["pair"] * 2)
    split = holdout(ids, labels, groups, seed=0)
    assert len({"b10_0", "b11_0"} & set(split.train)) == 1 and len({"b10_0", "b11_0"} & set(split.test)) == 1


def test_too_few_patients_are_counted() -> None:
    ids, labels, groups = cohort([2] * 9, ["a"] * 5 + ["b"] * 4)
    with pytest.raises(SplitError, match=r"class 'b' has 4 patients \(8 bags\), fewer than the 5 folds; use at most 4"):
        kfold(ids, labels, groups, k=5)
    assert len(kfold(ids, labels, groups, k=4)) == 4
    with pytest.raises(SplitError, match="9 patients cannot fill 10 folds"):
        kfold(ids, labels, groups, k=10)
    ids, labels, groups = cohort([5, 5], ["a", "a"])
    with pytest.raises(SplitError, match="2 patients cannot fill 3 parts"):
        holdout(ids, labels, groups)
    with pytest.raises(SplitError, match="3 patients do not allow"):
        holdout(*cohort([1, 1, 1], ["a", "b", "c"]))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"val": 0.5, "test": 0.5}, "less than 1"), ({"val": -0.1}, "at least 0"), ({"seed": -1}, "seed=-1")],
)
def test_options_out_of_range(options: dict, said: str) -> None:
    with pytest.raises(SplitError, match=said):
        holdout(*cohort([1] * 10, ["a", "b"] * 5), **options)


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(SplitError, match="bag 'x' is there more than once"):
        holdout(["x", "y", "x"], ["a", "a", "b"])
    with pytest.raises(SplitError, match="bag 'y' has no label"):
        holdout(["x", "y", "z"], ["a", None, "b"])
    with pytest.raises(SplitError, match="3 bag ids, 2 labels"):
        holdout(["x", "y", "z"], ["a", "b"])
    with pytest.raises(SplitError, match="k=1"):
        kfold(["x", "y"], ["a", "b"], k=1)


def test_leaks_are_named() -> None:
    groups = {"a": "P1", "b": "P2", "c": "P1", "d": "P3"}
    check_split(Split(("a", "c"), ("b",), ("d",)), groups)
    with pytest.raises(SplitError, match=r"patient 'P1' is on 2 sides \(train: 'a'; test: 'c'\)"):
        check_split(Split(("a",), ("b",), ("c", "d")), groups)
    with pytest.raises(SplitError, match="bag 'b' is in train and again in val"):
        check_split(Split(("a", "b"), ("b",), ("d",)), groups)
    with pytest.raises(SplitError, match="test names bag 'nobody', which is not in the table"):
        check_split(Split(("a",), ("b",), ("nobody",)), groups)


def records(values: list[str], patients: list[str] | None = None, **more: list[str]) -> list[BagRecord]:
    return [
        BagRecord(
            f"b{i}",
            "ab"[i % 2],
            patients[i] if patients else None,
            (),
            {"part": v, **{k: c[i] for k, c in more.items()}},
            i + 2,
        )
        for i, v in enumerate(values)
    ]


def test_a_column_of_sides_is_a_holdout() -> None:
    (split,) = from_column(records(["train", "Training", "valid", "test"]), "part")
    assert split == Split(("b0", "b1"), ("b2",), ("b3",), "part")


def test_a_missing_validation_part_is_carved_from_training() -> None:
    (split,) = from_column(records(["train"] * 20 + ["test"] * 4), "part", val=0.2, seed=3)
    assert (len(split.train), len(split.val), len(split.test)) == (16, 4, 4)
    assert Counter(int(i[1:]) % 2 for i in split.val) == {0: 2, 1: 2}
    assert from_column(records(["train"] * 3 + ["test"]), "part", val=0)[0].val == ()


def test_a_column_of_numbers_is_folds() -> None:
    splits = from_column(records([str(i % 5) for i in range(20)]), "part")
    assert [s.name for s in splits] == [f"fold_{i}" for i in range(5)]
    assert splits[2].test == ("b2", "b7", "b12", "b17")
    assert all(s.val and not set(s.val) & set(s.test) for s in splits)


def test_several_columns_are_as_many_splits() -> None:
    rows = records(["train", "val", "test"], fold_1=["test", "train", "val"])
    splits = from_column(rows, ["part", "fold_1"])
    assert [s.test for s in splits] == [("b2",), ("b0",)]


def test_columns_that_cannot_be_used_are_named() -> None:
    with pytest.raises(
        SplitError, match=r"column 'part': bag 'b1' \(line 3\) has 'holdout'; expected train, val or test"
    ):
        from_column(records(["train", "holdout", "test"]), "part")
    with pytest.raises(SplitError, match=r"no column 'fold'.*'part'"):
        from_column(records(["train", "test"]), "fold")
    with pytest.raises(SplitError, match="column 'part': no bag is in test"):
        from_column(records(["train", "train"]), "part")
    with pytest.raises(SplitError, match="all bags are in fold 3"):
        from_column(records(["3", "3"]), "part")
    leaky = records(["train", "train", "test"], ["p", "q", "p"])
    with pytest.raises(SplitError, match="patient 'p' is on 2 sides"):
        from_column(leaky, "part")
    assert from_column(leaky, "part", check=False, val=0)[0].test == ("b2",)


def test_a_split_on_which_the_rows_of_a_merged_patient_disagree_names_the_patient() -> None:
    rows = records(["train", "train", "test", "test"], ["p", "q", "p", "r"], fold=["0", "1", "0", "1"])
    merged, problems = records_per_patient([replace(r, label="a") for r in rows])
    assert not problems and [r.bag_id for r in merged] == ["p", "q", "r"]
    for check in (True, False):
        with pytest.raises(SplitError, match="column 'part': the rows of patient 'p' have 'train', 'test'; a patient"):
            from_column(merged, "part", check=check)
    assert [s.test for s in from_column(merged, "fold", val=0)] == [("p",), ("q", "r")]
    uneven = records(["train", "test"])
    del uneven[1].extra["part"]
    with pytest.raises(SplitError, match=r"no column 'part' .*bag 'b1' has none"):
        from_column(uneven, "part")


@pytest.mark.shared
def test_the_official_parts_of_glas_leak_patients() -> None:
    manifest = Manifest.read(shared_data("glas"))
    for r in manifest.records:
        r.extra["side"] = "train" if r.extra["official_part"] == "train" else "test"
    with pytest.raises(SplitError, match=r"is on 2 sides .*and 10 more patients"):
        from_column(manifest.records, "side")
    splits = kfold(manifest.bag_ids, manifest.labels, manifest.groups, k=5, seed=0)
    for split in splits:
        check_sound(split, list(manifest.bag_ids), list(manifest.groups))
        assert {manifest.labels[manifest.bag_ids.index(i)] for i in split.test} == {"benign", "malignant"}
