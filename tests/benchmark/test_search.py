"""Search inside the training part: the budget, resuming, determinism, and that the test bags play no part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.small_benchmark import run, spec, values
from qgmil.bags.dataset import BagDataset
from qgmil.bags.splits import Split
from qgmil.benchmark import search as module
from qgmil.benchmark.search import check_search, run_search, tuned_config, with_values
from qgmil.benchmark.space import SearchSpec
from qgmil.datasets import load_dataset
from qgmil.errors import ConfigError, QGMILError
from qgmil.files import read_csv
from qgmil.training.cell import Cell
from qgmil.training.config import TrainConfig
from qgmil.training.runfolder import read_run

pytest.importorskip("optuna")
SPACE = {"lr": {"low": "1e-4", "high": 1e-2, "log": True}, "options.width": {"choices": [4, 8]}}
CONFIG = TrainConfig.build(
    {"model": "mean", "epochs": 2, "min_epochs": 1, "batch_size": 8, "device": "cpu", "options": {"dropout": 0.1}}
)


@pytest.fixture(scope="module")
def bags() -> tuple[BagDataset, Split]:
    made = load_dataset("witness", bags_per_class=10, sizes=(3, 6), width=4)
    return made.bags, made.splits[0]


def parts(bags: tuple[BagDataset, Split]) -> tuple[BagDataset, BagDataset]:
    row = {bag: i for i, bag in enumerate(bags[0].bag_ids)}
    train, val = ([row[b] for b in ids] for ids in (bags[1].train, bags[1].val))
    return bags[0].subset(train), bags[0].subset(val)


class Score:
    """Stands for a training: the score is a function of the configuration; told to, it dies like a killed process."""

    def __init__(self, die_at: int | None = None) -> None:
        self.seen: list[tuple[float, int]] = []
        self.die_at = die_at

    def __call__(self, train: Any, val: Any, classes: Any, config: TrainConfig, seed: int) -> dict[str, float | None]:
        if self.die_at == len(self.seen):
            raise KeyboardInterrupt
        self.seen.append((config.lr, config.options["width"]))
        nll = abs(config.lr - 2e-3) * 100 + (config.options["width"] == 4)
        return {"val_nll": nll, "val_loss": -nll, "val_macro_f1": 1 / (1 + nll), "val_auroc": None}


def searched(folder: Path, bags: tuple[BagDataset, Split], seed: int = 0, **spec: Any) -> module.SearchResult:
    made = SearchSpec.build({"trials": 12, "space": SPACE, **spec})
    return run_search(*parts(bags), ["0", "1"], CONFIG, made, folder, seed)


def test_the_best_trial_on_validation_is_chosen_and_everything_is_written(
    bags: tuple[BagDataset, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "score", score := Score())
    found = searched(tmp_path, bags)
    assert len(score.seen) == len(found.trials) == 12
    assert all(1e-4 <= lr <= 1e-2 and width in (4, 8) for lr, width in score.seen)
    assert len({lr for lr, _ in score.seen}) == 12
    best = min(score.seen, key=lambda s: abs(s[0] - 2e-3) * 100 + (s[1] == 4))
    assert (found.config.lr, found.config.options["width"]) == best
    assert found.config.options["dropout"] == 0.1
    assert found.config.model_copy(update={"lr": CONFIG.lr, "options": CONFIG.options}) == CONFIG
    rows = read_csv(tmp_path / "search.csv")
    assert [float(r["lr"]) for r in rows] == [lr for lr, _ in score.seen]
    assert min(float(r["score"]) for r in rows) == found.score
    written = json.loads((tmp_path / "search.json").read_text())
    assert written["choice"] == found.values == {"lr": best[0], "options.width": best[1]}


def test_a_metric_to_maximise_is_maximised_and_an_undefined_one_is_a_reason(
    bags: tuple[BagDataset, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "score", Score())
    f1 = searched(tmp_path / "a", bags, metric="val_macro_f1")
    assert f1.score == max(r["score"] for r in f1.trials)
    assert f1.score == 1 / (1 + abs(f1.config.lr - 2e-3) * 100 + (f1.config.options["width"] == 4))
    with pytest.raises(ConfigError, match="none of the 12 trials of mean could be trained: val_auroc is undefined"):
        searched(tmp_path / "c", bags, metric="val_auroc")


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_killed_search_redoes_no_finished_trial_and_ends_the_same(
    sampler: str, bags: tuple[BagDataset, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "score", whole := Score())
    never_stopped = searched(tmp_path / "whole", bags, sampler=sampler)
    monkeypatch.setattr(module, "score", first := Score(die_at=7))
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "killed", bags, sampler=sampler)
    monkeypatch.setattr(module, "score", second := Score())
    resumed = searched(tmp_path / "killed", bags, sampler=sampler)
    assert (len(first.seen), len(second.seen)) == (7, 5)
    assert first.seen + second.seen == whole.seen
    assert resumed.config == never_stopped.config
    monkeypatch.setattr(module, "score", third := Score())
    assert searched(tmp_path / "killed", bags, sampler=sampler).config == resumed.config
    assert not third.seen
    more = searched(tmp_path / "killed", bags, sampler=sampler, trials=14)  # a larger budget goes on
    assert (len(third.seen), len(more.trials)) == (2, 14)
    fewer = searched(tmp_path / "killed", bags, sampler=sampler, trials=3)
    assert [r["lr"] for r in fewer.trials] == [lr for lr, _ in whole.seen[:3]]


def test_the_same_seed_draws_the_same_and_another_differs(
    bags: tuple[BagDataset, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    for name, seed, own in (("a", 0, 0), ("b", 0, 0), ("c", 1, 0), ("d", 0, 1)):
        monkeypatch.setattr(module, "score", score := Score())
        searched(tmp_path / name, bags, seed=seed, **({"space": SPACE, "trials": 4} if not own else {"trials": 4}))
        drawn.append(score.seen)
    assert drawn[0] == drawn[1] == drawn[3]
    assert drawn[0] != drawn[2]
    monkeypatch.setattr(module, "score", score := Score())
    run_search(
        *parts(bags), ["0", "1"], CONFIG, SearchSpec.build({"trials": 4, "seed": 5, "space": SPACE}), tmp_path, 0
    )
    assert score.seen != drawn[0]


def test_another_space_in_the_same_folder_is_another_search(
    bags: tuple[BagDataset, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "score", score := Score())
    searched(tmp_path, bags, trials=3)
    found = searched(tmp_path, bags, trials=3, space={**SPACE, "options.width": {"low": 4, "high": 8}})
    assert len(score.seen) == 6
    assert isinstance(found.values["options.width"], int)


def test_parameters_that_a_model_lacks_are_skipped_and_said(bags: tuple[BagDataset, Split], tmp_path: Path) -> None:
    spec = SearchSpec.build({"trials": 2, "space": {**SPACE, "options.gate": {"choices": ["none"]}}})
    probe = TrainConfig.build({"model": "linear_probe", "device": "cpu"})
    found = run_search(*parts(bags), ["0", "1"], probe, spec, tmp_path, 0)
    assert found.config == probe
    assert found.skipped == ("lr", "options.width", "options.gate")
    assert json.loads((tmp_path / "search.json").read_text())["skipped"] == list(found.skipped)
    spec = SearchSpec.build(
        {"trials": 2, "space": {"lr": SPACE["lr"], "options.c": {"low": 0.1, "high": 10, "log": True}}}
    )
    found = run_search(*parts(bags), ["0", "1"], probe, spec, tmp_path, 0)
    assert found.skipped == ("lr",)
    assert 0.1 <= found.config.options["c"] <= 10


def test_a_trial_that_cannot_be_trained_counts_and_is_recorded(bags: tuple[BagDataset, Split], tmp_path: Path) -> None:
    config = TrainConfig.build({**CONFIG.model_dump(), "model": "qgmil", "epochs": 1, "options": {"ffn_dim": 8}})
    space = {"options.width": {"choices": [8, 9]}, "options.num_heads": {"choices": [2]}}
    spec = SearchSpec.build({"trials": 6, "sampler": "random", "space": space})
    found = run_search(*parts(bags), ["0", "1"], config, spec, tmp_path, 0)
    states = {r["options.width"]: r["state"] for r in found.trials}
    assert len(found.trials) == 6
    assert states == {8: "finished", 9: "failed"}
    assert all("width=9 is not a multiple of num_heads=2" in r["error"] for r in found.trials if r["state"] == "failed")
    assert found.config.options == {"ffn_dim": 8, "width": 8, "num_heads": 2}


def test_the_test_bags_play_no_part(bags: tuple[BagDataset, Split], tmp_path: Path) -> None:
    """The same choice whatever the test bags are, even bags that cannot be read."""
    dataset, split = bags
    search = check_search({"trials": 2, "space": SPACE}, ["mean"], "bench.yaml")
    without = dataset.subset([*split.train, *split.val])
    cells = [Cell(split, 0, 3, tmp_path / "a"), Cell(split, 0, 3, tmp_path / "b")]
    seen: list[tuple[int, int]] = []
    found = [
        tuned_config(cell, known, ["0", "1"], CONFIG, search, on_trial=lambda done, most, _: seen.append((done, most)))
        for cell, known in zip(cells, (dataset, without), strict=True)
    ]
    assert found[0] == found[1]
    assert seen == [(1, 2), (2, 2)] * 2
    trials = [read_csv(cell.folder / "search.csv") for cell in cells]
    assert [r["score"] for r in trials[0]] == [r["score"] for r in trials[1]]


def test_the_section_is_normalised_so_that_it_can_be_fingerprinted() -> None:
    short = check_search({"space": {"options.num-heads": {"choices": [1, 2]}}}, ["qgmil"], "b.yaml")
    space = {"options.num_heads": {"choices": [1, 2], "log": False}}
    whole = {"trials": 20, "metric": "val_nll", "sampler": "tpe", "seed": 0, "space": space}
    long = check_search(whole, ["qgmil"], "b.yaml")
    assert short == long == json.loads(json.dumps(long))
    assert check_search(long, ["qgmil"], "b.yaml") == long


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"trials": 0, "space": SPACE}, "b.yaml: search: trials = 0"),
        ({"space": {}}, "space is a table of parameters"),
        ({"trail": 3, "space": SPACE}, "there is no option 'trail'; the options are trials"),
        ({"metric": "test_f1", "space": SPACE}, "metric = 'test_f1'"),
        ({"space": {"lrr": {"choices": [1]}}}, r"'lrr', which cannot be searched: did you mean lr\?"),
        ({"space": {"monitor": {"choices": ["val_loss"]}}}, "'monitor', which cannot be searched"),
        ({"space": {"lr": {"low": -1.0, "high": 1.0}}}, "lr = -1.0"),
        ({"space": {"lr": {"low": 1.0, "high": 0.1}}}, r"low=1.0 must be below high=0.1"),
        ({"space": {"lr": {"low": 0.0, "high": 0.1, "log": True}}}, "a log scale needs low above 0"),
        ({"space": {"lr": {"low": "fast", "high": 1}}}, "'fast' is no number"),
        ({"space": {"lr": {"low": 0.1}}}, "give low and high, or choices"),
        ({"space": {"lr": {"choices": [0.1], "low": 0.1}}}, "not both"),
        ({"space": {"options.widht": {"choices": [1]}}}, r"no model .* has that option: did you mean options.width\?"),
    ],
)
def test_mistakes_are_named(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_search(section, ["mean", "qgmil"], "b.yaml")


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs Optuna, which is not installed: pip install 'qgmil\[search\]'"):
        check_search({"space": SPACE}, ["mean"], "b.yaml")


def test_values_go_where_they_belong() -> None:
    config = with_values(CONFIG, {"lr": 0.5, "options.width": 7})
    assert (config.lr, config.options) == (0.5, {"dropout": 0.1, "width": 7})
    with pytest.raises(ConfigError, match="epochs = 0"):
        with_values(CONFIG, {"epochs": 0})


def test_a_benchmark_trains_each_cell_with_what_its_search_found(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"trials": 2, "space": {"lr": SPACE["lr"], "options.width": {"choices": [8, 16]}}}
    changes: dict[str, Any] = {"models": {"abmil": {"options": {"attention_dim": 8}}, "linear_probe": {}}}
    changes["common"] = {**values(cohort)["common"], "epochs": 1, "min_epochs": 1}
    result, jobs = run(spec(cohort, **changes, search=section), tmp_path, monkeypatch)
    assert (result.finished, result.failed, len(jobs)) == (4, 0, 4)
    for fold in (0, 1):
        folder = tmp_path / "cells" / "made" / "abmil" / f"fold{fold}_seed0"
        choice = json.loads((folder / "search.json").read_text())["choice"]
        config, _ = read_run(folder)
        assert (config.lr, config.options["width"]) == (choice["lr"], choice["options.width"])
        assert config.options["attention_dim"] == 8
        assert json.loads((folder / "config.json").read_text())["options"]["width"] == choice["options.width"]
        assert len(read_csv(folder / "search.csv")) == 2
    probe = tmp_path / "cells" / "made" / "linear_probe" / "fold0_seed0"
    assert json.loads((probe / "search.json").read_text())["skipped"] == ["lr", "options.width"]
    again, jobs = run(spec(cohort, **changes, search=section), tmp_path, monkeypatch)
    assert (again.rows, jobs) == (result.rows, [])
    without = {r["fingerprint"] for r in result.rows}
    with pytest.raises(QGMILError, match="trials 2 -> 3"):  # other trials are another cell: refused, not mixed
        run(spec(cohort, **changes, search={**section, "trials": 3}), tmp_path, monkeypatch)
    other, _ = run(spec(cohort, **changes), tmp_path / "b", monkeypatch)
    assert without.isdisjoint(r["fingerprint"] for r in other.rows)
