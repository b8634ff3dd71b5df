"""What can be read and yet deserves a look: features without variance, strange scales, coordinates, locks, splits."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from qgmil.bags.check import CheckReport, check_bags
from qgmil.bags.check.facts import Moments, sum_up
from qgmil.bags.check.locks import age
from qgmil.bags.problems import Problem
from qgmil.bags.readers import BagFile

WIDTH = 32
Bags = dict[str, np.ndarray]


def noise(rows: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng([seed, rows]).normal(size=(rows, width)).astype(np.float32)


def some(count: int = 10) -> Bags:
    """Bags b0, b1 ... of 8, 9 ... instances."""
    return {f"b{i}": noise(8 + i) for i in range(count)}


def write(folder: Path, bags: Bags, columns: dict[str, list[str]] | None = None, **attributes: dict[str, Any]) -> Path:
    """A table of npy files; bags that have `attributes` become TRIDENT files with coordinates in a row."""
    rows = ["bag_id,label,features" + "".join(f",{c}" for c in columns or {})]
    for i, (name, values) in enumerate(bags.items()):
        if name in attributes:
            given = dict(attributes[name])
            places = given.pop("coords", np.stack([np.arange(len(values)), np.zeros(len(values))], 1).astype(np.int64))
            with h5py.File(folder / f"{name}.h5", "w") as file:
                file["features"] = values
                file["coords"] = places
                file["coords"].attrs.update(given)
        else:
            np.save(folder / f"{name}.npy", values)
        cells = "".join(f",{values[i]}" for values in (columns or {}).values())
        rows.append(f"{name},{'xy'[i % 2]},{name}.{'h5' if name in attributes else 'npy'}{cells}")
    (folder / "bags.csv").write_text("\n".join(rows) + "\n")
    return folder / "bags.csv"


def warned(report: CheckReport, kind: str) -> list[str]:
    return [w.message for w in report.warnings if w.kind == kind]


def test_ordinary_bags_give_no_warning(tmp_path: Path) -> None:
    report = check_bags(write(tmp_path, some()))
    assert report.ok and report.warnings == []
    assert report.largest == pytest.approx(max(float(np.abs(v).max()) for v in some().values()))
    assert report.sizes == list(range(8, 18)) and report.width == WIDTH


def test_features_without_variance_are_counted_and_named(tmp_path: Path) -> None:
    bags = some()
    for i, values in enumerate(bags.values()):
        values[:, 3] = 0
        values[:, 5] = 7.5
        values[:, 9] = 100 + 0.01 * values[:, 9]  # 0.0001 of its value
        values[:, 11] *= 1e-9
        values[:, 13] = 0
        values[0, 13] = i == 0  # one instance in 125 has it: rare is not constant
    report = check_bags(write(tmp_path, bags))
    assert (report.constant, report.zero, report.near_constant) == ((3, 5), (3,), (9, 11))
    constant, nearly = warned(report, "constant")
    assert "2 of 32 features are the same in every instance, 1 of them always 0: 3, 5;" in constant
    assert "2 of 32 features hardly vary: 9, 11;" in nearly


def test_a_feature_that_is_constant_in_each_bag_only_is_fine(tmp_path: Path) -> None:
    bags = some()
    for i, values in enumerate(bags.values()):
        values[:, 4] = i
    report = check_bags(write(tmp_path, bags))
    assert report.constant == () and report.near_constant == ()


def test_instances_of_zeros_and_bags_of_one_row_are_named(tmp_path: Path) -> None:
    bags = some()
    bags["b1"][2:5] = 0
    bags["b4"][0] = 0
    bags["b6"][:] = bags["b6"][0]
    report = check_bags(write(tmp_path, bags))
    assert report.zero_rows == 4
    assert warned(report, "zero")[0].startswith("4 instances of 2 bags are all zeros: 'b1' (3 of 9), 'b4' (1 of 12)")
    assert warned(report, "one-row")[0].startswith("1 bag repeats one instance: 'b6' (14 of 14)")
    assert [w.bag_id for w in report.warnings if w.kind in ("zero", "one-row")] == [None, "b6"]


def test_strange_scales_are_named(tmp_path: Path) -> None:
    bags = some()
    bags["b2"][1, 7] = -2e4
    bags["b5"] *= 100
    report = check_bags(write(tmp_path, bags))
    large, odd = warned(report, "scale")
    assert "values reach 20,000 in bag 'b2' (features beyond 10,000: 7)" in large
    assert "2 bags with features of another scale" in odd and "'b2 (" in odd and "'b5 (" in odd


def test_moments_of_parts_are_those_of_the_whole() -> None:
    parts = [noise(n, n) + 50 for n in (1, 7, 300)]
    total = Moments(WIDTH)
    for part in parts:
        f = sum_up(BagFile(torch.from_numpy(part)), "x")
        total.add(f.rows, f.mean, f.m2, f.low, f.high)
    whole = np.concatenate(parts).astype(np.float64)
    np.testing.assert_allclose(total.mean, whole.mean(0), rtol=1e-6)
    np.testing.assert_allclose(total.sd, whole.std(0), rtol=1e-4)
    assert np.array_equal(total.low, whole.min(0)) and np.array_equal(total.high, whole.max(0))


def test_large_files_are_looked_at_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = noise(100)
    values[50:53] = 0
    whole = sum_up(BagFile(torch.from_numpy(values)), "x")
    monkeypatch.setattr("qgmil.bags.check.facts.CHUNK", 7 * WIDTH)
    chunked = sum_up(BagFile(torch.from_numpy(values)), "x")
    np.testing.assert_allclose(chunked.m2, whole.m2, rtol=1e-5)
    np.testing.assert_allclose(chunked.mean, whole.mean, atol=1e-6)
    empty = np.zeros(0)
    assert np.array_equal(chunked.hashes, whole.hashes) and chunked.zero_rows == whole.zero_rows == 3
    assert replace(chunked, mean=empty, m2=empty, low=empty, high=empty, hashes=empty) == replace(
        whole, mean=empty, m2=empty, low=empty, high=empty, hashes=empty
    )


def trident(**changes: Any) -> dict[str, Any]:
    base = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    return {**base, **changes}


def test_coordinates_are_counted_by_unit_and_tile_size(tmp_path: Path) -> None:
    report = check_bags(write(tmp_path, some(), **{f"b{i}": trident() for i in range(10)}))
    assert report.with_coords == 10 and report.coord_units == {"px": 10}
    assert report.tile_sizes == {512.0: 10} and report.magnifications == {20.0: 10}
    assert report.warnings == [] and report.same_place == 0


def test_differences_of_unit_tile_size_and_magnification_are_warned_of(tmp_path: Path) -> None:
    attributes = {f"b{i}": trident() for i in range(8)}
    attributes["b2"] = trident(patch_size_level0=1024, target_magnification=10)
    attributes["b3"] = {}  # plain h5: coords of which nothing is known
    report = check_bags(write(tmp_path, some(), **attributes))
    assert report.with_coords == 8
    assert report.coord_units == {"px": 7, "unknown": 1} and report.tile_sizes == {512.0: 6, 1024.0: 1}
    several, unknown = warned(report, "unit")
    assert "different units: px (7 bags), unknown (1 bag: 'b3')" in several and "1 bag have no known unit" in unknown
    assert "512 (6 bags), 1024 (1 bag: 'b2')" in warned(report, "tile-size")[0]
    assert "20x (6 bags), 10x (1 bag: 'b2')" in warned(report, "magnification")[0]
    assert (
        "2 of 10 bags have no coordinates" in warned(report, "coords")[0]
        and "'b8', 'b9'" in warned(report, "coords")[0]
    )


def test_tiles_of_one_size_on_the_glass_may_differ_in_pixels(tmp_path: Path) -> None:
    attributes = {f"b{i}": trident(level0_mpp=0.25) for i in range(10)}
    attributes["b1"] = trident(level0_mpp=0.5, patch_size_level0=256)
    report = check_bags(write(tmp_path, some(), **attributes))
    assert report.mpps == {0.25: 9, 0.5: 1} and report.tile_sizes == {512.0: 9, 256.0: 1}
    assert warned(report, "tile-size") == [] and warned(report, "mpp") == []
    attributes["b1"] = trident(level0_mpp=0.5)
    report = check_bags(write(tmp_path, some(), **attributes))
    assert "128 µm (9 bags), 256 µm (1 bag: 'b1')" in warned(report, "tile-size")[0]


def test_tiles_that_lie_on_each_other_are_counted(tmp_path: Path) -> None:
    places = np.array([[0, 0], [0, 512], [0, 0], [512, 0], [0, 512], [0, 0], [1, 1], [2, 2]])
    attributes = {f"b{i}": trident() for i in range(10)}
    attributes["b0"] = trident(coords=places)
    report = check_bags(write(tmp_path, some(), **attributes))
    assert report.same_place == 3
    (problem,) = [w for w in report.warnings if w.kind == "tiles"]
    assert (
        problem.bag_id == "b0"
        and "3 instances of 1 bag lie on the coordinates of another: 'b0' (3 of 8)" in problem.message
    )


def test_locks_are_listed_with_their_age(tmp_path: Path) -> None:
    manifest = write(tmp_path, some())
    now = time.time()
    for name, seconds in (("b2.npy", 200), ("b3.npy", 3 * 86400 + 60), ("later.h5", 7300)):
        lock = tmp_path / f"{name}.lock"
        lock.touch()
        os.utime(lock, (now - seconds, now - seconds))
    (tmp_path / "notes.txt.lock").touch()  # nobody's business
    report = check_bags(manifest)
    assert [(Path(lock.file).name, round(lock.age, -2)) for lock in report.locks] == [
        ("b2.npy", 200),
        ("b3.npy", 259300),
        ("later.h5", 7300),
    ]
    texts = {p.bag_id: p.message for p in report.problems if p.kind == "locked"}
    assert set(texts) == {"b2", "b3"} and texts["b2"].endswith("[locked for 3 minutes]")
    assert texts["b3"].endswith("[locked for 3 days: its job has most likely died]")
    assert warned(report, "lock")[0].startswith(
        "1 file beside those of the table is still being written: 'later.h5 (for 2 hours)'"
    )
    assert [age(s) for s in (0.4, 59, 60, 3600, 86400)] == ["0 s", "59 s", "1 minute", "1 hour", "1 day"]


def split_table(folder: Path, **columns: str) -> Path:
    """Ten bags of patients P0 to P4, two each, with columns of values separated by blanks."""
    table = {"patient_id": [f"P{i // 2}" for i in range(10)]}
    return write(folder, some(), table | {name: values.split() for name, values in columns.items()})


def test_a_patient_on_two_sides_of_a_column_is_reported(tmp_path: Path) -> None:
    manifest = split_table(
        tmp_path,
        official="train train train testA testB testA val val train train",
        fold="0 0 1 2 2 2 0 0 1 1",
        stage="0 1 0 1 0 1 0 1 0 1",  # numbers, but not by name a split
        good="train train test test val val train train test test",
    )
    report = check_bags(manifest)
    assert report.ok
    official, fold = warned(report, "split")
    assert (
        "column 'official': 1 patient is on several sides (test and train)" in official and official.count("'P1'") == 1
    )
    assert "column 'fold': 1 patient is on several sides (1 and 2)" in fold and "'P1'" in fold
    asked = check_bags(manifest, split_column=["fold", "good"])
    assert [(p.kind, "'fold'" in p.message) for p in asked.problems] == [("split", True)]
    assert len(warned(asked, "split")) == 1
    per_patient = check_bags(manifest, split_column=["fold"], bag_per="patient")
    texts = [p.message for p in per_patient.problems if p.kind == "split"]
    assert len(texts) == 1 and "'P1'" in texts[0]  # merging does not hide it


def test_a_column_that_is_no_split_is_a_problem_where_it_is_asked_for(tmp_path: Path) -> None:
    manifest = split_table(tmp_path, part="train train test test train train x x train train")
    texts = [p.message for p in check_bags(manifest, split_column=["part", "gone"]).problems]
    assert "'x'; expected train, val or test" in texts[0] and "no column 'gone'" in texts[1]


def test_split_files_are_checked(tmp_path: Path) -> None:
    manifest = split_table(tmp_path)
    (tmp_path / "splits_0.csv").write_text("train,val,test\nb0,b2,b4\nb1,b3,b5\n")
    (tmp_path / "splits_1.csv").write_text("train,val,test\nb0,b2,b1\nb4,b3,b5\n")
    (tmp_path / "splits_2.csv").write_text("train,val,test\nb0,b2,b4\nb1,b3,nobody\n")
    files = [tmp_path / f"splits_{i}.csv" for i in range(3)]
    assert check_bags(manifest, split_file=files[:1]).ok
    leak, unknown = (p.message for p in check_bags(manifest, split_file=files).problems)
    assert "splits_1" in leak and "patient 'P0' is on 2 sides" in leak
    assert "splits_2.csv" in unknown and "'nobody'" in unknown
    (problem,) = check_bags(manifest, split_file=[tmp_path / "none.csv"]).problems
    assert problem.kind == "split" and "none.csv" in problem.message


def test_the_report_for_machines_is_complete(tmp_path: Path) -> None:
    bags = some()
    bags["b0"][:, 3] = bags["b1"][:, 3] = 0
    report = check_bags(write(tmp_path, bags))
    report.problems.append(Problem("nan", "b0", "text"))
    said = report.as_dict()
    assert set(said) == {"ok", *vars(report)} - {"sizes"}
    assert said["ok"] is False and said["widths"] == {"32": 10} and said["classes"] == {"x": 5, "y": 5}
    assert said["problems"] == [{"kind": "nan", "bag_id": "b0", "message": "text"}]
