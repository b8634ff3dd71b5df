"""Named data sets written as tables that training accepts, from Python and from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_trees import image, trident
from test_feature_cohorts import patho_bench, torchmil

from commandline import run
from qgmil.bags.dataset import open_bags
from qgmil.bags.manifest import Manifest
from qgmil.bags.splits import from_column
from qgmil.datasets import load_dataset, write_manifest
from qgmil.datasets.registry import parse_options
from qgmil.errors import ConfigError, ReadError


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QGMIL_DATA", raising=False)


def glas(root: Path) -> None:
    (root / "glas").mkdir(parents=True)
    rows = ["name,patient ID,grade (GlaS)"]
    for i in range(3):
        image(root / "glas" / f"train_{i}.bmp", i, (70, 64))
        rows.append(f"train_{i},{i},benign")
    (root / "glas" / "Grade.csv").write_text("\n".join(rows) + "\n")


def test_records_are_named_where_they_lie_with_their_official_split(tmp_path: Path) -> None:
    torchmil(tmp_path / "root", "camelyon16", "patch_labels")
    out = write_manifest("camelyon16", tmp_path / "root", tmp_path / "out" / "bags.csv")
    header, first = out.read_text().splitlines()[:2]
    assert header == "bag_id,patient_id,label,features,split"
    assert first.startswith("bag_00,,0,")
    assert first.endswith("camelyon16/patches_512/features/features_UNI/bag_00.npy,train")
    bags = open_bags(out)
    assert len(bags) == 12
    assert bags[3].instance_labels is not None
    (split,) = from_column(Manifest.read(out).records, "split")
    assert split == load_dataset("camelyon16", tmp_path / "root").splits[0]
    assert not (tmp_path / "out" / "bags_features").exists()  # nothing is copied


def test_every_fold_is_a_column(tmp_path: Path) -> None:
    patho_bench(tmp_path / "root", "tcga_nsclc")
    out = write_manifest("tcga_nsclc", tmp_path / "root", tmp_path / "root" / "bags.csv")
    assert out.read_text().splitlines()[0] == "bag_id,patient_id,label,features,fold_0,fold_1"
    assert ",tcga_nsclc/20x_512px_0px_overlap/features_uni/S00.A.h5,test,train" in out.read_text()  # relative
    splits = from_column(Manifest.read(out).records, ["fold_0", "fold_1"])
    assert splits == load_dataset("tcga_nsclc", tmp_path / "root").splits


def test_bags_in_memory_are_written_beside_the_table_and_come_back_the_same(tmp_path: Path) -> None:
    glas(tmp_path / "root")
    out = write_manifest("glas", tmp_path / "root", tmp_path / "g.csv", features="colour")
    made = load_dataset("glas", tmp_path / "root", features="colour").bags[2]
    bag = open_bags(out)[2]
    assert out.read_text().splitlines()[3] == "train_2,2,benign,g_features/train_2.h5"
    assert bag.features.tolist() == made.features.tolist()
    assert bag.coords is not None
    assert made.coords is not None
    assert bag.coords.tolist() == made.coords.tolist() == [[0, 0]]
    assert (bag.tile_size, bag.coord_unit, bag.mpp) == (64.0, "px", 0.62)
    musk = open_bags(write_manifest("musk1", out=tmp_path / "m.csv"))
    first = load_dataset("musk1").bags[0]
    assert (len(musk), musk[0].label) == (92, first.label)
    assert musk[0].features.tolist() == first.features.tolist()


def test_nothing_is_overwritten_unasked_and_foreign_folders_never(tmp_path: Path) -> None:
    out = tmp_path / "bags.csv"
    out.write_text("mine\n")
    with pytest.raises(ReadError, match=r"bags.csv: is there already; name another table, or --overwrite"):
        write_manifest("musk1", out=out)
    assert out.read_text() == "mine\n"
    folder = tmp_path / "bags_features"
    folder.mkdir()
    (folder / "precious.h5").write_text("mine")
    with pytest.raises(ReadError, match="bags_features: was not made by qgmil datasets, so it is not replaced"):
        write_manifest("musk1", out=out, overwrite=True)
    assert (folder / "precious.h5").read_text() == "mine"
    assert out.read_text() == "mine\n"
    other = write_manifest("musk1", out=tmp_path / "other.csv")
    (tmp_path / "other_features" / "old.h5").touch()
    other.unlink()
    with pytest.raises(ReadError, match="other_features: is there already"):
        write_manifest("musk1", out=other)
    write_manifest("musk1", out=other, overwrite=True)
    assert len(open_bags(other)) == 92
    assert not (tmp_path / "other_features" / "old.h5").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "bags.csv", "bags_features", "other.csv", "other_features"
    ]  # fmt: skip
    with pytest.raises(ReadError, match="the table of bags is a CSV"):
        write_manifest("musk1", out=tmp_path / "bags.parquet")
    with pytest.raises(ReadError, match="is there already"):
        (tmp_path / "folder.csv").mkdir()
        write_manifest("musk1", out=tmp_path / "folder.csv", overwrite=True)


def test_options_typed_as_text_become_what_the_data_set_takes() -> None:
    texts = {"prevalence": "0.1", "bags": "20", "sizes": "5,9", "features": "x.npy"}
    assert parse_options("pbc", texts) == {"prevalence": 0.1, "bags": 20, "sizes": (5, 9), "features": "x.npy"}
    assert parse_options("camelyon16", {"patch-size": "512"}) == {"patch_size": 512}
    with pytest.raises(ConfigError, match=r"--options\.bags is 'many'; expected something like 240"):
        parse_options("pbc", {"bags": "many"})


def test_the_list_says_what_is_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    glas(tmp_path)
    assert run("datasets", "--root", tmp_path) == 0
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "CC0" in rows["camelyon16"]
    assert "399" in rows["camelyon16"]
    assert {name: rows[name].rstrip("│ ").endswith("yes") for name in ("glas", "ucsb", "camelyon16", "fox")} == {
        "glas": True, "ucsb": True, "camelyon16": False, "fox": False
    }  # fmt: skip


def test_the_card_says_how_to_cite_and_what_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("datasets", "pbc", "--root", tmp_path) == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("CC BY 4.0", "10.17632/snkd93bnjr.1", "cells split 60/20/20", "prevalence=0.05", "here no"):
        assert text in out
    assert list(tmp_path.iterdir()) == []


def test_a_table_from_the_command_line_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patho_bench(tmp_path / "root", "tcga_nsclc")
    (tmp_path / "root/tcga_nsclc/20x_512px_0px_overlap/features_uni/S15.A.h5").unlink()
    table = tmp_path / "bags.csv"
    assert run("datasets", "tcga_nsclc", "--root", tmp_path / "root", "-o", table) == 1
    assert "S15.A (there is no" in capsys.readouterr().err
    assert run("datasets", "tcga_nsclc", "--root", tmp_path / "root", "-o", table, "--skip", "missing") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "left out S15.A: missing" in said
    assert f"qgmil train {table} --split-column fold_0 --split-column fold_1" in said
    columns = ["--split-column", "fold_0", "--split-column", "fold_1"]
    assert run("train", table, *columns, "--model", "linear_probe", "-o", tmp_path / "run", "-q") == 0
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert run("datasets", "tcga_nsclc", "--root", tmp_path / "root", "-o", table, "--skip", "missing") == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fax"], "unknown data set 'fax': did you mean fox?"),
        (["-o", "x.csv"], "name a data set first"),
        (["pbc", "--options.bags", "20"], "give -o bags.csv too"),
        (["fox", "-o", "x.csv"], "fox is not on this machine: get it from http://www.cs.columbia.edu"),
        (["musk1", "-o", "x.csv", "--options.seed", "1"], "'musk1' has no option 'seed'"),
        (["musk1", "--root", "/no/such/folder"], "is no folder, but the root must be"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("datasets", *arguments) == 1
    assert said in capsys.readouterr().err
    assert not Path("x.csv").exists()


def test_the_trees_of_these_tests_are_what_they_claim_to_be(tmp_path: Path) -> None:
    from qgmil.bags.readers import read_bag_file

    assert read_bag_file(trident(tmp_path / "s.h5", 3)).tile_size == 512
