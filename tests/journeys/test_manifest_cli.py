"""From the folder that another tool left to a trained model: one command for the manifest, one for the training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bags import layouts as trees
from bags.layouts import BagRow
from cohort import make_cohort
from commandline import run
from qgmil.bags.check import check_bags
from qgmil.bags.manifest import Manifest
from qgmil.errors import ConfigError, RunError, SplitError
from qgmil.training.config import TrainConfig
from qgmil.training.run import resume_run, train_run

TINY = ["--model", "abmil", "--options.width", "8", "--epochs", "1", "--device", "cpu", "-q"]
QUICK = {"model": "abmil", "options": {"width": 8}, "epochs": 1, "device": "cpu", "precision": "32"}
#: Ten patients, two of whom have two slides.
COHORT = tuple(
    BagRow(f"slide_{p:02d}{s}", f"{p:04d}", ("normal", "tumour")[p % 2], 3 + p)
    for p in range(10)
    for s in ("ab" if p < 2 else "a")
)


@pytest.fixture
def cohort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, in which trees of the larger cohort are made."""
    monkeypatch.setattr(trees, "BAGS", COHORT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


#: Tree -> options of the manifest ("TREE" is its folder), bags, options of the training.
JOURNEYS: dict[str, tuple[list[str], int, list[str]]] = {
    "trident": (["--labels", "TREE/k=all.tsv"], 12, []),
    "clam": (["--labels", "TREE/labels.csv"], 12, []),
    "stamp": (["--labels", "TREE/clini.csv", "--slides", "TREE/slides.csv", "--target", "label"], 10, []),
    "torchmil": ([], 12, []),
    "slideflow": ([], 12, []),
    "pathforge": (["--labels", "TREE/labels.csv"], 12, []),
    "dsmil": (["--format", "dsmil", "--dataset", "2"], 12, []),  # which the manifest remembers
    "acmil": ([], 12, []),
    "cells": ([], 12, []),
    "scemila": ([], 12, []),
}


@pytest.mark.parametrize("name", JOURNEYS)
def test_a_folder_of_every_layout_trains(name: str, cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, bags, reading = JOURNEYS[name]
    if name == "trident":  # its sample splits are made for three bags
        write = trees.write_trident_pt
        table = cohort / "data" / "k=all.tsv"
        write(cohort / "data")
        trees.write_table(
            table, ["case_id", "slide_id", "label"], [(b.patient, b.bag_id, b.label) for b in COHORT], "\t"
        )
    else:
        trees.WRITERS[name](cohort / "data")
    assert run("manifest", "data", *(o.replace("TREE", "data") for o in options)) == 0
    said = capsys.readouterr()
    assert f"qgmil train bags.csv{' ' * bool(reading)}{' '.join(reading)}" in said.err and "taken for" in said.out
    read = dict(zip((r.removeprefix("--") for r in reading[::2]), reading[1::2], strict=True))
    report = check_bags("bags.csv", **read)  # type: ignore[arg-type]
    assert report.ok and report.readable == bags
    train_run("bags.csv", "run", TrainConfig.build({**QUICK, **read}))
    split = pl.read_csv("run/split.csv", infer_schema=False)
    assert len(split) == bags
    assert split.group_by("patient_id").agg(pl.col("part").n_unique())["part"].max() == 1


def test_three_commands(cohort: Path) -> None:
    trees.write_clam(cohort / "data")
    assert run("manifest", "data/features", "--labels", "data/labels.csv") == 0
    assert run("check", "bags.csv") == 0
    assert run("train", "bags.csv", "-o", "run", *TINY) == 0
    assert Path("run/report.html").is_file()


def test_what_does_not_fit_is_named_and_written_down(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.write_clam(cohort / "data")
    table = cohort / "data" / "labels.csv"
    table.write_text(table.read_text().replace("0009,slide_09a,tumour\n", "") + "0010,[bold]gone,normal\n")
    (cohort / "data" / "features" / "h5_files" / "slide_08a.h5.lock").touch()
    (cohort / "data" / "features" / "pt_files" / "slide_08a.pt").unlink()
    assert run("manifest", "data", "--labels", table, "-o", "out/bags.csv") == 0
    said = capsys.readouterr()
    assert "2 labels without features: 'slide_08a', '[bold]gone'" in said.err
    assert "1 file without a label: 'slide_09a'" in said.err
    assert "1 file still being written: 'slide_08a'" in said.err
    assert "clam" in said.out and "id: slide_id, label: label, patient: case_id" in " ".join(said.out.split())
    left = pl.read_csv("out/bags.unmatched.csv", infer_schema=False)
    assert list(left.select("kind", "name").iter_rows()) == [
        ("no-features", "slide_08a"),
        ("no-features", "[bold]gone"),
        ("no-label", "slide_09a"),
        ("locked", "slide_08a"),
    ]
    assert len(Manifest.read("out/bags.csv")) == 10


def test_only_the_first_names_are_shown(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.write_clam(cohort / "data")
    rows = "".join(f"{i},more_{i:02d},normal\n" for i in range(15))
    with (cohort / "data" / "labels.csv").open("a") as table:
        table.write(rows)
    assert run("manifest", "data", "--labels", "data/labels.csv") == 0
    err = capsys.readouterr().err
    assert "15 labels without features: 'more_00'" in err and "'more_09' and 5 more" in err and "more_10" not in err
    assert len(pl.read_csv("bags.unmatched.csv")) == 15


def test_strict_writes_no_manifest(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.write_torchmil(cohort / "data")
    np.save(cohort / "data" / "labels" / "more.npy", np.array(1))
    assert run("manifest", "data", "--strict") == 1
    assert "1 label without features: 'more'" in capsys.readouterr().err
    assert not Path("bags.csv").exists() and Path("bags.unmatched.csv").exists()
    (cohort / "data" / "labels" / "more.npy").unlink()
    assert run("manifest", "data", "--strict") == 0
    assert len(Manifest.read("bags.csv")) == 12 and not Path("bags.unmatched.csv").exists()


def test_nothing_is_overwritten_unasked(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.write_clam(cohort / "data")
    Path("bags.csv").write_text("mine")
    assert run("manifest", "data", "--labels", "data/labels.csv") == 1
    assert "bags.csv exists already" in capsys.readouterr().err and Path("bags.csv").read_text() == "mine"
    assert run("manifest", "data", "--labels", "data/labels.csv", "--force") == 0
    assert len(Manifest.read("bags.csv")) == 12
    before = Path("data/labels.csv").read_text()
    assert run("manifest", "data", "--labels", "data/labels.csv", "-o", "data/labels.csv", "--force") == 1
    assert "is the table of labels" in capsys.readouterr().err and Path("data/labels.csv").read_text() == before


def test_somebody_elses_file_of_unmatched_names_stays(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.write_clam(cohort / "data")
    others = Path("bags.unmatched.csv")
    for text, force in (("my,own\n1,2\n", []), ("kind,name,what,more\n", ["--force"]), ("", ["--force"])):
        others.write_text(text)
        assert run("manifest", "data", "--labels", "data/labels.csv", *force) == 1
        assert "bags.unmatched.csv is in the way" in capsys.readouterr().err
        assert others.read_text() == text and not Path("bags.csv").exists()
    others.write_text("kind,name,what\nlocked,x,y\n")  # of an earlier manifest of this name
    assert run("manifest", "data", "--labels", "data/labels.csv") == 0 and not others.exists()
    rows = Path("data/labels.csv").read_text().splitlines()[1:]
    table = "kind,name,what\n" + "".join(f"{r.split(',')[2]},{r.split(',')[1]},{r.split(',')[0]}\n" for r in rows)
    Path("new.unmatched.csv").write_text(table)  # labels that look like one
    labels = ["--labels", "new.unmatched.csv", "--id", "name", "--label", "kind"]
    assert run("manifest", "data", *labels, "-o", "new.csv", "--force") == 1
    assert "new.unmatched.csv is the table of labels" in capsys.readouterr().err
    assert Path("new.unmatched.csv").read_text() == table and not Path("new.csv").exists()


@pytest.mark.parametrize(("tree", "table"), [("scemila", "metadata.csv"), ("slideflow", "annotations.csv")])
def test_a_table_of_the_folder_is_never_replaced(
    tree: str, table: str, cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.WRITERS[tree](cohort / "data")
    before = Path("data", table).read_bytes()
    assert run("manifest", "data", "-o", f"data/{table}", "--force") == 1
    assert "is the table of labels" in capsys.readouterr().err and Path("data", table).read_bytes() == before


def test_the_table_of_slides_is_never_replaced(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.write_stamp(cohort / "data")
    before = Path("data/slides.csv").read_bytes()
    options = ["--labels", "data/clini.csv", "--slides", "data/slides.csv", "--label", "label"]
    assert run("manifest", "data", *options, "-o", "data/slides.csv", "--force") == 1
    assert "is the table of labels" in capsys.readouterr().err and Path("data/slides.csv").read_bytes() == before


def test_a_file_of_features_is_never_replaced(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it is called: a manifest would lead to itself."""
    trees.write_acmil(cohort / "data")
    (cohort / "data" / "patch_feats.h5").rename("all.h5")
    Path("bags.csv").hardlink_to("all.h5")
    before = Path("all.h5").read_bytes()
    assert run("manifest", "all.h5", "--force") == 1
    assert "is a file of features" in capsys.readouterr().err
    assert Path("bags.csv").read_bytes() == Path("all.h5").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nowhere"], "no such folder"),
        (["data"], "give the table of labels with --labels"),
        (["data", "--labels", "gone.csv"], "no such file"),
        (["data", "--labels", "data/labels.csv", "--label", "a", "--target", "b"], "--label and --target are the same"),
        (["data", "--labels", "data/labels.csv", "--format", "clamm"], "there is no format 'clamm'"),
        (["data", "--labels", "data/labels.csv", "--id", "slide"], "--id slide_id"),
        (["data", "--labels", "data/labels.csv", "-o", "data"], "is a folder"),
        (["data", "--labels", "data/labels.csv", "-o", "bags.parquet"], "end its name with .csv"),
        (["data", "--labels", "data/labels.csv", "-o", "bags"], "end its name with .csv"),
    ],
)
def test_mistakes_in_a_manifest_are_one_clear_line(
    cohort: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.write_clam(cohort / "data")
    assert run("manifest", *options) == 1
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and len(err.strip().splitlines()) == 1
    assert not Path("bags.csv").exists()


def test_the_help_knows_every_layout(capsys: pytest.CaptureFixture[str]) -> None:
    from qgmil.bags.layouts import layouts

    assert run("manifest", "--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ", ".join(sorted(layouts())) in text


# --- split files ---------------------------------------------------------------------------------------------------


def clam_split(path: Path, sides: dict[str, list[str]]) -> None:
    """As CLAM writes it: ragged columns beside an index."""
    path.parent.mkdir(exist_ok=True)
    rows = range(max(map(len, sides.values())))
    cells = [[str(r), *(ids[r] if r < len(ids) else "" for ids in sides.values())] for r in rows]
    trees.write_table(path, ["", *sides], cells)


def sides_of(patients: dict[str, list[int]]) -> dict[str, list[str]]:
    return {side: [f"p{p:02d}_{b}" for p in numbers for b in range(2)] for side, numbers in patients.items()}


def two_folds(folder: Path) -> Path:
    """Ten of twelve patients in each of two splits; P11 is in none."""
    clam_split(folder / "splits_0.csv", sides_of({"train": [0, 1, 2, 3, 4, 5], "val": [6, 7], "test": [8, 9, 10]}))
    clam_split(folder / "splits_1.csv", sides_of({"train": [4, 5, 6, 7, 8, 9], "val": [0, 1], "test": [2, 3]}))
    return folder


def test_clam_splits_are_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make_cohort(tmp_path / "data", patients=12)
    splits = two_folds(tmp_path / "splits")
    assert run("train", manifest, "--split-file", splits, "-o", tmp_path / "run", *TINY) == 0
    cells = sorted((tmp_path / "run" / "cells").iterdir())
    assert [json.loads((c / "metrics.json").read_text())["split"] for c in cells] == ["splits_0", "splits_1"]
    parts = pl.read_csv(cells[1] / "split.csv")
    assert set(parts.filter(pl.col("part") == "test")["patient_id"]) == {"P02", "P03"} and len(parts) == 20
    skipped = dict(pl.read_csv(tmp_path / "run" / "skipped.csv").iter_rows())
    assert skipped["p11_0"] == "split: in no part of the split files"
    assert skipped["p10_1"] == "split: in no part of 'splits_1'" and set(skipped) == {
        "p10_0",
        "p10_1",
        "p11_0",
        "p11_1",
    }
    one = [splits / "splits_1.csv"]
    assert run("train", manifest, "--split-file", *one, "-o", tmp_path / "one", *TINY) == 0
    assert json.loads((tmp_path / "one" / "metrics.json").read_text())["split"] == "splits_1"


def test_patho_bench_folds_train(cohort: Path) -> None:
    trees.write_trident_pt(cohort / "data")
    rows = [
        (b.patient, b.bag_id, b.label, *("test" if int(b.patient) // 2 == fold else "train" for fold in (0, 1)))
        for b in COHORT
    ]
    table = trees.write_table(cohort / "k=all.tsv", ["case_id", "slide_id", "label", "fold_0", "fold_1"], rows, "\t")
    assert run("manifest", "data", "--labels", table, "--bag-per", "patient") == 0
    assert Manifest.read("bags.csv").bag_ids[:2] == ("0000", "0001")
    assert run("train", "bags.csv", "--split-file", table, "-o", "run", *TINY) == 0
    split = pl.read_csv("run/cells/fold1_seed0/split.csv", infer_schema=False)
    assert set(split.filter(pl.col("part") == "test")["bag_id"]) == {"0002", "0003"}
    assert len(split.filter(pl.col("part") == "val")) == 2  # drawn from the training part
    assert run("train", "bags.csv", "--split-column", "fold_0", "fold_1", "-o", "columns", *TINY) == 0
    same = pl.read_csv("columns/cells/fold1_seed0/split.csv", infer_schema=False)
    assert set(map(tuple, same.rows())) == set(map(tuple, split.rows()))


def test_unknown_bags_stop_or_are_skipped_as_asked(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", patients=12)
    splits = two_folds(tmp_path / "splits")
    path = splits / "splits_0.csv"
    path.write_text(path.read_text().replace("p00_0", "nobody"))
    config = {**QUICK, "split_file": (splits,)}
    with pytest.raises(SplitError, match=r"splits_0\.csv: names 1 bag that is not in the table of bags: 'nobody'"):
        train_run(manifest, tmp_path / "run", TrainConfig.build(config))
    assert not (tmp_path / "run").exists()
    train_run(manifest, tmp_path / "run", TrainConfig.build({**config, "skip": ("missing",)}))
    assert "nobody,\"missing: named by 'splits_0'" in (tmp_path / "run" / "skipped.csv").read_text()


def test_bags_that_were_skipped_are_not_unknown(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", patients=12)
    np.save(tmp_path / "data" / "features" / "p00_0.npy", np.zeros((0, 12), np.float32))
    config = TrainConfig.build({**QUICK, "split_file": (two_folds(tmp_path / "splits"),), "skip": ("empty",)})
    run = train_run(manifest, tmp_path / "run", config)
    split = pl.read_csv(run / "cells" / "fold0_seed0" / "split.csv")
    assert len(split) == 21 and "p00_0" not in set(split["bag_id"])
    assert dict(pl.read_csv(run / "skipped.csv").iter_rows())["p00_0"].startswith("empty: ")


def test_a_patient_on_two_sides_stops_the_run(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", patients=12)
    clam_split(tmp_path / "s.csv", {"train": ["p00_0", "p01_0", "p02_0"], "val": ["p03_0"], "test": ["p00_1"]})
    with pytest.raises(SplitError, match=r"patient 'P00' is on 2 sides \(train: 'p00_0'; test: 'p00_1'\)"):
        train_run(manifest, tmp_path / "run", TrainConfig.build({**QUICK, "split_file": (tmp_path / "s.csv",)}))


def test_resume_refuses_changed_split_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_cohort(tmp_path / "data", patients=12)
    splits = two_folds(tmp_path / "splits")
    monkeypatch.chdir(tmp_path)
    run = train_run(manifest, tmp_path / "run", TrainConfig.build({**QUICK, "split_file": ("splits",)}))
    monkeypatch.chdir(tmp_path / "data")  # the run knows where its split files are
    last = run / "cells" / "fold1_seed0" / "metrics.json"
    for file in (run / "metrics.json", last):
        file.unlink()
    before = (splits / "splits_1.csv").read_text()
    (splits / "splits_1.csv").write_text(before.replace("p02_0", "p10_0").replace("p02_1", "p10_1"))
    with pytest.raises(RunError, match=r"'p02_0' was in part test .* and would now be in none .* split files have"):
        resume_run(run)
    (splits / "splits_1.csv").unlink()
    with pytest.raises(RunError, match=r"began with the models 'fold0_seed0', 'fold1_seed0' and would now have 'run'"):
        resume_run(run)
    (splits / "splits_1.csv").write_text(before)
    (splits / "splits_2.csv").write_text(before)
    with pytest.raises(RunError, match=r"would now have .*'fold2_seed0': its split files have changed since"):
        resume_run(run)
    (splits / "splits_2.csv").unlink()
    resume_run(run)
    assert last.is_file()


@pytest.mark.parametrize("other", [{"folds": 3}, {"split_column": ("fold",)}])
def test_a_split_file_excludes_other_splits(other: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(other))} and split_file exclude each other"):
        TrainConfig.build({"split_file": ("splits",), **other})
