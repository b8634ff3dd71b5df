"""`check_bags` finds everything at once, and blames the right bag."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conftest import shared_data
from qgmil.bags.check import CheckReport, check_bags
from qgmil.errors import ManifestError


def save(folder: Path, name: str, rows: int, width: int = 4, fill: float | None = None, seed: int = 0) -> None:
    values = np.random.default_rng([seed, rows]).normal(size=(rows, width)).astype(np.float16)
    if fill is not None:
        values[-1, 1] = fill
    np.save(folder / name, values)


def kinds(report: CheckReport) -> dict[str, set[str | None]]:
    found: dict[str, set[str | None]] = {}
    for problem in report.problems:
        found.setdefault(problem.kind, set()).add(problem.bag_id)
    return found


def test_everything_that_is_wrong_is_found_at_once(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path, f"g{i}.npy", 3 + i)
    save(tmp_path, "nan.npy", 20, fill=np.nan)
    save(tmp_path, "inf.npy", 21, fill=np.inf)
    save(tmp_path, "wide.npy", 22, width=5)
    np.save(tmp_path / "empty.npy", np.zeros((0, 4), np.float32))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00rubbish")
    save(tmp_path, "locked.npy", 30)
    (tmp_path / "locked.npy.lock").touch()
    rows = [f"g{i},{'xy'[i % 2]},g{i}.npy" for i in range(12)]
    rows += [f"{name},x,{name}.npy" for name in ("nan", "inf", "wide", "empty", "broken", "locked", "gone")]
    rows += ["mixed,x,g0.npy;wide.npy", "copy,y,g1.npy", "silent,,g2.npy", "g3,y,g3.npy", "a/b,x,g0.npy", ",x,g0.npy"]
    rows += ["lonely,z,g4.npy", "blank,x,"]
    (tmp_path / "bags.csv").write_text("bag_id,label,features\n" + "\n".join(rows) + "\n")
    steps: list[tuple[int, int]] = []
    report = check_bags(tmp_path / "bags.csv", progress=lambda done, total: steps.append((done, total)))
    assert kinds(report) == {
        "nan": {"nan", "inf"},
        "width": {"wide", "mixed"},
        "empty": {"empty"},
        "broken": {"broken"},
        "locked": {"locked"},
        "missing": {"gone", "blank"},
        "unlabelled": {"silent"},
        "duplicate-id": {"g3"},
        "bad-id": {"a/b", ""},
        "class": {None},
    }
    assert not report.ok
    messages = {p.bag_id: p.message for p in report.problems}
    for name in ("nan", "inf", "wide", "empty", "broken", "locked", "gone"):
        assert f"{name}.npy" in messages[name] and f"'{name}'" in messages[name]
    assert "class 'z' has one patient" in messages[None]
    assert {w.kind for w in report.warnings} == {"identical"}
    assert "'g1', 'copy' have identical features" in report.warnings[0].message
    assert report.bags == 23 and report.patients == 23 and steps[-1] == (23, 23) and len(steps) == 23
    assert report.widths == {4: 15, 5: 1} and report.dtypes == {"float16": 16} and report.with_coords == 0


def test_numbers_of_a_good_table(tmp_path: Path) -> None:
    for i in range(10):
        save(tmp_path, f"{i}.npy", i + 1)
    rows = "".join(f"b{i},p{i // 2},{i // 2 % 2},{i}.npy\n" for i in range(10))
    (tmp_path / "bags.csv").write_text("bag_id,patient_id,label,features\n" + rows)
    report = check_bags(tmp_path / "bags.csv")
    assert report.ok
    assert (report.bags, report.readable, report.patients, report.classes) == (10, 10, 5, {"0": 6, "1": 4})
    sizes = (report.instances_min, report.instances_median, report.instances_max, report.instances_total)
    assert sizes == (1, 5.5, 10, 55)
    assert report.bytes == 55 * 4 * 2
    assert [w.message for w in report.warnings if "'1'" in w.message] == [
        "class '1' has only 2 patients (4 bags): use at most 2 folds"
    ]
    patients = check_bags(tmp_path / "bags.csv", bag_per="patient")
    assert (patients.bags, patients.instances_total) == (5, 55)


def test_a_long_table_is_checked_too(tmp_path: Path) -> None:
    rows = "".join(f"{i % 2},b{i},{i},{i * i}\n" for i in range(12))
    (tmp_path / "t.csv").write_text(rows + "1,bad,x,2\n0,mix,1,2\n1,mix,1,2\n1,inf,inf,2\n")
    report = check_bags(tmp_path / "t.csv")
    assert kinds(report) == {"number": {"bad"}, "label": {"mix"}, "nan": {"inf"}}
    assert (report.bags, report.readable, report.widths) == (13, 12, {2: 12})


def test_patients_with_two_classes_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "label,bag,patient_id,f\n" + "".join(f"{i % 2},b{i},p{i // 2},{i}\n" for i in range(12))
    )
    assert [w.kind for w in check_bags(tmp_path / "t.csv").warnings] == ["patient"]
    per_patient = check_bags(tmp_path / "t.csv", bag_per="patient")
    assert len(per_patient.problems) == 6 and "patient 'p0' disagree" in per_patient.problems[0].message


def test_only_one_class_is_a_problem_unless_labels_are_not_wanted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1,a,5\n1,b,6\n")
    assert [p.kind for p in check_bags(tmp_path / "t.csv").problems] == ["class"]
    assert check_bags(tmp_path / "t.csv", labels=False).ok


def test_a_table_that_cannot_be_read_raises(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"gone\.csv"):
        check_bags(tmp_path / "gone.csv")
    (tmp_path / "m.csv").write_text("bag,label,features\na,1,x.h5\n")
    with pytest.raises(ManifestError, match="no column 'bag_id'; did you mean --id bag "):
        check_bags(tmp_path / "m.csv")


@pytest.mark.shared
def test_the_real_data_are_in_order() -> None:
    report = check_bags(shared_data("deepapl"))
    assert report.ok and not report.warnings
    assert (report.bags, report.instances_total, report.instances_min, report.instances_max) == (82, 13999, 59, 821)
    assert report.classes == {"AML": 60, "APL": 22} and report.widths == {1280: 82}
