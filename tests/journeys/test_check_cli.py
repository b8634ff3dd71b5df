"""`qgmil check`: what it prints, what it returns, and what it prints for machines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cohort import WIDTH, make_cohort
from qgmil.cli import main

Output = pytest.CaptureFixture[str]


def check(*arguments: object) -> int:
    """The command in this process, reading the files in it as well; its exit code."""
    with pytest.raises(SystemExit) as stop:
        main(["check", *(str(a) for a in arguments), "--in-process"])
    return int(stop.value.code or 0)


def document(capsys: Output, *arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit code and the one JSON document on standard output."""
    capsys.readouterr()
    code = check(*arguments, "--json")
    return code, json.loads(capsys.readouterr().out)


def test_json_holds_the_numbers_and_nothing_else_is_printed(tmp_path: Path, capsys: Output) -> None:
    manifest = make_cohort(tmp_path)
    sizes = [len(np.load(file)) for file in sorted((tmp_path / "features").iterdir())]
    code, said = document(capsys, manifest)
    assert code == 0 and said["ok"] is True and said["problems"] == [] and said["source"] == str(manifest)
    assert (said["bags"], said["readable"], said["patients"]) == (40, 40, 20)
    assert said["classes"] == {"benign": 20, "tumour": 20} and said["widths"] == {str(WIDTH): 40}
    assert (said["instances_total"], said["instances_min"], said["instances_max"]) == (
        sum(sizes),
        min(sizes),
        max(sizes),
    )
    assert said["bytes"] == sum(sizes) * WIDTH * 4 and said["dtypes"] == {"float32": 40}
    assert said["coord_units"] == {} and said["locks"] == [] and said["qgmil"]


def test_json_of_what_is_wrong_has_the_same_exit_code(tmp_path: Path, capsys: Output) -> None:
    manifest = make_cohort(tmp_path)
    (tmp_path / "features" / "p00_0.npy").write_bytes(b"\x93NUMPY\x01\x00rubbish")
    (tmp_path / "features" / "p01_1.npy").unlink()
    code, said = document(capsys, manifest)
    assert code == 1 and said["ok"] is False and said["readable"] == 38
    assert [(p["kind"], p["bag_id"]) for p in said["problems"]] == [("broken", "p00_0"), ("missing", "p01_1")]
    code, said = document(capsys, tmp_path / "none.csv")
    assert (
        code == 1
        and [p["kind"] for p in said["problems"]] == ["table"]
        and "none.csv" in said["problems"][0]["message"]
    )


def test_tables_name_problems_and_warnings(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgmil.cli.output.console.width", 200, raising=False)
    manifest = make_cohort(tmp_path)
    assert check(manifest) == 0
    out = capsys.readouterr().out
    assert "ready for qgmil train" in out and "benign: 20, tumour: 20" in out and "warning" not in out
    (tmp_path / "features" / "p00_0.npy.lock").touch()
    manifest.write_text(manifest.read_text().replace("features/p01_0.npy,0", "features/p01_0.npy,2"))
    assert check(manifest) == 1
    out = capsys.readouterr().out
    lines = [line.strip() for line in out.splitlines()]
    assert "1 problem" in lines and "1 warning" in lines
    assert "locked" in out and "p00_0.npy.lock" in out and "'P01'" in out
    assert "ready for" not in out


def test_split_options_are_checked(tmp_path: Path, capsys: Output) -> None:
    manifest = make_cohort(tmp_path)
    assert check(manifest, "--split-column", "fold") == 0
    code, said = document(capsys, manifest, "--split-column", "fold", "--split-column", "gone")
    assert code == 1 and [p["kind"] for p in said["problems"]] == ["split"]
    splits = tmp_path / "splits_0.csv"
    splits.write_text("train,val,test\np00_0,p02_0,p00_1\n")
    code, said = document(capsys, manifest, "--split-file", splits)
    assert code == 1 and "patient 'P00' is on 2 sides" in said["problems"][0]["message"]


def test_files_are_read_by_one_child_that_ends_with_the_check(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path, patients=4)
    code = (
        "import subprocess, sys\n"
        "started, popen = [], subprocess.Popen\n"
        "class Counted(popen):\n"
        "    def __init__(self, *args, **options):\n"
        "        super().__init__(*args, **options)\n"
        "        if 'qgmil.bags.check.child' in str(args):\n"
        "            started.append(self)\n"
        "subprocess.Popen = Counted\n"
        "from qgmil.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "print('CHILDREN', len(started), [c.poll() is not None for c in started], code)\n"
    )
    arguments = [sys.executable, "-c", code, "check", str(manifest), "--json"]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True)
    said, _, children = ended.stdout.partition("CHILDREN")
    assert json.loads(said)["readable"] == 8 and ended.stderr == ""
    assert children.strip() == "1 [True] 0"  # one child for all files, and it has ended


def test_a_table_with_no_files_to_read_needs_no_child_to_work(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "t.csv").write_text("".join(f"{i % 2},b{i},{i},{i * i}\n" for i in range(12)))
    assert check(tmp_path / "t.csv") == 0
    assert "12" in capsys.readouterr().out


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A planner that counts a megabyte an instance, and what it was asked."""
    asked: list[tuple[Any, ...]] = []

    def peak_memory(model: str, in_dim: int, num_classes: int, sizes: tuple[int, ...], **options: Any) -> Any:
        asked.append((model, in_dim, num_classes, sizes, options["training"], options["device"]))
        return SimpleNamespace(bytes=sum(sizes) * 10**6)

    monkeypatch.setitem(sys.modules, "qgmil.planning.memory", SimpleNamespace(peak_memory=peak_memory))
    monkeypatch.setattr("qgmil.training.device.choose_device", lambda name: "cpu")
    return asked


def test_the_memory_of_training_is_that_of_the_largest_batch(
    planned: list[tuple[Any, ...]], tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_cohort(tmp_path)
    sizes = sorted((len(np.load(file)) for file in (tmp_path / "features").iterdir()), reverse=True)[:4]
    code, said = document(capsys, manifest)
    assert code == 0 and planned == [("qgmil", WIDTH, 2, tuple(sizes), True, "cpu")]
    memory = said["training_memory"]
    assert (memory["bytes"], memory["sizes"], memory["model"]) == (sum(sizes) * 10**6, sizes, "qgmil")
    assert memory["available"] > 2**30 and said["warnings"] == []
    monkeypatch.setattr("qgmil.bags.check.pool.physical_memory", lambda: 10**7)
    code, said = document(capsys, manifest)
    assert code == 0 and [w["kind"] for w in said["warnings"]] == ["memory"]
    assert check(manifest) == 0
    assert "on cpu: qgmil" in " ".join(capsys.readouterr().out.split())


def test_no_memory_is_estimated_where_nothing_can_be_trained(
    planned: list[tuple[Any, ...]], tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "t.csv").write_text("1,a,5\n1,b,6\n")
    code, said = document(capsys, tmp_path / "t.csv")
    assert code == 1 and said["training_memory"] is None and planned == []
