"""The yaml of a benchmark: what it means, and that what is wrong with it is said by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_benchmark import ABMIL, values

from cohort import make_cohort
from qgmil.benchmark.cells import plan
from qgmil.benchmark.spec import BenchmarkSpec
from qgmil.errors import ConfigError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("data"), patients=12)


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fold": 3}, r"bench\.yaml: there is no option 'fold'"),
        ({"folds": 1}, r"bench\.yaml: folds = 1"),
        ({"models": {}}, r"models must be a table"),
        ({"models": {"abmill": {}}}, r"models\.abmill: unknown model 'abmill'.*abmil"),
        ({"models": {"a": {"model": "abmil", "option": 1}}}, r"models\.a: there is no option 'option'"),
        ({"models": {"a/b": {"model": "abmil"}}}, r"models: the name 'a/b' cannot be used"),
        ({"models": {"A": ABMIL | {"model": "abmil"}, "a": {"model": "abmil"}}}, "twice, apart from capitals"),
        ({"models": {"abmil": {"train": {"widht": 3}}}}, r"models\.abmil\.train: 'widht' is not a field of training"),
        ({"models": {"abmil": {"train": {"lr": -1}}}}, r"models\.abmil\.train: lr = -1"),
        ({"models": {"mean": {"recipe": "published"}}}, r"models\.mean: .*no published recipe"),
        ({"common": {"folds": 3}}, r"common: 'folds' is not a field of training"),
        ({"datasets": {"made": {}}}, r"datasets\.made: needs either manifest .* or named"),
        ({"datasets": {"made": {"named": "musk1", "label": "x"}}}, r"datasets\.made: label belongs to a manifest"),
        ({"datasets": {"made": {"manifest": "$QGMIL_NOWHERE/bags.csv"}}}, r"QGMIL_NOWHERE, which is not set"),
        ({"datasets": {"made": {"manifest": "a.csv", "draws": True}}}, r"draws belongs to a named data set"),
        ({"datasets": {"two": {"features": {"a": {"manifst": "x"}}}}}, r"datasets\.two\.features\.a: .*'manifst'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, manifest: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BenchmarkSpec.read(write(tmp_path, values(manifest, **changes)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"datasets": {"gone": {"manifest": "/nowhere/bags.csv"}}}, r"b\.yaml: datasets\.gone: .*/nowhere/bags\.csv"),
        ({"datasets": {"odd": {"named": "musk9"}}}, r"datasets\.odd: unknown data set 'musk9'.*musk1"),
        ({"datasets": {"odd": {"named": "musk1", "options": {"x": 1}}}}, r"datasets\.odd: .*no option 'x'"),
        ({"folds": 40}, r"datasets\.made: 12 patients cannot fill 40 folds"),
        ({"models": {"abmil": {"options": {"widht": 8}}}}, r"datasets\.made: models\.abmil: .*no option 'widht'"),
        ({"common": {"monitor": "val_auroc"}, "val": 0.02}, None),
    ],
)
def test_what_cannot_be_planned_is_named(manifest: Path, changes: dict[str, Any], said: str | None) -> None:
    given = BenchmarkSpec.build(values(manifest, **changes))
    if said is None:
        assert len(plan(given)) == 2  # validation parts hold both classes wherever patients allow it
        return
    with pytest.raises(ConfigError, match=said):
        plan(given, "b.yaml")


def test_paths_are_those_of_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COHORTS", "there")
    datasets = {"a": {"manifest": "${COHORTS}/bags.csv"}, "b": {"features": {"uni": {"manifest": "u.csv"}}}}
    content = values(tmp_path, datasets=datasets, output="out", known=["k.parquet"])
    found = BenchmarkSpec.read(write(tmp_path, content))
    assert found.datasets["a"].manifest == str(tmp_path / "there" / "bags.csv")
    assert found.datasets["b"].sources()["uni"].manifest == str(tmp_path / "u.csv")
    assert found.output == tmp_path / "out" and found.known == (tmp_path / "k.parquet",)


def test_a_benchmark_as_published_trains_by_the_common_recipe_what_has_no_other() -> None:
    models = {"clam_sb": {}, "mean": {}, "ours": {"model": "clam_sb", "recipe": "common"}}
    values = {"datasets": {"a": {"named": "musk1"}}, "models": models, "recipe": "published", "common": {"lr": 0.5}}
    spec = BenchmarkSpec.build(values)
    assert {label: spec.recipe_of(label) for label in models} == {
        "clam_sb": "published",
        "mean": "common",
        "ours": "common",
    }
    assert spec.train_values("a", "mean") == {"lr": 0.5} and spec.train_values("a", "clam_sb") == {}


def test_what_wins(manifest: Path) -> None:
    """Model over data set over common recipe; under the published recipe `common` decides only about the machine."""
    models = {
        "abmil": {"train": {"lr": 0.5}},
        "own": {"model": "abmil", "recipe": "published", "train": {"epochs": 3}},
    }
    datasets = {"made": {"manifest": str(manifest), "train": {"lr": 0.1, "clip": 2.0}}}
    common = {"lr": 0.01, "clip": 3.0, "weight_decay": 0.3, "device": "cpu"}
    built = plan(BenchmarkSpec.build(values(manifest, models=models, datasets=datasets, common=common)))
    abmil, own = (next(c.config for c in built if c.model == m) for m in ("abmil", "own"))
    assert (abmil.lr, abmil.clip, abmil.weight_decay, abmil.recipe) == (0.5, 2.0, 0.3, "common")
    assert (own.epochs, own.clip, own.device, own.recipe) == (3, 2.0, "cpu", "published")
    from qgmil.models.abmil import ABMIL as Published

    assert own.weight_decay == Published.published_recipe["weight_decay"] != 0.3


def test_controls_are_there_unless_they_are_not_wanted(manifest: Path) -> None:
    names = set(BenchmarkSpec.build(values(manifest, controls=True)).all_models())
    assert names == {"abmil", "linear_probe", "bag_size", "majority"}
    assert set(BenchmarkSpec.build(values(manifest)).all_models()) == {"abmil"}
    mine = {"abmil": {}, "probe": {"model": "linear_probe", "options": {"c": 0.1}}}
    assert "linear_probe" not in BenchmarkSpec.build(values(manifest, controls=True, models=mine)).all_models()


def test_a_written_spec_is_read_back(tmp_path: Path, manifest: Path) -> None:
    datasets = {"two": {"features": {"a": {"manifest": str(manifest)}}, "train_patients": 4, "train": {"lr": 0.1}}}
    before = BenchmarkSpec.build(values(manifest, datasets=datasets, models={"x": {"model": "abmil"}}))
    again = BenchmarkSpec.read(write(tmp_path, before.model_dump(mode="json", exclude_defaults=True)))
    assert [c.fingerprint for c in plan(again)] == [c.fingerprint for c in plan(before)]
