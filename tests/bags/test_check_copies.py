"""The same content in two patients: whole bags, and instances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qgmil.bags.check import CheckReport, check_bags
from qgmil.bags.check.facts import ALL_ROWS, sum_up
from qgmil.bags.check.rows import RowIndex, Shared
from qgmil.bags.readers import BagFile


def rows(count: int, seed: int, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def table(folder: Path, bags: dict[str, tuple[str, np.ndarray]]) -> Path:
    """Bags of a patient each; the labels alternate."""
    lines = ["bag_id,patient_id,label,features"]
    for i, (name, (patient, values)) in enumerate(bags.items()):
        np.save(folder / f"{name}.npy", values)
        lines.append(f"{name},{patient},{'xy'[i % 2]},{name}.npy")
    (folder / "bags.csv").write_text("\n".join(lines) + "\n")
    return folder / "bags.csv"


def others(count: int = 8) -> dict[str, tuple[str, np.ndarray]]:
    return {f"o{i}": (f"O{i}", rows(9, 100 + i)) for i in range(count)}


def warned(report: CheckReport, kind: str) -> list[str]:
    return [w.message for w in report.warnings if w.kind == kind]


def test_instances_in_bags_of_two_patients_are_found(tmp_path: Path) -> None:
    a, b = rows(40, 1), rows(20, 2)
    b[5:12] = a[30:37]
    report = check_bags(table(tmp_path, {"a": ("P", a), "b": ("Q", b), **others()}))
    (text,) = warned(report, "shared")
    assert "bags 'a' and 'b' of different patients have 7 instances in common (35% of the smaller)" in text
    assert "labels differ" in text and "training and one in the test" in text
    assert report.ok and not warned(report, "identical")


def test_they_are_found_in_other_order_and_precision(tmp_path: Path) -> None:
    a = rows(40, 1)
    b = a[::-1].astype(np.float16)
    report = check_bags(table(tmp_path, {"a": ("P", a), "b": ("Q", b), **others()}))
    assert "have 40 instances in common (100% of the smaller)" in warned(report, "shared")[0]
    assert not warned(report, "identical")  # which is said of the same bytes


def test_one_patient_may_share_with_itself(tmp_path: Path) -> None:
    a = rows(40, 1)
    report = check_bags(table(tmp_path, {"a": ("P", a), "b": ("P", a[:20]), **others()}))
    assert not warned(report, "shared")


def test_identical_bags_are_said_once_with_what_it_means(tmp_path: Path) -> None:
    a = rows(12, 1)
    report = check_bags(table(tmp_path, {"a": ("P", a), "b": ("Q", a), "c": ("Q", a), **others()}))
    (text,) = warned(report, "identical")
    assert "'a', 'b', 'c' have identical features; their labels differ; they belong to different patients" in text
    assert not warned(report, "shared")


def test_background_that_many_patients_share_is_no_leak(tmp_path: Path) -> None:
    bags = others(8)
    blank = rows(1, 7)[0]
    for _, values in bags.values():
        values[2] = blank
        values[3] = 0  # and zeros are nobody's
    report = check_bags(table(tmp_path, bags))
    assert not warned(report, "shared")
    assert warned(report, "common")[0].startswith("some instances are the same in many patients")
    assert len(warned(report, "zero")) == 1


def test_narrow_rows_meet_by_chance(tmp_path: Path) -> None:
    bags = {f"b{i}": (f"P{i}", np.arange(8, dtype=np.float32).reshape(4, 2) + 2 * i) for i in range(4)}
    assert not warned(check_bags(table(tmp_path, bags)), "shared")


def test_the_files_of_a_bag_count_together(tmp_path: Path) -> None:
    a, b = rows(40, 1), rows(20, 2)
    b[:4] = a[30:34]
    manifest = table(tmp_path, {"a": ("P", a), "b": ("Q", b), **others()})
    np.save(tmp_path / "a1.npy", a[:25])
    np.save(tmp_path / "a2.npy", a[25:])
    manifest.write_text(manifest.read_text().replace(",a.npy", ",a1.npy;a2.npy"))
    assert "4 instances in common (20% of the smaller)" in warned(check_bags(manifest), "shared")[0]


def hashes(values: np.ndarray) -> np.ndarray:
    return sum_up(BagFile(torch.from_numpy(values)), "x").hashes


def test_rows_that_float16_cannot_hold_are_still_told_apart() -> None:
    large, small = rows(20, 1) * 1e6, rows(20, 1) * 1e-9
    for values in (large, small):
        assert len(hashes(values)) == 20
        assert not set(hashes(values)) & set(hashes(values * np.float32(1.01)))
    values = rows(20, 1)
    assert set(hashes(values)) == set(hashes(values.astype(np.float16)))
    assert len(hashes(np.repeat(values, 3, axis=0))) == 20


def test_memory_is_bounded_and_shares_are_still_estimated() -> None:
    rng = np.random.default_rng(0)
    index = RowIndex(most=5_000)
    common = rng.integers(0, 2**64, 10_000, dtype=np.uint64)
    for bag in range(10):
        own = rng.integers(0, 2**64, 10_000, dtype=np.uint64)
        both = np.unique(np.concatenate([own, common]) if bag in (3, 8) else own)
        index.add(bag, both[both <= np.uint64(index.bound)], len(both))
        assert index._kept <= 5_000
    assert index.sampled and index.bound < ALL_ROWS // 16
    pairs, many = index.shared(str)
    assert not many and [(p.first, p.second) for p in pairs] == [(3, 8)]
    assert pairs[0].of == 20_000 and pairs[0].rows == pytest.approx(10_000, rel=0.15)


def test_an_index_without_rows_finds_nothing() -> None:
    index = RowIndex()
    assert index.shared(str) == ([], [])
    index.add(0, np.array([1, 5], np.uint64), 2)
    index.add(1, np.array([5, 9], np.uint64), 2)
    assert index.shared(str) == ([Shared(0, 1, 1, 2)], []) and index.shared(lambda bag: "same") == ([], [])
