"""Names, tables of labels and folders as people have them: what matches, what is named, what is refused."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from bags import layouts as trees
from bags.plain_folders import build, kinds, plain
from qgmil.bags.dataset import open_bags
from qgmil.bags.layouts.base import Columns, Found
from qgmil.bags.layouts.build import _join, build_manifest
from qgmil.bags.layouts.labels import Wanted, _id_column
from qgmil.bags.layouts.names import NameIndex, bare, climbs
from qgmil.bags.layouts.tree import Tree
from qgmil.bags.manifest import Manifest
from qgmil.bags.tabular import TextTable
from qgmil.errors import ConfigError, ManifestError

# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.svs", "a"),
        ("a.ome.tiff", "a"),
        ("a.SVS.h5", "a"),
        ("TCGA-A1.F6E9", "TCGA-A1.F6E9"),
        ("TCGA-A1.F6E9.svs", "TCGA-A1.F6E9"),
        ("a.1", "a.1"),
        (".svs", ".svs"),
    ],
)
def test_endings_that_are_no_part_of_a_name(name: str, expected: str) -> None:
    assert bare(name) == expected


def test_an_exact_name_comes_before_one_without_ending() -> None:
    index = NameIndex([("a.svs", 1), ("a", 2), ("b.svs", 3), ("b.tif", 4), ("x/c", 5), ("c", 5)])
    assert index.find("a") == [2] and index.find("a.svs") == [1] and index.find("a.h5") == [1, 2]
    assert index.find("b") == [3, 4] and index.find("x/c.h5") == [5] and index.find("elsewhere\\c") == [5]
    assert index.find("b.svs.") == index.find("") == index.find("A") == []


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "C:\\a", "..\\a", ".."])
def test_names_that_climb(name: str) -> None:
    assert climbs(name) and not climbs(name.replace("..", "x").lstrip("/").replace(":", ""))


@pytest.mark.parametrize("written", ["s1", "s1.svs", "s1.h5", "s1.npy", "sub/s1.svs", "./s1.npy", " s1 "])
def test_tables_name_slides_with_or_without_an_ending(tmp_path: Path, written: str) -> None:
    built = build(tmp_path, "s1", "s10", table=f"slide_id,label\n{written},a\ns10,b\n")
    assert built.manifest.bag_ids == ("s1", "s10") and built.manifest.labels == ("a", "b")


def test_names_that_match_nothing_are_shown(tmp_path: Path) -> None:
    with pytest.raises(
        ManifestError,
        match=r"column 'slide_id' \('s1-x', 's2-x', \.\.\.\).*\('s1', 's2', \.\.\.\) have no name in common",
    ):
        build(tmp_path, "s1", "s2", table="slide_id,label\ns1-x,a\ns2-x,b\n")


def test_a_name_that_two_files_have_is_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"line 2: 's1' could be any of .*a/s1\.npy.*b/s1\.npy"):
        build(tmp_path, "a/s1", "b/s1", "b/s2", table="slide_id,label\ns1,x\ns2,y\n")
    built = build(tmp_path, table="slide_id,label\nb/s1.svs,x\ns2,y\n")
    assert [f.parent.name for r in built.manifest.records for f in r.files] == ["b", "b"]
    assert kinds(built) == [("no-label", "s1")]


def test_two_rows_of_one_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"several rows mean .*s1\.npy: 's1' \(line 2\), 's1\.svs' \(line 3\)"):
        build(tmp_path, "s1", table="slide_id,label\ns1,x\ns1.svs,x\n")


def test_same_stem_twice_with_both_meant(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="would all be bag 's1'"):
        build(tmp_path, "a/s1", "b/s1", table="slide_id,label\na/s1,x\nb/s1,y\n")


def test_names_are_compared_however_their_letters_are_encoded(tmp_path: Path) -> None:
    """Macs write file names decomposed, spreadsheets composed."""
    names = ("Müller 1", "Größe")
    apart = [unicodedata.normalize("NFD", n) for n in names]
    assert apart[0] != names[0]
    table = "slide,patient,label\nMüller 1,p,a\nGröße.svs,q,b\n"
    built = build(tmp_path, *apart, table=table)
    assert sorted(built.manifest.labels, key=str) == ["a", "b"] and not built.left_out
    back = plain(tmp_path / "back", *names, table=unicodedata.normalize("NFD", table))
    assert len(build_manifest(tmp_path / "back" / "f", back).manifest) == 2
    with pytest.raises(ManifestError, match="would all be bag"):  # which nobody could tell apart
        build(tmp_path / "twice", f"a/{apart[0]}", f"b/{names[0]}", table="s,label\na/Müller 1,x\nb/Müller 1,y\n")
    trees.write_table(tmp_path / "clini.csv", ["PATIENT", "label"], [("Zoë", "a")])
    trees.write_table(
        tmp_path / "slides.csv", ["PATIENT", "FILENAME"], [(unicodedata.normalize("NFD", "Zoë"), "Größe.h5")]
    )
    built = build_manifest(tmp_path / "f", tmp_path / "clini.csv", slides=tmp_path / "slides.csv")
    assert built.manifest.labels == ("a",)


def test_names_that_differ_in_case_are_pointed_out(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"'slide_1\.svs' \('SLIDE_1' differs in upper and lower case\): write the"):
        build(tmp_path, "SLIDE_1", "SLIDE_2", table="slide,label\nslide_1.svs,a\nslide_2.svs,b\n")
    built = build(tmp_path, table="slide,label\nSLIDE_1,a\nslide_2,b\n")
    assert "'slide_2' has no features here ('SLIDE_2' differs in upper" in built.left_out[0].message


class Watched(str):
    """Text that gives up when it is compared too often."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Watched.compared += 1
        assert Watched.compared < 1_000_000
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_twenty_thousand_names_twice(tmp_path: Path) -> None:
    """Each name is looked up, not compared with all others."""
    found = [
        Found(Watched(f"slide_{i}"), tmp_path / d / f"slide_{i}.h5", f"{d}/slide_{i}", label="x")
        for d in "ab"
        for i in range(10_000)
    ]
    records, left_out, problems = _join(Tree(tmp_path, ()), found, None)
    assert len(records) == 20_000 and not left_out and len(problems) == 10_000
    assert all(p.kind == "duplicate-id" for p in problems)


