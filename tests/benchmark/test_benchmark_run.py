"""Whole benchmarks: their numbers are those of `qgmil train`, and nothing finished is computed twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from small_benchmark import ABMIL, COMMON, DIVERGING, QGMIL, run, spec

import qgmil
from qgmil.bags.dataset import open_bags
from qgmil.benchmark.grid import run_benchmark, state_of
from qgmil.benchmark.results import COLUMNS, LISTS, as_table, read_rows
from qgmil.errors import ConfigError, ReadError, RunError
from qgmil.training.config import TrainConfig
from qgmil.training.members import evaluate_run, load_run
from qgmil.training.run import resume_run, train_run

MODELS = {"abmil": ABMIL, "small": {"model": "qgmil", **QGMIL}}


@pytest.fixture(scope="module")
def finished(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    output = tmp_path_factory.mktemp("bench") / "out"
    result, jobs = run(spec(cohort, models=MODELS, controls=True), output, pytest.MonkeyPatch())
    assert (result.cells, result.finished, result.failed, result.note) == (10, 10, 0, "")
    assert len(jobs) == 10
    return output, result.rows


def test_a_cell_is_what_train_gives(cohort: Path, finished: tuple[Path, list], tmp_path: Path) -> None:
    output, rows = finished
    options = {**QGMIL, **COMMON, "model": "qgmil", "folds": 2}
    train_run(cohort, tmp_path / "run", TrainConfig.build(options))
    for fold in (0, 1):
        cell = output / "cells" / "made" / "small" / f"fold{fold}_seed0"
        trained = tmp_path / "run" / "cells" / f"fold{fold}_seed0"
        for name in ("model.safetensors", "history.csv", "predictions.csv", "split.csv"):
            assert (cell / name).read_bytes() == (trained / name).read_bytes(), name
        row = next(r for r in rows if r["model"] == "small" and r["fold"] == fold)
        metrics = json.loads((trained / "metrics.json").read_text())
        for name in ("macro_f1", "auroc", "average_precision", "ece", "brier", "nll"):
            assert row[name] == metrics["test"][name]
        assert row["nll_calibrated"] == metrics["test_calibrated"]["nll"]
        assert row["val_macro_f1"] == metrics["val"]["macro_f1"]
        assert row["top_10pct"] == metrics["attention"]["top_10pct"]
        assert row["temperature"] == metrics["temperature"]


def test_a_row_holds_its_predictions(finished: tuple[Path, list]) -> None:
    row = next(r for r in finished[1] if r["model"] == "small")
    said, truth = np.array(row["test_probabilities"]), np.array(row["test_labels"])
    assert f1_score(truth, said.argmax(axis=1), average="macro") == pytest.approx(row["macro_f1"])
    assert roc_auc_score(truth, said[:, 1]) == pytest.approx(row["auroc"])
    assert row["classes"] == ["benign", "tumour"] and row["n_test"] == len(truth) == len(row["test_bags"])
    assert len(set(row["test_patients"])) == row["n_test"] // 2  # two bags a patient
    assert row["status"] == "finished" and row["error"] is None and row["device"] == "cpu"
    assert row["peak_mb"] > 50 and row["epochs"] == 2 and row["instance_auroc"] is None
    others = [r for r in finished[1] if r["fold"] == row["fold"]]
    assert len(others) == 5 and all(r["test_bags"] == row["test_bags"] for r in others)


def test_the_tables_have_the_rows(finished: tuple[Path, list]) -> None:
    output, rows = finished
    assert list(pl.read_parquet(output / "results.parquet").columns) == list(COLUMNS)
    assert read_rows(output / "results.parquet") == rows
    small = pl.read_csv(output / "results.csv")
    assert small.columns == [name for name in COLUMNS if name not in LISTS]
    assert small["nll"].to_list() == [r["nll"] for r in rows]
    assert not (output / "results.journal.jsonl").exists()
    assert as_table(rows).schema == pl.Schema(COLUMNS)


def test_a_cell_is_a_run(cohort: Path, finished: tuple[Path, list]) -> None:
    cell = finished[0] / "cells" / "made" / "small" / "fold0_seed0"
    row = next(r for r in finished[1] if r["model"] == "small" and r["fold"] == 0)
    bags = open_bags(cohort)
    evaluated = evaluate_run(load_run(cell), bags)
    assert evaluated["bags"] == row["n_test"]
    assert evaluated["metrics"]["macro_f1"] == row["macro_f1"]
    assert qgmil.load_model(cell).options["width"] == 16


def test_an_unfinished_cell_can_be_resumed_as_a_run(
    cohort: Path,
    finished: tuple[Path, list],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = {"few": {"manifest": str(cohort), "train_patients": 4}}
    run(spec(cohort, datasets=few), tmp_path, monkeypatch, only={"fold": ["1"]})
    cell = tmp_path / "cells" / "few" / "abmil" / "fold1_seed0"
    before = (cell / "predictions.csv").read_bytes()
    for name in ("metrics.json", "predictions.csv", "model.safetensors"):
        (cell / name).unlink()
    resume_run(cell)
    assert (cell / "predictions.csv").read_bytes() == before.replace(b",1,0\n", b",0,0\n")  # a run has one fold


def test_nothing_finished_is_computed_again(
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = spec(cohort, models=MODELS)
    first, jobs = run(small, tmp_path, monkeypatch, only={"fold": ["0"]})
    assert len(jobs) == 2 and (first.cells, first.finished) == (2, 2)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("cells/**/*") if p.is_file()}
    second, jobs = run(small, tmp_path, monkeypatch)
    assert jobs == ["made/abmil/fold1_seed0", "made/small/fold1_seed0"]
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert second.rows[0] == first.rows[0] and len(second.rows) == 4
    third, jobs = run(small, tmp_path, monkeypatch)
    assert jobs == [] and third.rows == second.rows


def test_lost_tables_are_made_again_from_the_run_folders(
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, _ = run(spec(cohort), tmp_path, monkeypatch)
    (tmp_path / "results.parquet").unlink()
    (tmp_path / "results.csv").unlink()
    after, jobs = run(spec(cohort), tmp_path, monkeypatch)
    assert jobs == [] and after.rows == before.rows
    assert read_rows(tmp_path) == before.rows


def test_a_failing_cell_is_recorded_and_stops_no_other(
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = spec(cohort, models={"wild": DIVERGING, "abmil": ABMIL})
    result, jobs = run(small, tmp_path, monkeypatch)
    assert [r["status"] for r in result.rows] == ["failed", "finished", "failed", "finished"]
    assert "diverged" in result.rows[0]["error"] and result.rows[0]["macro_f1"] is None
    assert result.failed == 2 and "--retry-failed" in result.note and len(jobs) == 4
    _, jobs = run(small, tmp_path, monkeypatch)
    assert jobs == []
    again, jobs = run(small, tmp_path, monkeypatch, retry_failed=True)
    assert jobs == ["made/wild/fold0_seed0", "made/wild/fold1_seed0"] and again.failed == 2
    assert pl.read_csv(tmp_path / "results.csv")["status"].to_list() == [r["status"] for r in result.rows]


def test_a_bug_costs_its_cell_and_leaves_its_traceback(
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from qgmil.benchmark import worker

    monkeypatch.setattr(worker, "run_cell", lambda *_, **__: 1 // 0)
    result, _ = run(spec(cohort), tmp_path / "out", monkeypatch)
    assert result.rows[0]["error"].startswith("ZeroDivisionError")
    assert "1 // 0" in (tmp_path / "out" / "cells" / "made" / "abmil" / "fold0_seed0" / "error.txt").read_text()


def test_rows_of_another_machine_are_taken(
    cohort: Path,
    finished: tuple[Path, list],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = finished[0] / "results.parquet"
    both = {"abmil": ABMIL, "small": {**MODELS["small"], "train": {"epochs": 1}}}
    notes: list[str] = []

    class Notes:
        start = epoch = row = lambda *_: None

        def note(self, text: str) -> None:
            notes.append(text)

    result, jobs = run(spec(cohort, models=both, known=[str(table)]), tmp_path, monkeypatch, progress=Notes())
    assert jobs == ["made/small/fold0_seed0", "made/small/fold1_seed0"]  # trained otherwise: the same name, not it
    assert [r for r in result.rows if r["model"] == "abmil"] == [r for r in finished[1] if r["model"] == "abmil"]
    assert notes == ["8 rows of known tables are of other settings than this benchmark's: not used"]
    with pytest.raises(ReadError, match=r"nowhere\.parquet"):
        run_benchmark(spec(cohort), tmp_path / "other", known=[tmp_path / "nowhere.parquet"])


def test_changed_cells_are_never_overwritten(
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, _ = run(spec(cohort), tmp_path, monkeypatch)
    other = spec(cohort, common={**COMMON, "lr": 1e-3, "clip": 0.5})
    cell = tmp_path / "cells" / "made" / "abmil" / "fold0_seed0"
    before = (cell / "metrics.json").read_bytes()
    with pytest.raises(RunError, match=r"fold0_seed0 .*clip \(default\) -> 0\.5, lr 0\.003 -> 0\.001 \(2 cells"):
        run(other, tmp_path, monkeypatch)
    assert (cell / "metrics.json").read_bytes() == before
    result, jobs = run(other, tmp_path, monkeypatch, redo_changed=True)
    assert len(jobs) == 2 and result.finished == 2
    aside = tmp_path / "replaced" / "made" / "abmil" / "fold0_seed0"
    assert (aside / "metrics.json").read_bytes() == before != (cell / "metrics.json").read_bytes()
    assert read_rows(tmp_path) == result.rows and read_rows(tmp_path / "replaced.parquet") == first.rows
    back, _ = run(spec(cohort), tmp_path, monkeypatch, redo_changed=True)
    assert (aside.parent / "fold0_seed0.2").is_dir() and back.finished == 2


def test_the_tables_have_the_cells_of_the_yaml_alone(
    cohort: Path, finished: tuple[Path, list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results.parquet").write_bytes((finished[0] / "results.parquet").read_bytes())
    by_model = {m: [r for r in finished[1] if r["model"] == m] for m in ("abmil", "small", "linear_probe")}
    small = {**MODELS["small"], "train": {"epochs": 1}}  # changed, but outside --only: neither refused nor shown
    models = {"abmil": ABMIL, "linear_probe": {}, "small": small}
    again, jobs = run(spec(cohort, models=models), tmp_path, monkeypatch, only={"model": ["linear_probe"]})
    assert jobs == [] and (again.cells, again.finished) == (2, 2)
    there = read_rows(tmp_path / "results.parquet")
    assert there == again.rows and len(there) == 4  # those outside --only among them
    assert [r for r in there if r["model"] == "abmil"] == by_model["abmil"]
    assert pl.read_csv(tmp_path / "results.csv")["model"].to_list() == ["abmil", "linear_probe"] * 2
    aside = read_rows(tmp_path / "replaced.parquet")
    assert len(aside) == 6 and [r for r in aside if r["model"] == "small"] == by_model["small"]
    run(spec(cohort), tmp_path, monkeypatch)
    assert read_rows(tmp_path / "results.parquet") == by_model["abmil"]
    assert read_rows(tmp_path / "replaced.parquet") == [*aside, *by_model["linear_probe"]]


def test_known_rows_take_the_place_of_changed_ones(
    cohort: Path, finished: tuple[Path, list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = spec(cohort, common={**COMMON, "epochs": 1})
    old, _ = run(other, tmp_path / "out", monkeypatch)
    tables = [finished[0] / "results.parquet", tmp_path / "other.parquet"]
    tables[1].write_bytes((tmp_path / "out" / "results.parquet").read_bytes())  # the same cells, of other settings
    cell = tmp_path / "out" / "cells" / "made" / "abmil" / "fold0_seed0"
    before = (cell / "metrics.json").read_bytes()
    for known in (tables, tables[::-1]):
        result, jobs = run(spec(cohort), tmp_path / f"{known is tables}", monkeypatch, known=known)
        assert jobs == [] and result.rows == [r for r in finished[1] if r["model"] == "abmil"]
    result, jobs = run(spec(cohort), tmp_path / "out", monkeypatch, known=tables)
    assert jobs == [] and result.rows == [r for r in finished[1] if r["model"] == "abmil"]
    assert read_rows(tmp_path / "out") == result.rows
    assert read_rows(tmp_path / "out" / "replaced.parquet") == old.rows
    assert not cell.exists()  # of other settings than its row
    assert (tmp_path / "out" / "replaced" / "made" / "abmil" / "fold0_seed0" / "metrics.json").read_bytes() == before
    (tmp_path / "bare").mkdir()  # a table without run folders
    (tmp_path / "bare" / "results.parquet").write_bytes(tables[1].read_bytes())
    result, jobs = run(spec(cohort), tmp_path / "bare", monkeypatch, known=tables, redo_changed=True)
    assert jobs == [] and [r["epochs"] for r in result.rows] == [2, 2]


def test_a_changed_row_without_its_folder_is_not_overwritten_either(
    cohort: Path,
    finished: tuple[Path, list],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "results.parquet").write_bytes((finished[0] / "results.parquet").read_bytes())
    with pytest.raises(RunError, match=r"its run folder is gone"):
        run(spec(cohort, common={**COMMON, "epochs": 1}), tmp_path, monkeypatch)


def test_time_is_up(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, jobs = run(spec(cohort), tmp_path, monkeypatch, max_minutes=0)
    assert jobs == [] and result.rows == [] and "2 of 2 cells are left" in result.note
    with pytest.raises(ConfigError, match="max-minutes is -1"):
        run(spec(cohort), tmp_path, monkeypatch, max_minutes=-1)


def test_a_dry_run_writes_nothing(cohort: Path, finished: tuple[Path, list], tmp_path: Path) -> None:
    cells, state = state_of(spec(cohort), tmp_path / "new")
    assert len(cells) == len(state.todo) == 2 and not (tmp_path / "new").exists()
    _, state = state_of(spec(cohort, models=MODELS), finished[0])
    assert len(state.rows) == 4 and state.todo == []


def test_two_at_a_time_in_one_folder_are_refused(cohort: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / ".lock").write_text("4711")
    with (tmp_path / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunError, match=r"another qgmil benchmark is running in it \(process 4711\)"):
            run_benchmark(spec(cohort), tmp_path)


def test_attention_is_scored_where_instances_have_a_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_benchmark_cells import write_cells

    write_cells(tmp_path / "pbc")
    options = {"prevalence": 0.2, "bags": 20, "sizes": [5, 8]}
    drawn = {"drawn": {"named": "pbc", "root": str(tmp_path), "options": options, "draws": True}}
    result, _ = run(spec(tmp_path, datasets=drawn, folds=2), tmp_path / "out", monkeypatch)
    row = result.rows[1]
    cell = tmp_path / "out" / "cells" / "drawn" / "abmil" / "fold1_seed0"
    bags = qgmil.datasets.load_dataset("pbc", tmp_path, **{**options, "seed": 1, "sizes": (5, 8)}).bags
    model, found = qgmil.load_model(cell), []
    for bag in (bags[i] for i in range(len(bags)) if bags.bag_ids[i].startswith("test")):
        truth = bag.instance_labels.numpy()
        if truth.any():
            weights = model(bag, return_attention=True).attention.detach().numpy()
            found.append((roc_auc_score(truth, weights), average_precision_score(truth, weights)))
    assert len(found) == 2
    assert (row["instance_auroc"], row["instance_ap"]) == pytest.approx(tuple(np.mean(found, axis=0)), abs=1e-9)
    assert set(row["test_bags"]).isdisjoint(result.rows[0]["test_bags"])  # other bags, though of the same names


def test_a_search_decides_what_a_cell_trains_with(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    search = {"trials": 2, "space": {"epochs": {"choices": [1]}}}
    result, _ = run(spec(cohort, search=search), tmp_path / "searched", monkeypatch, only={"fold": ["0"]})
    assert [r["epochs"] for r in result.rows] == [1]
    cell = tmp_path / "searched" / "cells" / "made" / "abmil" / "fold0_seed0"
    assert "epochs: 1\n" in (cell / "config.yaml").read_text() and (cell / "search.json").is_file()
    with pytest.raises(RunError, match=r"fold0_seed0 was computed with other settings: search \{.*-> \(default\)"):
        run(spec(cohort), tmp_path / "searched", monkeypatch)
    with pytest.raises(ConfigError, match="trials"):
        run(spec(cohort, search={**search, "trials": 0}), tmp_path / "other", monkeypatch)
