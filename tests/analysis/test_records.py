"""The journal: resumed after a kill, refused for other settings, never the user's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgmil.analysis.records import JOURNAL, Journal, Record
from qgmil.errors import RunError


def record(bag_id: str, source: str = "run", **row: object) -> Record:
    return Record(source, {"bag_id": bag_id, "patient_id": bag_id, "label": "x", "correct": True, **row}, [0.0, 1.0])


def test_what_was_measured_is_there_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "out", {"score": "attention"}) as journal:
        journal.add(record("a", entropy=0.1 + 0.2))
        journal.add(record("b"))
    again = Journal(tmp_path / "out", {"score": "attention"})
    assert again.records == {("run", "a"): record("a", entropy=0.1 + 0.2), ("run", "b"): record("b")}


def test_a_line_that_a_kill_left_half_written_is_dropped(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Journal(out, {}) as journal:
        journal.add(record("a"))
        journal.add(record("b"))
    whole = (out / JOURNAL).read_bytes()
    (out / JOURNAL).write_bytes(whole[:-9])
    with Journal(out, {}) as journal:
        assert list(journal.records) == [("run", "a")]
        journal.add(record("b"))
    assert (out / JOURNAL).read_bytes() == whole


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    with Journal(tmp_path / "out", {"score": "attention", "seed": 0}) as journal:
        journal.add(record("a"))
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