# --- tables --------------------------------------------------------------------------------------------------------


def test_ids_stay_text(tmp_path: Path) -> None:
    text = "\ufeffslide_id;label;case_id\r\n0012 ; a;007\r\n12;b; 7\r\n"
    built = build(tmp_path, "0012", "12", table=text)
    assert [(r.bag_id, r.label, r.patient_id) for r in built.manifest.records] == [
        ("0012", "a", "007"),
        ("12", "b", "7"),
    ]
    built.manifest.to_csv(tmp_path / "bags.csv")
    again = Manifest.read(tmp_path / "bags.csv")
    assert again.bag_ids == ("0012", "12") and again.groups == ("007", "7")


def test_blank_labels_and_rows_are_named(tmp_path: Path) -> None:
    built = build(tmp_path, "s1", "s2", "s3", "s4", table="slide_id,label\ns1,a\ns2,\n\ns3,NaN\ns5,b\n")
    assert built.manifest.bag_ids == ("s1",)
    assert kinds(built) == [("no-features", "s5"), ("no-label", "s2"), ("no-label", "s3"), ("no-label", "s4")]
    assert "line 3: its label is blank" in built.left_out[1].message
    assert "no row of the table names it" in built.left_out[3].message


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("slide_id,label\n../s1,a\n", r"line 2: the id '\.\./s1' cannot be used, it leads out of the folder"),
        ("slide_id,label\n/f/s1.npy,a\n", "leads out of the folder"),
        ("slide_id,label\n,a\ns1,b\n", "line 2: the id '' cannot be used, it is blank"),
        ('slide_id,label\ns1,"a\nb"\n', r"the label 'a\\nb' cannot be used"),
        ("slide_id,label\ns1,a,b\n", "line 2 has 3 cells but the header has 2"),
        ("slide_id,label,label\ns1,a,b\n", "'label' is there twice"),
        ("slide_id,label\n", "has a header but no rows"),
        ("age,label\n61,a\n62,b\n", "cannot tell which column names the bags, no column names a feature file"),
        ("slide_id,x,y\ns1,1,2\n", "cannot tell which column is the label; the columns are 'slide_id', 'x', 'y'"),
        ("\x00", "not a text file"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, table: str, said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        build(tmp_path, "s1", table=table)


def test_columns_are_found_by_what_they_hold(tmp_path: Path) -> None:
    """The name of a column decides only between those that name files."""
    table = "slide,probe,Case ID,fold_0,Diagnosis\nx,s1,A,train,a\ny,s2,B,test,b\n"
    built = build(tmp_path, "s1", "s2", table=table)
    assert built.columns == {"id": "probe", "label": "Diagnosis", "patient": "Case ID"}
    assert built.manifest.records[0].extra == {"slide": "x", "fold_0": "train"}
    both = build(tmp_path, table="slide_id,case_id,mutation\ns1,s1,a\ns2,s2,b\n")
    assert both.columns == {"id": "slide_id", "label": "mutation", "patient": "case_id"}
    with pytest.raises(ManifestError, match=r"'left', 'right' could both be it.*--id NAME"):
        build(tmp_path, table="left,right,label\ns1,s2,a\ns2,s1,b\n")
    named = build(tmp_path, table="left,right,label\ns1,s2,a\ns2,s1,b\n", bag_id="right")
    assert named.manifest.labels == ("b", "a")


def test_numbers_that_happen_to_be_names_are_no_ids(tmp_path: Path) -> None:
    table = "sample,age,label\nx,61,a\ny,61,b\nz,62,a\n"
    with pytest.raises(ManifestError, match="have no name in common"):
        build(tmp_path, "61", "62", table=table)


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    text = "slide_id,label\ns1,a\n"
    for option, said in (("bag_id", "--id"), ("label", "--label"), ("patient_id", "--patient")):
        with pytest.raises(ManifestError, match=f"there is no column 'labell'.*{said}"):
            build(tmp_path, "s1", table=text, **{option: "labell"})
    text = "slide_id,label,case_id\ns1,a,p\n"
    assert build(tmp_path, table=text, patient_id="none").manifest.records[0].patient_id is None


def test_the_manifests_own_columns_are_not_carried_over(tmp_path: Path) -> None:
    built = build(tmp_path, "s1", table="slide_id,label,features,target,age\ns1,a,7,b,60\n", label="target")
    assert built.manifest.labels == ("b",) and built.manifest.records[0].extra == {"age": "60"}


def test_patients_of_several_slides(tmp_path: Path) -> None:
    table = "slide_id,case_id,label,site\ns1,P,a,x\ns2,P,a,y\ns3,Q,b,x\n"
    assert build(tmp_path, "s1", "s2", "s3", table=table).manifest.bag_ids == ("s1", "s2", "s3")
    built = build(tmp_path, table=table, bag_per="patient")
    assert [(r.bag_id, len(r.files), r.extra) for r in built.manifest.records] == [
        ("P", 2, {}),
        ("Q", 1, {"site": "x"}),
    ]
    built.manifest.to_csv(tmp_path / "bags.csv")
    assert (tmp_path / "bags.csv").read_text().splitlines()[1] == "P,P,a,f/s1.npy;f/s2.npy,"
    with pytest.raises(ManifestError, match="the bags of patient 'P' disagree: bag 's2' has 'b' but bag 's1' has 'a'"):
        build(tmp_path, table=table.replace("s2,P,a", "s2,P,b"), bag_per="patient")
    with pytest.raises(ManifestError, match="correct the table, or make every slide a bag with --bag-per slide"):
        build(tmp_path, table=table.replace("s2,P,a", "s2,P,b"), bag_per="patient")
    with pytest.raises(ConfigError, match="--bag-per"):
        build(tmp_path, table=table, bag_per="bag")


def test_a_long_wide_table_is_looked_at_in_parts() -> None:
    """Of many rows, some tell the column of ids; all are looked at only where some do not."""
    looked = []

    def matches(name: str) -> bool:
        looked.append(name)
        return name in names

    rows = [(n, {"slide": f"s{n}", "patient": f"p{n}", "label": "ab"[n % 2], "x": f"{n}"}) for n in range(50_000)]
    table = TextTable(Path("t.csv"), ("x", "patient", "slide", "label"), tuple(rows), "line")
    names = {f"s{n}" for n in range(50_000)}
    assert _id_column(table, Columns(), Wanted(), matches) == "slide" and len(looked) < 10_000
    names = {"p49999"}
    assert _id_column(table, Columns(), Wanted(), matches) == "patient"


# --- folders -------------------------------------------------------------------------------------------------------


def test_files_that_are_still_being_written_are_skipped_and_said(tmp_path: Path) -> None:
    table = plain(tmp_path, "s1", "s2", table="slide_id,label\ns1,a\ns2,b\n")
    (tmp_path / "f" / "s2.npy.lock").touch()
    built = build_manifest(tmp_path / "f", table)
    assert built.manifest.bag_ids == ("s1",)
    assert kinds(built) == [("no-features", "s2"), ("locked", "s2")]
    assert "is still being written" in built.left_out[1].message
    (tmp_path / "f" / "s1.npy.lock").touch()
    with pytest.raises(ManifestError, match="all 2 are still being written"):
        build_manifest(tmp_path / "f", table)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    table = plain(tmp_path, "s1", table="slide_id,label\ns1,a\ns2,b\ns3,a\ns4,b\n")
    (tmp_path / "secret").mkdir()
    for name in ("s2", "s3"):
        np.save(tmp_path / "secret" / f"{name}.npy", np.ones((2, 4), np.float32))
    folder = tmp_path / "f"
    (folder / "s2.npy").symlink_to(tmp_path / "secret" / "s2.npy")
    (folder / "more").symlink_to(tmp_path / "secret")
    (folder / "s4.npy").symlink_to("s1.npy")  # stays inside
    (folder / "gone.npy").symlink_to("nowhere.npy")
    (folder / "loop.npy").symlink_to("loop.npy")
    os.mkfifo(folder / "pipe.npy")
    built = build_manifest(folder, table)
    assert built.manifest.bag_ids == ("s1", "s4")
    assert kinds(built)[0] == ("no-features", "s3")  # in a folder that nobody looked into
    assert [i for kind, i in kinds(built) if kind == "outside"] == ["loop", "more", "s2"]  # s2 once
    assert len(built.left_out) == 4
    (tmp_path / "link").symlink_to(folder)  # the folder itself may be one
    assert build_manifest(tmp_path / "link", table).manifest.bag_ids == ("s1", "s4")


def test_hidden_files_and_broken_first_files_do_not_mislead(tmp_path: Path) -> None:
    trees.write_stamp(tmp_path / "s")
    (tmp_path / "s" / "features" / "aa.h5").write_bytes(b"\x89HDF broken")
    (tmp_path / "s" / "features" / "._slide_a.h5").write_bytes(b"\0")
    built = build_manifest(tmp_path / "s", tmp_path / "s" / "clini.csv", slides=tmp_path / "s" / "slides.csv")
    assert built.layout.name == "stamp" and kinds(built) == [("no-label", "aa")]


def test_a_file_name_that_a_cell_cannot_hold_as_it_is(tmp_path: Path) -> None:
    built = build(tmp_path, "~root/s1", "s2", table="slide_id,label\ns1,a\ns2,b\n")
    built.manifest.to_csv(tmp_path / "f" / "bags.csv")
    records = Manifest.read(tmp_path / "f" / "bags.csv").records
    assert {r.files[0] for r in records} == {tmp_path / "f" / "~root" / "s1.npy", tmp_path / "f" / "s2.npy"}
    assert open_bags(tmp_path / "f" / "bags.csv")[0].features.shape == (3, 4)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder"):
        build_manifest(tmp_path / "gone")
    with pytest.raises(ManifestError, match="there are no feature files"):
        build_manifest(tmp_path)
    with pytest.raises(ManifestError, match="zero byte"):
        build_manifest("a\0b")
    plain(tmp_path, "s1")
    with pytest.raises(ManifestError, match=r"says nothing of labels; give the table of labels with --labels"):
        build_manifest(tmp_path / "f")
    with pytest.raises(ManifestError, match="there is no format 'clamm' of folders; known formats: 'acmil', 'cells'"):
        build_manifest(tmp_path / "f", format="clamm")


def test_a_format_wins_over_content(tmp_path: Path) -> None:
    trees.write_clam(tmp_path / "c")
    built = build_manifest(tmp_path / "c", tmp_path / "c" / "labels.csv", format="plain", pattern="*.pt")
    assert built.layout.name == "plain" and [r.files[0].suffix for r in built.manifest.records] == [".pt"] * 3


def test_an_odd_data_set_is_named_in_the_cells(tmp_path: Path) -> None:
    for name in ("s1", "s2"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["uni"], file["conch"] = np.ones((2, 3), np.float32), np.zeros((2, 5), np.float32)
    (tmp_path / "labels.csv").write_text("slide,label\ns1,a\ns2,b\n")
    built = build_manifest(tmp_path, tmp_path / "labels.csv", dataset="conch")
    built.manifest.to_csv(tmp_path / "bags.csv")
    assert open_bags(tmp_path / "bags.csv")[1].features.shape == (2, 5)


def test_slideflow_settings_do_not_get_in_the_way(tmp_path: Path) -> None:
    trees.write_slideflow(tmp_path / "s", tile_um="20x")
    assert json.loads((tmp_path / "s" / "bags" / "bags_config.json").read_text())["tile_um"] == "20x"
    built = build_manifest(tmp_path / "s" / "bags", tmp_path / "s" / "annotations.csv")
    assert built.layout.name == "slideflow" and built.manifest.labels == ("tumour", "tumour", "normal")


def test_a_folder_of_links_says_so(tmp_path: Path) -> None:
    table = plain(tmp_path / "real", "s1", "s2", table="slide,label\ns1,a\ns2,b\n")
    (tmp_path / "f").mkdir()
    for i in (1, 2):
        (tmp_path / "f" / f"s{i}.npy").symlink_to(tmp_path / "real" / "f" / f"s{i}.npy")
    said = r"f: 2 links lead out of the folder and are not followed \(first: s1\.npy\); name the folder they lead to"
    with pytest.raises(ManifestError, match=said):
        build_manifest(tmp_path / "f", table)
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "features").symlink_to(tmp_path / "real" / "f")
    with pytest.raises(ManifestError, match=r"1 link leads out of the folder and is not followed \(first: features\)"):
        build_manifest(tmp_path / "g", table)
    np.save(tmp_path / "g" / "other.npy", np.ones((2, 2), np.float32))
    with pytest.raises(ManifestError, match=r"no name in common.*1 link leads out of the folder"):
        build_manifest(tmp_path / "g", table)


def test_one_folder_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = plain(tmp_path, "s1", "secret/s2", table="slide,label\ns1,a\ns2,b\n")
    real = os.scandir

    def scandir(path: object = ".") -> object:
        if closed in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    closed = "secret"
    built = build_manifest(tmp_path / "f", table)
    assert built.manifest.bag_ids == ("s1",) and kinds(built) == [("no-features", "s2"), ("unreadable", "secret")]
    assert built.left_out[1].message == "secret cannot be opened; check its permissions"
    (tmp_path / "f" / "s1.npy").unlink()
    with pytest.raises(ManifestError, match=r"no feature files .*f/secret cannot be opened"):
        build_manifest(tmp_path / "f", table)
    closed = "f"
    with pytest.raises(ManifestError, match=r"f: cannot be opened \(Permission denied\)"):
        build_manifest(tmp_path / "f", table)


def test_advice_on_ambiguous_names_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as error:
        build(tmp_path, "a/s1", "b/s1", "a/s2", "b/s2", table="slide_id,label\ns1,x\ns2,y\n")
    assert str(error.value).count("--pattern") == 1 and str(error.value).count("could be any of") == 2


@pytest.mark.parametrize("column", ["PATIENT", "case_id"])
def test_a_table_of_patients_needs_one_of_slides(tmp_path: Path, column: str) -> None:
    with pytest.raises(ManifestError, match=rf"rows of the table are patients \(column '{column}'\).*--slides slides"):
        build(tmp_path, "p1-a", "p2-a", table=f"{column},label\np1,a\np2,b\n")
    with pytest.raises(ManifestError, match="name the column of ids with --id"):
        build(tmp_path, table="slide,label\np1,a\np2,b\n")


def test_coordinates_alone_are_no_features(tmp_path: Path) -> None:
    for name in ("s1", "s2"):
        with h5py.File(tmp_path / f"{name}_patches.h5", "w") as file:
            file["coords"] = np.zeros((3, 2), np.int64)
    (tmp_path / "labels.csv").write_text("slide,label\ns1,a\ns2,b\n")
    with pytest.raises(ManifestError, match=r"but no features yet, as s1_patches\.h5 .*extract the features"):
        build_manifest(tmp_path, tmp_path / "labels.csv")
    with h5py.File(tmp_path / "s1_patches.h5", "a") as file:
        file["features"] = np.zeros((3, 2), np.float32)
    with pytest.raises(ManifestError, match="have no name in common"):
        build_manifest(tmp_path, tmp_path / "labels.csv")


def test_the_features_of_torchmil_alone(tmp_path: Path) -> None:
    trees.write_torchmil(tmp_path / "t")
    with pytest.raises(ManifestError, match=rf"its labels lie in .*name the folder above, {tmp_path / 't'}"):
        build_manifest(tmp_path / "t" / "features")


def test_files_that_look_like_dsmil(tmp_path: Path) -> None:
    trees.write_dsmil(tmp_path / "d")
    with pytest.raises(ManifestError, match=r"look like the label of the bag, as DSMIL writes it.*--format dsmil"):
        build_manifest(tmp_path / "d")
    (tmp_path / "labels.csv").write_text("slide,label\n" + "".join(f"{b.bag_id},{b.label}\n" for b in trees.BAGS))
    (note,) = build_manifest(tmp_path / "d", tmp_path / "labels.csv").notes
    assert "--dataset 2" in note
    named = build_manifest(tmp_path / "d", tmp_path / "labels.csv", format="dsmil", dataset="2")
    assert named.notes == () and named.manifest.records[0].format == "dsmil"
    for bag in trees.BAGS:
        torch.save(torch.rand(4, 6), next((tmp_path / "d").rglob(f"{bag.bag_id}.pt")))
    assert build_manifest(tmp_path / "d", tmp_path / "labels.csv").notes == ()
