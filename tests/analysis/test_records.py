"""The journal: resumed after a kill, refused for other settings, never the user's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgmil.analysis.records import JOURNAL, Journal, Record
from qgmil.errors import RunError


def record(bag_id: str, source: str = "run", **row: object) -> Record:
    return Record(source, {"bag_id": bag_id, "patient_id": bag_id, "label": "x", "correct": True, **row}, [0.0, 1.0])


def test_what_was_measured_is_there_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out", {"score": "attention"})
    journal.add(record("a", entropy=0.1 + 0.2))
    journal.add(record("b"))
    again = Journal(tmp_path / "out", {"score": "attention"})
    assert again.records == {("run", "a"): record("a", entropy=0.1 + 0.2), ("run", "b"): record("b")}


def test_a_line_that_a_kill_left_half_written_is_dropped_and_takes_no_other_with_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    journal = Journal(out, {})
    journal.add(record("a"))
    journal.add(record("b"))
    (out / JOURNAL).write_bytes((out / JOURNAL).read_bytes()[:-9])
    journal = Journal(out, {})
    assert list(journal.records) == [("run", "a")]
    journal.add(record("b"))
    journal.add(record("c"))
    assert [b for _, b in Journal(out, {}).records] == ["a", "b", "c"]


def test_a_measurement_killed_before_its_first_bag_goes_on(tmp_path: Path) -> None:
    Journal(tmp_path / "out", {"seed": 0})
    assert Journal(tmp_path / "out", {"seed": 0}).records == {}
    with pytest.raises(RunError, match="seed: 0, now 1"):
        Journal(tmp_path / "out", {"seed": 1})


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    Journal(tmp_path / "out", {"score": "attention", "seed": 0}).add(record("a"))
    with pytest.raises(RunError, match=r"other settings \(score: 'attention', now 'rollout'\).*--overwrite"):
        Journal(tmp_path / "out", {"score": "rollout", "seed": 0})
    assert Journal(tmp_path / "out", {"score": "rollout", "seed": 0}, overwrite=True).records == {}


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        Journal(tmp_path, {})
    with pytest.raises(RunError, match="is a file"):
        Journal(tmp_path / "mine.txt", {})
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
