"""What counts as the same data: its content and how it is read, not where it lies or how its table is written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_benchmark import ABMIL, COMMON, run, spec, values

from cohort import make_cohort
from qgmil.bags.dataset import open_bags
from qgmil.bags.store.pack import pack_store
from qgmil.benchmark import cells as planning
from qgmil.benchmark import sources, worker
from qgmil.benchmark.cells import PlannedCell, plan
from qgmil.benchmark.engines.ray import node_folder
from qgmil.benchmark.rows import row_of
from qgmil.benchmark.sources import file_digest, open_source
from qgmil.benchmark.spec import BenchmarkSpec
from qgmil.benchmark.worker import run_job
from qgmil.errors import ConfigError
from qgmil.training.runfolder import read_predictions


def identity(path: Path, **how: Any) -> str:
    return open_source({"manifest": str(path), **how}, in_memory="no").identity


def planned(**changes: Any) -> list[PlannedCell]:
    return plan(BenchmarkSpec.build(values(Path("unused"), **changes)))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("data"), patients=12)


def two_columns(folder: Path) -> Path:
    """A table with two columns of feature files: the second one's are other numbers."""
    one = make_cohort(folder, patients=12)
    make_cohort(folder / "other", patients=12, seed=1)
    lines = one.read_text().splitlines()
    rows = [f"{line},other/features/{line.split(',')[0]}.npy" for line in lines[1:]]
    one.write_text("\n".join([lines[0] + ",conch", *rows]) + "\n")
    return one


def test_each_feature_set_of_a_table_is_trained_on_its_own(tmp_path: Path) -> None:
    table = two_columns(tmp_path / "data")
    sets = {"features": {"a": {"features": "features"}, "b": {"features": "conch"}}, "manifest": str(table)}
    found = [c for c in planned(datasets={"two": sets}) if c.fold == 0]
    assert found[0].identity != found[1].identity and found[0].fingerprint != found[1].fingerprint
    said = {}
    for name, order in (("together", found), ("alone", found[1:])):
        worker._open.clear()
        for cell in order:
            row = run_job(cell.job(str(tmp_path / name / cell.features)))
            assert row["status"] == "finished", row["error"]
            said[name, cell.features] = row["test_probabilities"]
    assert said["together", "b"] == said["alone", "b"] != said["together", "a"]


