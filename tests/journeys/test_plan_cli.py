"""``qgmil plan``: what a user reads before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cohort import make_cohort
from commandline import run
from qgmil.cli.plan import seconds
from qgmil.planning import guard, plan

Output = pytest.CaptureFixture[str]
SMALL = ["--options.width", 64, "--options.num-heads", 4, "--options.ffn-dim", 128, "--in-dim", 32, "--device", "cpu"]


def has(monkeypatch: pytest.MonkeyPatch, count: float) -> None:
    for module in (plan, guard):
        monkeypatch.setattr(module, "available_memory", lambda device: int(count))


def row(text: str, name: str) -> list[str]:
    """Training's and inference's cell of a row."""
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    return re.split(r"\s{2,}", line.strip())[1:]


def test_a_bag_of_so_many_instances(capsys: Output) -> None:
    assert run("plan", "--instances", 3000, *SMALL, "--precision", 32, "--no-time") == 0
    said = capsys.readouterr()
    assert "qgmil on cpu, 32-true: 1 bag of 3,000 instances" in " ".join(said.out.split())
    memory = [float(cell.split()[0]) for cell in row(said.out, "peak memory")]
    assert 60 > memory[0] > memory[1] > 1  # MB
    assert row(said.out, "verdict") == ["fits", "fits"]
    assert "the process itself" in said.out and "time" not in said.out


def test_time_comes_with_its_basis(capsys: Output) -> None:
    assert run("plan", "--instances", 300, "--model", "abmil", "--in-dim", 32, "--device", "cpu") == 0
    said = capsys.readouterr()
    assert all(re.fullmatch(r"[\d.]+ (ms|s)", cell) for cell in row(said.out, "time of a step"))
    assert "time is an estimate: steps of 128, 300 instances timed here (cpu, " in said.err


def test_a_manifest_gives_the_largest_bags_and_an_epoch(tmp_path: Path, capsys: Output) -> None:
    manifest = make_cohort(tmp_path)
    assert run("plan", manifest, "--model", "mean", "--batch-size", 2, "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert re.search(r"bag 'p\d\d_\d' \(19 instances\) and 1 more \(38 instances in all\)", " ".join(said.split()))
    assert len(row(said, "time over all bags")) == 2 and "bags kept in memory" in said


def test_what_does_not_fit_comes_with_what_would(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    has(monkeypatch, 6e6)
    assert run("plan", "--instances", 3000, *SMALL, "--precision", 32, "--no-time") == 1
    said = capsys.readouterr().out
    assert row(said, "verdict")[0] == "does not fit"
    sample = int(re.search(r"--sample (\d+)", said)[1])  # type: ignore[index]
    assert "What would fit" in said and 256 <= sample < 3000
    assert run("plan", "--instances", sample, *SMALL, "--precision", 32, "--no-time") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either a table of bags (qgmil plan bags.csv) or --instances N"),
        (["bags.csv", "--instances", 5], "give either"),
        (["nowhere.csv"], "nowhere.csv"),
        (["--instances", 5, "--model", "qgmill"], "did you mean qgmil"),
        (["--instances", 5, "--options.widht", 5], "did you mean width"),
    ],
)
def test_mistakes_are_one_clear_line(arguments: list[object], said: str, capsys: Output) -> None:
    assert run("plan", *arguments) == 1
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and len(err.strip().splitlines()) <= 2


def test_it_explains_itself(capsys: Output) -> None:
    assert run("plan", "--help") == 0
    text = capsys.readouterr().out
    assert "Table of bags: plans for the largest of them" in text
    for option in ("--in-dim", "--classes", "--batch-size", "--precision", "--device", "--options", "--checkpointing"):
        assert option in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "12 ms"), (0.5, "500 ms"), (3.21, "3.2 s"), (119.0, "119 s"), (600.0, "10 min"), (9000.0, "2.5 h")],
)
def test_times_are_short(value: float, text: str) -> None:
    assert seconds(value) == text
