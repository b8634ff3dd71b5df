"""The label among the features, labels that are spelled in two ways, and what the table of the check says."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from bags.layouts import write_cells, write_stamp
from qgmil.bags.check import CheckReport, check_bags
from qgmil.bags.check.facts import Moments
from qgmil.bags.check.leaks import Leaks
from qgmil.bags.check.locks import on_disk
from qgmil.report.check_tables import check_table

WIDTH = 24


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def table(folder: Path, bags: list[tuple[str, np.ndarray]]) -> Path:
    lines = ["bag_id,label,features"]
    for i, (label, values) in enumerate(bags):
        torch.save(torch.from_numpy(values), folder / f"b{i:02d}.pt")
        lines.append(f"b{i:02d},{label},b{i:02d}.pt")
    (folder / "bags.csv").write_text("\n".join(lines) + "\n")
    return folder / "bags.csv"


def with_columns(count: int, *columns: list[float]) -> list[tuple[str, np.ndarray]]:
    """Bags of two classes in turn, with columns behind the features: one value a bag."""
    bags = []
    for i in range(count):
        values = rows(4 + i, i)
        more = np.array([[column[i] for column in columns]], np.float32).repeat(len(values), axis=0)
        bags.append(("ab"[i % 2], np.concatenate([values, more], axis=1)))
    return bags


def said(report: CheckReport, kind: str) -> list[str]:
    return [p.message for p in report.problems if p.kind == kind]


def warned(report: CheckReport, kind: str) -> list[str]:
    return [w.message for w in report.warnings if w.kind == kind]


def test_one_hot_labels_behind_the_features_are_a_problem_that_names_the_cure(tmp_path: Path) -> None:
    truth = [float(i % 2) for i in range(12)]
    manifest = table(tmp_path, with_columns(12, [1 - t for t in truth], truth))
    report = check_bags(manifest)
    (text,) = said(report, "leak")
    assert text.startswith("label among the features: columns 24, 25 are constant in every bag and tell its label")
    assert "column 25 is 0 in class 'a', 1 in class 'b'" in text
    assert "read them with --format dsmil (format='dsmil' in Python) and --dataset 2" in text
    assert not warned(report, "leak") and not report.ok
    cured = check_bags(manifest, format="dsmil", dataset="2")
    assert cured.ok and cured.widths == {WIDTH: 12} and not warned(cured, "leak")


def test_a_table_that_names_the_format_of_its_files_is_read_by_it(tmp_path: Path) -> None:
    truth = [float(i % 2) for i in range(12)]
    manifest = table(tmp_path, with_columns(12, [1 - t for t in truth], truth))
    header, *lines = manifest.read_text().splitlines()
    more = [f"{header},feature_format,feature_dataset", *(f"{line},dsmil,2" for line in lines)]
    manifest.write_text("\n".join(more))
    report = check_bags(manifest)
    assert report.ok and report.widths == {WIDTH: 12}


def test_columns_of_three_classes_are_found_together(tmp_path: Path) -> None:
    bags = [(f"c{i % 3}", np.concatenate([np.eye(3, dtype=np.float32)[[i % 3] * 5], rows(5, i)], 1)) for i in range(9)]
    (text,) = said(check_bags(table(tmp_path, bags)), "leak")
    assert "columns 0, 1, 2 are constant" in text and "dsmil" not in text  # the label of DSMIL lies behind


def test_a_scaled_label_is_found_where_one_bag_has_one_instance_and_one_repeats_its_own(tmp_path: Path) -> None:
    bags = with_columns(10, [3.5 if i % 2 else -1.25 for i in range(10)])
    bags[0] = ("a", bags[0][1][:1])
    bags[3] = ("b", bags[3][1][:1].repeat(4, axis=0))
    (text,) = said(check_bags(table(tmp_path, bags)), "leak")
    assert text.startswith("label among the features: column 24 is constant in every bag and tells its label")
    assert "column 24 is -1.25 in class 'a', 3.5 in class 'b'" in text and "dsmil" not in text


def test_what_does_not_tell_the_label_is_no_leak(tmp_path: Path) -> None:
    site = [float(i % 2) for i in range(12)]
    site[5] = 0  # one bag of class b has the value of class a
    sex = [float(i // 2 % 2) for i in range(12)]
    age = [50 + i / 2 for i in range(12)]
    bags = with_columns(12, site, sex, age, [0.0] * 12, [float(i % 2) for i in range(12)])
    bags[7][1][0, -1] += 1e-3  # the column of labels is not constant in one bag
    report = check_bags(table(tmp_path, bags))
    assert not said(report, "leak") and not warned(report, "leak")


@pytest.mark.parametrize("labels", ["aabbb", "abbbbbb"])
def test_a_few_bags_prove_nothing(tmp_path: Path, labels: str) -> None:
    bags = [(x, np.concatenate([rows(5, i), np.full((5, 1), x == "b", np.float32)], 1)) for i, x in enumerate(labels)]
    assert not said(check_bags(table(tmp_path, bags)), "leak")


def test_a_number_of_the_bag_is_warned_of(tmp_path: Path) -> None:
    report = check_bags(table(tmp_path, with_columns(8, [float(101 + i) for i in range(8)])))
    assert report.ok
    (text,) = warned(report, "leak")
    assert text.startswith("column 24 is constant in every bag, with a value of its own in each: a number of the bag")


def test_features_of_the_whole_bag_are_no_numbers_of_it() -> None:
    leaks = Leaks(40)
    for i in range(9):
        bag = Moments(40)
        low = np.arange(40.0) + 100 * i
        high = low + (np.arange(40) >= 30)
        bag.add(5, (low + high) / 2, np.ones(40), low, high)
        leaks.add("ab"[i % 2], bag)
    assert leaks.problems() == ([], []) and leaks.numbers == {}


def test_labels_that_capitals_or_blanks_tell_apart_are_warned_of(tmp_path: Path) -> None:
    bags = [
        (label, rows(4 + i, i)) for i, label in enumerate(["Tumour"] * 6 + ["tumour", "normal x"] * 5 + ["normalx"])
    ]
    first, second = warned(check_bags(table(tmp_path, bags)), "label")
    assert first.startswith("the labels 'Tumour' (6 bags) and 'tumour' (5 bags) differ in capitals or blanks alone")
    assert "'normal x' (5 bags) and 'normalx' (1 bag)" in second or "'normal x' (5 bags) and 'normalx' (1 bag)" in first
    others = [(label, rows(4 + i, i)) for i, label in enumerate(["1", "10", "grade-1", "grade1"] * 5)]
    assert not warned(check_bags(table(tmp_path, others)), "label")


def shown(report: CheckReport) -> str:
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(check_table(report, "bags"))
    return console.export_text()


def test_the_table_has_units_and_counts_that_read_well(tmp_path: Path) -> None:
    samples = write_stamp(tmp_path)
    lines = [f"{s.expected.bag.bag_id},{s.expected.bag.label},{s.cell}" for s in samples]
    np.save(tmp_path / "none.npy", np.ones((3, 6), np.float16))
    (tmp_path / "bags.csv").write_text("\n".join(["bag_id,label,features", *lines, f"x,tumour,{tmp_path}/none.npy"]))
    report = check_bags(tmp_path / "bags.csv")
    text = " ".join(shown(report).replace("│", " ").split())
    assert "tile size 256 µm" in text and "microns per pixel of the tiles 1.14286" in text
    assert "microns (3 bags)" in text and report.tile_edges == {"256 µm": 3}
    report.widths = {6: 3, 32: 1}
    assert "6 (3 bags), 32 (1 bag)" in shown(report)
    assert "class 'normal' has one patient (1 bag)" in " ".join(p.message for p in report.problems)


def test_one_patient_has_bags(tmp_path: Path) -> None:
    manifest = table(tmp_path, [("ab"[i % 2], rows(4 + i, i)) for i in range(12)])
    lines = manifest.read_text().splitlines()
    patients = ["patient_id", "p", "p", *(f"p{i}" for i in range(2, 12))]
    manifest.write_text("\n".join(f"{line},{p}" for line, p in zip(lines, patients, strict=True)))
    assert warned(check_bags(manifest), "patient") == ["1 patient has bags of several classes: 'p'"]


def test_a_file_without_permission_is_said_to_be_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = table(tmp_path, [("ab"[i % 2], rows(4 + i, i)) for i in range(12)])
    real = os.access

    def access(path: str | os.PathLike[str], mode: int) -> bool:
        return Path(path).name != "b03.pt" and real(path, mode)

    monkeypatch.setattr(os, "access", access)
    report = check_bags(manifest)
    (problem,) = report.problems
    assert (problem.kind, problem.bag_id) == ("permission", "b03")
    assert "b03.pt: there is no permission to read it" in problem.message and "errno" not in problem.message


def test_locks_in_a_folder_of_cells_are_found(tmp_path: Path) -> None:
    samples = write_cells(tmp_path)
    lines = [f"{s.expected.bag.bag_id},{s.expected.bag.label},{s.cell}" for s in samples]
    (tmp_path / "bags.csv").write_text("\n".join(["bag_id,label,features", *lines]))
    first, second = samples[0].cell, samples[1].cell
    (first / "cell_3.npy.lock").touch()
    (second / "cell_999.npy.lock").touch()  # of which nothing is there yet
    report = check_bags(tmp_path / "bags.csv")
    assert {Path(lock.file).name for lock in report.locks} == {"cell_3.npy", "cell_999.npy"}
    (problem,) = (p for p in report.problems if p.kind == "locked")
    assert problem.bag_id == samples[0].expected.bag.bag_id and problem.message.endswith("[locked for 0 s]")
    (text,) = warned(report, "lock")
    assert text.startswith("1 file beside those of the table is still being written: 'cell_999.npy (for 0 s)'")


def test_a_name_with_colons_is_a_file_before_it_is_a_part(tmp_path: Path) -> None:
    odd = tmp_path / "a.h5::b.h5"
    odd.touch()
    (tmp_path / "a.h5").touch()
    assert on_disk(odd) == odd
    assert on_disk(Path(f"{odd}::slide")) == odd
    assert on_disk(tmp_path / "a.h5::slide") == tmp_path / "a.h5"