def test_the_open_bags_are_of_one_way_to_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the identity of two ways to read a table the same, the bags would still not be."""
    table = two_columns(tmp_path / "data")
    monkeypatch.setattr(sources, "_identity", lambda *_: "the same")
    worker._open.clear()
    (cell, *_) = planned(datasets={"one": {"manifest": str(table)}})
    job = cell.job(str(tmp_path / "cell"))
    before = worker._opened(job, cell.config)
    assert worker._opened(job, cell.config) is before
    other = {**job, "source": {**job["source"], "features": "conch"}}
    found = worker._opened(other, cell.config).bags[0].features
    worker._open.clear()
    assert not np.array_equal(found.numpy(), before.bags[0].features.numpy())


def test_equal_tables_of_other_features_are_other_data(tmp_path: Path) -> None:
    uni, conch = (make_cohort(tmp_path / name, patients=12, seed=seed) for name, seed in (("uni", 0), ("conch", 1)))
    assert uni.read_bytes() == conch.read_bytes()
    assert identity(uni) != identity(conch)
    assert identity(uni) == identity(make_cohort(tmp_path / "again", patients=12))


def test_features_computed_anew_are_other_data(tmp_path: Path) -> None:
    table = make_cohort(tmp_path, patients=12)
    file = tmp_path / "features" / "p03_0.npy"
    before, stat = identity(table), file.stat()
    assert identity(table) == before
    content = np.load(file)
    content[-1, -1] += 1
    np.save(file, content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert file.stat().st_size == stat.st_size and identity(table) != before


def test_how_a_table_is_written_decides_nothing(tmp_path: Path) -> None:
    table = make_cohort(tmp_path, patients=12)
    before, lines = identity(table), table.read_text().splitlines()
    table.write_bytes(("\r\n".join([lines[0] + ",note", *(f"{x},n{i}" for i, x in enumerate(lines[1:]))])).encode())
    assert identity(table) == before
    table.write_text("\n".join(lines).replace("features/", f"{tmp_path}/features/"))
    assert identity(table) == before


@pytest.mark.parametrize("change", [("P05", "P06"), ("p03_0,", "q03_0,"), ("P01,tumour", "P01,benign")])
def test_patients_bags_and_labels_decide(manifest: Path, tmp_path: Path, change: tuple[str, str]) -> None:
    table = make_cohort(tmp_path, patients=12)
    assert identity(table) == identity(manifest)
    table.write_text(table.read_text().replace(*change))
    assert identity(table) != identity(manifest)


def test_how_bags_are_read_decides(manifest: Path) -> None:
    assert len({identity(manifest), identity(manifest, bag_per="patient"), identity(manifest, patient="none")}) == 3


def test_a_store_is_its_own_name(manifest: Path, tmp_path: Path) -> None:
    one, two = (pack_store(manifest, tmp_path / name).path for name in ("one", "two"))
    assert identity(one) == identity(two) != identity(manifest)
    assert identity(one, patient="none") != identity(one)


def test_large_files_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(sources, "SAMPLE_BYTES", 100)

    def digest(content: bytes, name: str = "a") -> str:
        path = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        path.write_bytes(content)
        return file_digest(path)

    zeros = bytes(10_000)
    assert digest(zeros) == digest(zeros, "elsewhere")
    expected = hashlib.sha256(b"10000\0" + bytes(300)).hexdigest()
    assert digest(zeros) == expected
    for at in (0, 99, 4950, 5049, 9900, 9999):
        assert digest(zeros[:at] + b"x" + zeros[at + 1 :]) != expected
    assert digest(bytes(10_001)) != expected
    assert digest(b"x" * 900) != digest(b"x" * 500 + b"y" + b"x" * 399)


def test_the_identity_is_cheap_to_ask_again(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = identity(manifest)
    before = sources._digest.cache_info()
    assert identity(manifest) == first
    after = sources._digest.cache_info()
    assert after.misses == before.misses and after.hits == before.hits + 24


def test_named_data_sets_are_what_is_in_their_files(tmp_path: Path) -> None:
    bags = open_bags(make_cohort(tmp_path, patients=4))
    before = sources._identity({}, bags)
    file = tmp_path / "features" / "p01_1.npy"
    size, mtime = file.stat().st_size, file.stat().st_mtime_ns
    np.save(file, np.load(file) + 1)
    os.utime(file, ns=(mtime, mtime + 1_000_000_000))
    assert file.stat().st_size == size and sources._identity({}, bags) != before


def test_a_worker_sees_that_the_features_changed(tmp_path: Path) -> None:
    table = make_cohort(tmp_path / "data", patients=12)
    (cell, *_) = planned(datasets={"made": {"manifest": str(table)}})
    file = tmp_path / "data" / "features" / "p00_0.npy"
    mtime = file.stat().st_mtime_ns
    np.save(file, np.load(file) * 2)
    os.utime(file, ns=(mtime, mtime + 1_000_000_000))
    worker._open.clear()
    row = run_job(cell.job(str(tmp_path / "cell")))
    assert row["status"] == "failed" and "has changed since the benchmark was planned" in row["error"]


def test_auto_is_the_precision_that_it_comes_to(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cell(lightning: str, **common: Any) -> PlannedCell:
        monkeypatch.setattr(planning, "choose_precision", lambda name, device: lightning)
        data = {"made": {"manifest": str(manifest)}}
        return planned(datasets=data, common={**COMMON, **common})[0]

    single, half = (cell(name, precision="auto") for name in ("32-true", "bf16-mixed"))
    assert "precision" not in single.settings["training"] and single.fingerprint != half.fingerprint
    assert half.settings == cell("unused", precision="bf16").settings
    assert [c.job("x")["config"]["precision"] for c in (single, half)] == ["32", "bf16"]
    with pytest.raises(ConfigError, match=r"datasets\.made: models\.abmil: precision is auto.*no cuda; set precision"):
        monkeypatch.setattr(planning, "choose_device", lambda _: (_ for _ in ()).throw(ConfigError("no cuda")))
        auto = values(manifest, common={**COMMON, "precision": "auto"})
        plan(BenchmarkSpec.build(auto), check_device=False)  # where other machines compute


def test_two_cells_of_one_fingerprint_have_a_folder_each(manifest: Path) -> None:
    models = {"abmil": ABMIL, "same": {**ABMIL, "model": "abmil"}}
    one, two = planned(datasets={"made": {"manifest": str(manifest)}}, models=models)[:2]
    assert one.fingerprint == two.fingerprint
    assert node_folder(one.job("a")) == node_folder(one.job("b")) != node_folder(two.job("a"))


def test_names_cannot_be_found_by_trying(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run(spec(manifest), tmp_path, monkeypatch)
    cell = tmp_path / "cells" / "made" / "abmil" / "fold0_seed0"
    rows = [r for r in read_predictions(cell) if r["part"] == "test"]
    salt = open_source({"manifest": str(manifest)}).identity
    row = result.rows[0]

    def hashed(name: str) -> str:
        return hashlib.sha256(json.dumps([salt, None, name]).encode()).hexdigest()[:12]

    assert row["test_bags"] == [hashed(r["bag_id"]) for r in rows]
    assert row["test_patients"] == [hashed(r["patient_id"]) for r in rows]
    assert salt not in json.dumps(row, default=str)
    content = json.loads((cell / "cell.json").read_text())
    (cell / "cell.json").write_text(json.dumps({**content, "salt": "another"}))
    assert set(row_of(cell)["test_bags"]).isdisjoint(row["test_bags"])


def test_patients_are_the_same_in_every_draw(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(spec(manifest), tmp_path, monkeypatch)
    cell = tmp_path / "cells" / "made" / "abmil" / "fold0_seed0"
    content = json.loads((cell / "cell.json").read_text())
    drawn = []
    for draw in (0, 1):
        (cell / "cell.json").write_text(json.dumps({**content, "draw": draw}))
        drawn.append(row_of(cell))
    assert drawn[0]["test_patients"] == drawn[1]["test_patients"]
    assert set(drawn[0]["test_bags"]).isdisjoint(drawn[1]["test_bags"])


def test_draws_share_their_salt_and_bags_without_patients_follow_the_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = {"named": "witness", "options": {"bags_per_class": 12, "sizes": [4, 6], "width": 6}, "draws": True}
    found = planned(datasets={"drawn": witness})
    assert len({c.identity for c in found}) == 2 and {c.salt for c in found} == {found[0].identity}
    result, _ = run(spec(tmp_path, datasets={"drawn": witness}), tmp_path / "out", monkeypatch)
    one, two = result.rows
    assert one["test_patients"] == one["test_bags"] and set(one["test_bags"]).isdisjoint(two["test_bags"])


def test_feature_sets_with_other_splits_are_refused(tmp_path: Path) -> None:
    options = {"bags_per_class": 12, "sizes": [4, 6], "width": 6}
    both = {"draws": {"draws": True}, "own": {"official": True}}
    sets = {"named": "witness", "options": options, "features": both}
    with pytest.raises(ConfigError, match=r"features\.draws and features\.own have different splits, 2 and 1 pairs"):
        planned(datasets={"two": sets})
    with pytest.raises(
        ConfigError, match=r"features\.own and features\.draws have .* 1 and 2 .*draws has seed 0, fold 1"
    ):
        planned(datasets={"two": {**sets, "features": dict(reversed(both.items()))}})


WITNESS = {"named": "witness", "draws": True}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"known": 5}, r"benchmark: known is 5; it must be a results table, or a list"),
        ({"known": ["a.parquet", 5]}, r"known is \['a\.parquet', 5\]"),
        ({"datasets": {"w": {**WITNESS, "options": {"seed": "abc"}}}}, r"datasets\.w\.options\.seed is 'abc'.*whole"),
        ({"datasets": {"w": {**WITNESS, "options": {"prevalence": "abc"}}}}, r"w\.options\.prevalence is 'abc'.*0\.2"),
        (
            {"datasets": {"w": {**WITNESS, "options": {"sizes": 5}}}},
            r"w\.options\.sizes is 5; .* a list, like \[20, 60\]",
        ),
        ({"datasets": {"w": {**WITNESS, "options": {"sizes": [5, "x"]}}}}, r"w\.options\.sizes is \[5, 'x'\]"),
        ({"datasets": {"w": {**WITNESS, "options": {"bags_per_class": True}}}}, r"bags_per_class is True"),
        ({"datasets": {"w": {**WITNESS, "options": {"shuffled": 1}}}}, r"shuffled is 1; .* true or false"),
        (
            {"datasets": {"w": {"named": "tiger", "features": {"a": {"options": {"file": 1}}}}}},
            r"datasets\.w\.features\.a\.options\.file is 1; tiger takes text",
        ),
        ({"datasets": {"w": {"named": "witness", "official": True, "folds": 3}}}, r"official and folds exclude each"),
    ],
)
def test_values_of_other_types_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BenchmarkSpec.build(values(Path("unused"), **changes))


def test_values_of_the_right_types_are_taken(manifest: Path) -> None:
    options = {"prevalence": 1, "sizes": [5, 8], "seed": 3, "shuffled": True}
    built = BenchmarkSpec.build(values(manifest, datasets={"w": {**WITNESS, "options": options}}, known="k.parquet"))
    assert built.datasets["w"].options == options and [p.name for p in built.known] == ["k.parquet"]
    data = {"made": {"manifest": str(manifest), "split_column": "fold"}}
    one, many = (planned(datasets={"made": {**data["made"], "split_column": c}}) for c in ("fold", ["fold"]))
    assert len(one) == 3 and [c.fingerprint for c in one] == [c.fingerprint for c in many]
