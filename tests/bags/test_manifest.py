"""The table of bags: what is read, what stays text, what is refused and how it is said."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import shared_data
from qgmil.bags.manifest import Manifest
from qgmil.bags.problems import bad_id, sorted_labels
from qgmil.bags.table import looks_like_table
from qgmil.errors import ManifestError


def manifest(tmp_path: Path, text: str, **options: object) -> Manifest:
    path = tmp_path / "bags.csv"
    path.write_bytes(text.encode())
    return Manifest.read(path, **options)  # type: ignore[arg-type]


BASIC = "bag_id,patient_id,label,features,fold\n0012,007,benign,f/a.h5,1\n12,8,malignant,f/b.h5;g/c.h5,2\n"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"])
def test_separators_marks_and_line_ends_change_nothing(tmp_path: Path, separator: str, mark: str, newline: str) -> None:
    text = BASIC.replace("f/b.h5;g/c.h5", '"f/b.h5;g/c.h5"').replace(",", separator).replace("\n", newline)
    m = manifest(tmp_path, mark + text)
    assert m.bag_ids == ("0012", "12") and m.groups == ("007", "8") and m.labels == ("benign", "malignant")
    assert m.records[0].files == (tmp_path / "f/a.h5",)
    assert m.records[1].files == (tmp_path / "f/b.h5", tmp_path / "g/c.h5")
    assert m.records[1].extra == {"fold": "2"}
    assert m.records[1].line == (5 if newline == "\n\n" else 3)


def test_utf16_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    (tmp_path / "bags.csv").write_bytes(BASIC.replace(",", "\t").encode("utf-16"))
    assert Manifest.read(tmp_path / "bags.csv").bag_ids == ("0012", "12")


def test_parquet_with_numbers_keeps_whole_numbers_whole(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"bag_id": ["a", "b"], "patient_id": [3.0, None], "label": [1.0, 0.0], "age": [1.5, 2.0], "path": ["x", "y"]}
    )
    frame.write_parquet(tmp_path / "bags.parquet")
    m = Manifest.read(tmp_path / "bags.parquet")
    assert [(r.bag_id, r.patient_id, r.label, r.extra["age"]) for r in m.records] == [
        ("a", "3", "1", "1.5"),
        ("b", None, "0", "2.0"),
    ]
    assert m.groups == ("3", "b")


def test_absolute_paths_and_blank_labels(tmp_path: Path) -> None:
    m = manifest(tmp_path, "bag_id,label,features\na,,/data/x.h5\nb, NaN ,y.h5\nc,none,z.h5\n")
    assert m.records[0].files == (Path("/data/x.h5"),)
    assert m.labels == (None, None, "none")
    with pytest.raises(ManifestError, match=r"2 of 3 bags have no label: 'a', 'b'"):
        m.require_labels()


def test_a_bag_of_very_many_files(tmp_path: Path) -> None:
    cell = ";".join(f"a/rather/long/path/to/one/single/cell_{i:05d}.h5" for i in range(5000))
    assert len(manifest(tmp_path, f"bag_id,label,features\na,x,{cell}\n").records[0].files) == 5000
    assert not looks_like_table(tmp_path / "bags.csv")


def test_duplicates_bad_ids_and_blanks_are_all_listed_with_lines(tmp_path: Path) -> None:
    text = "bag_id,label,features\na,x,1.h5\nb,x,2.h5\na,y,3.h5\n,x,4.h5\n../up,x,5.h5\nc,x,\nd,x\n"
    with pytest.raises(ManifestError) as caught:
        manifest(tmp_path, text)
    said = str(caught.value)
    assert "5 problems" in said
    assert "'a' is there 2 times (lines 2, 4)" in said
    assert "line 5: bag id '' cannot be used, it is blank" in said
    assert "line 6: bag id '../up'" in said
    assert "line 7: bag 'c' names no feature file" in said
    assert "line 8 has 2 cells but the header has 3" in said


@pytest.mark.parametrize(
    "bad", ["", "  ", "a/b", "a\\b", "..", "a..b", ".", "/etc/passwd", "a\nb", "a\x00b", "a\u202eb"]
)
def test_ids_that_could_leave_a_folder_are_bad(bad: str) -> None:
    assert bad_id(bad) is not None


@pytest.mark.parametrize("good", ["0012", "TCGA-AA-3872.1", "Bild 7", "größe", "患者1", "a.b"])
def test_ordinary_ids_are_good(good: str) -> None:
    assert bad_id(good) is None


def test_a_missing_column_names_the_closest_and_lists_all(tmp_path: Path) -> None:
    text = "Slide,Label,features\na,x,1.h5\n"
    with pytest.raises(
        ManifestError,
        match=r"no column 'label'; did you mean --label Label \(label='Label' in Python\)\?.*'Slide', 'Label'",
    ):
        manifest(tmp_path, text, bag_id="Slide")
    with pytest.raises(ManifestError, match=r"no column 'bag_id'.*'Slide'"):
        manifest(tmp_path, text)
    with pytest.raises(ManifestError, match=r"no column 'feature'; did you mean --features features "):
        manifest(tmp_path, text, bag_id="Slide", label="Label", features="feature")
    with pytest.raises(ManifestError, match="no column of feature files"):
        manifest(tmp_path, "bag_id,label,where\na,x,1.h5\n")
    assert manifest(tmp_path, text, bag_id="Slide", require_labels=False).labels == (None,)


def test_a_patient_column_of_another_name_is_not_overlooked(tmp_path: Path) -> None:
    text = "bag_id,case_id,label,features\na,p,x,1.h5\n"
    with pytest.raises(
        ManifestError,
        match=r"'case_id' looks like the patient; say --patient case_id \(patient_id='case_id' in Python\), or",
    ):
        manifest(tmp_path, text)
    assert manifest(tmp_path, text, patient_id="case_id").groups == ("p",)
    assert manifest(tmp_path, text, patient_id=None).groups == ("a",)


@pytest.mark.parametrize("name", ["Case ID", "patient", "Patient-ID", "SUBJECT"])
def test_spellings_of_the_patient(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match=rf"'{name}' looks like the patient"):
        manifest(tmp_path, f"bag_id,{name},label,features\na,p,x,1.h5\n")


def test_prediction_needs_neither_labels_nor_patients(tmp_path: Path) -> None:
    text = "bag_id,case,features\na,p,1.h5\n"
    for patient in ("patient_id", "nobody", None):
        m = manifest(tmp_path, text, label="grade", patient_id=patient, require_labels=False)
        assert (m.labels, m.groups) == ((None,), ("a",))
    assert manifest(tmp_path, text, patient_id="case", require_labels=False).groups == ("p",)
    with pytest.raises(ManifestError, match=r"no column 'nobody'; name another with --patient NAME"):
        manifest(tmp_path, text.replace("case", "label"), patient_id="nobody")


def test_labels_survive_as_written(tmp_path: Path) -> None:
    text = 'bag_id,label,features\na,"grade ""3"", high",1.h5\nb,"x;y",2.h5\nc,größe 患者,3.h5\n'
    m = manifest(tmp_path, text)
    assert m.labels == ('grade "3", high', "x;y", "größe 患者")
    assert m.classes == ('grade "3", high', "größe 患者", "x;y")
    m.to_csv(tmp_path / "copy.csv")
    assert Manifest.read(tmp_path / "copy.csv").labels == m.labels


@pytest.mark.parametrize("bad", ["a\nb", "a\r\nb", "a\tb", "a\x1b[2Jb", "a\u2028b"])
def test_labels_with_control_characters_are_refused(tmp_path: Path, bad: str) -> None:
    said = re.escape(f"line 3: the label {bad!r} of bag 'b' cannot be used, it contains a line break or another")
    with pytest.raises(ManifestError, match=said):
        manifest(tmp_path, f'bag_id,label,features\na,x,1.h5\nb,"{bad}",2.h5\n')


def test_a_tilde_that_is_no_home(tmp_path: Path) -> None:
    assert manifest(tmp_path, "bag_id,label,features\na,x,~no-such-user.h5\n").records[0].files == (
        tmp_path / "~no-such-user.h5",
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "no header"),
        (b"bag_id,label,features\n", "no bags"),
        (b"bag_id,label,features\na,\xff,c\n", "line 2 is not UTF-8"),
        (b"bag_id,label,features\na,b\x00,c\n", "zero bytes"),
        (b'bag_id,label,features\na,b,c\nd,"open,f\n', "line 3 cannot be read as CSV"),
        (b"bag_id,label,label,features\na,b,b,c\n", "'label' is there twice"),
    ],
)
def test_broken_tables_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "bags.csv").write_bytes(content)
    with pytest.raises(ManifestError, match=rf"bags\.csv.*{said}"):
        Manifest.read(tmp_path / "bags.csv")


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"gone\.csv: no such file"):
        Manifest.read(tmp_path / "gone.csv")
    with pytest.raises(ManifestError, match="is a folder"):
        Manifest.read(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ManifestError, match=r"a\.parquet: cannot be read as parquet"):
        Manifest.read(tmp_path / "a.parquet")


def test_classes_sort_by_number_only_when_all_are_numbers() -> None:
    assert sorted_labels(["10", "9", None, "-1", "9"]) == ("-1", "9", "10")
    assert sorted_labels(["10", "9", "x"]) == ("10", "9", "x")


def test_select_keeps_the_order_asked_for(tmp_path: Path) -> None:
    m = manifest(tmp_path, BASIC)
    assert m.select(["12", "0012"]).bag_ids == ("12", "0012")
    with pytest.raises(ManifestError, match="no bag 'zz'"):
        m.select(["12", "zz"])


def test_per_patient_joins_files_and_refuses_two_labels(tmp_path: Path) -> None:
    head = "bag_id,patient_id,label,features,site,fold\n"
    m = manifest(tmp_path, head + "a,p,x,1.h5,north,0\nb,q,y,2.h5,south,1\nc,p,x,3.h5;4.h5,north,1\nd,,y,5.h5,s,1\n")
    patients = m.per_patient()
    assert patients.bag_ids == ("p", "q", "d")
    assert [f.name for f in patients.records[0].files] == ["1.h5", "3.h5", "4.h5"]
    assert patients.records[0].extra == {"site": "north"}  # the folds disagree
    assert patients.records[0].conflicts == {"fold": ("0", "1")}
    assert patients.records[1].extra == {"site": "south", "fold": "1"} and not patients.records[1].conflicts
    clash = manifest(tmp_path, head + "a,p,x,1.h5,n,0\nc,p,y,3.h5,n,1\n")
    with pytest.raises(ManifestError, match=r"patient 'p' disagree.*bag 'c' has 'y'.*bag 'a' has 'x'"):
        clash.per_patient()


def test_from_files_names_bags_after_stems(tmp_path: Path) -> None:
    m = Manifest.from_files([tmp_path / "s.1.h5", tmp_path / "b.npy"])
    assert m.bag_ids == ("s.1", "b") and m.labels == (None, None)
    with pytest.raises(ManifestError, match=r"x/a\.npy and .*a\.h5 would both be bag 'a'"):
        Manifest.from_files(["a.h5", "x/a.npy"])
    with pytest.raises(ManifestError, match="no feature files"):
        Manifest.from_files([])


def test_written_and_read_again(tmp_path: Path) -> None:
    m = manifest(tmp_path, BASIC)
    m.to_csv(tmp_path / "copy.csv")
    assert Manifest.read(tmp_path / "copy.csv").records == m.records
    (tmp_path / "other").mkdir()
    m.to_csv(tmp_path / "other" / "copy.csv")
    assert Manifest.read(tmp_path / "other" / "copy.csv").records == m.records


cells = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6, unique_by=lambda row: row[0]))
def test_any_text_survives_a_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    usable = [row for row in rows if bad_id(row[0]) is None]
    if not usable:
        return
    folder = tmp_path_factory.mktemp("m")
    frame = pl.DataFrame(
        {
            "bag_id": [r[0] for r in usable],
            "label": [r[1] for r in usable],
            "features": "a.h5",
            "note": [r[2] for r in usable],
        }
    )
    frame.write_csv(folder / "in.csv")
    first = Manifest.read(folder / "in.csv")
    assert first.bag_ids == tuple(r[0] for r in usable)
    first.to_csv(folder / "out.csv")
    assert Manifest.read(folder / "out.csv").records == first.records


@pytest.mark.shared
def test_real_manifests() -> None:
    glas, deepapl = Manifest.read(shared_data("glas")), Manifest.read(shared_data("deepapl"))
    assert (len(glas), len(set(glas.groups)), glas.classes) == (165, 16, ("benign", "malignant"))
    assert (len(deepapl), deepapl.classes, deepapl.labels.count("APL")) == (82, ("AML", "APL"), 22)
    assert all(f.exists() for r in deepapl.records for f in r.files)
    with pytest.raises(ManifestError, match=r"5 problems.*patient '4' disagree"):
        try:
            glas.per_patient()
        except ManifestError as error:
            raise ManifestError(str(error).replace("\n", " ")) from None
