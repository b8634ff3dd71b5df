"""Split files of CLAM and Patho-Bench: what they mean for the bags, and what is refused by name."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from bags.layouts import write_clam, write_trident
from qgmil.bags.manifest import BagRecord, records_per_patient
from qgmil.bags.split_files import MatchedSplits, from_files, read_split_files
from qgmil.bags.splits import Split
from qgmil.errors import ManifestError, SplitError


def bags(*ids: str, patients: dict[str, str] | None = None) -> list[BagRecord]:
    """Bags of two classes in turn; patients are themselves where none is given."""
    known = patients or {}
    return [BagRecord(i, "ab"[n % 2], known.get(i), (Path(f"f/{i}.h5"),)) for n, i in enumerate(ids)]


def read(path: Path, text: str, items: list[BagRecord], **options: object) -> MatchedSplits:
    path.write_text(text)
    return from_files(path, items, **options)  # type: ignore[arg-type]


CLAM = ",train,val,test\n0,s1,s3,s4\n1,s2,,s5\n2,s6,,\n"
SPLIT = Split(("s1", "s2", "s6"), ("s3",), ("s4", "s5"), "splits_0")
SIX = ("s1", "s2", "s3", "s4", "s5", "s6")


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_ragged_columns_with_and_without_an_index(tmp_path: Path, index: bool, mark: str) -> None:
    text = CLAM if index else re.sub(r"^[0-9]?,", "", CLAM, flags=re.MULTILINE)
    found = read(tmp_path / "splits_0.csv", mark + text, bags(*SIX))
    assert found.splits == (SPLIT,) and not found.unused and not found.left_out


def test_lines_cut_short_at_the_end_are_ragged_too(tmp_path: Path) -> None:
    text = ",train,val,test\n0,s1,s3,s4\n1,s2,,s5\n2,s6\n"
    assert read(tmp_path / "splits_0.csv", text, bags(*SIX)).splits == (SPLIT,)


def test_flags_say_the_same_as_columns(tmp_path: Path) -> None:
    rows = [f"{i},{i in SPLIT.train},{i in SPLIT.val},{i in SPLIT.test}" for i in reversed(SIX)]
    text = "\n".join([",train,val,test", *rows])
    found = read(tmp_path / "splits_0_bool.csv", text, bags(*SIX))
    assert found.splits == (replace(SPLIT, name="splits_0_bool"),)
    with pytest.raises(SplitError, match="'s6' is in train and again in test"):
        read(tmp_path / "x.csv", text.replace("s6,True,False,False", "s6,True,False,True"), bags(*SIX))
    headless = "train,val,test\nTrue,False,False\n"
    with pytest.raises(SplitError, match="True and False but none of ids"):
        read(tmp_path / "y.csv", headless, bags(*SIX))


def test_names_are_compared_however_their_letters_are_encoded(tmp_path: Path) -> None:
    """Ids come from file names, which Macs write decomposed; the split file was written elsewhere."""
    apart = unicodedata.normalize("NFD", "Müller")
    found = read(tmp_path / "s.csv", "train,val,test\nMüller,s2,s3\n", bags(apart, "s2", "s3"))
    assert found.splits[0].train == (apart,) and not found.left_out
    with pytest.raises(SplitError, match="is in train and again in train"):
        read(tmp_path / "t.csv", f"train,val,test\nMüller,s2,s3\n{apart},,\n", bags(apart, "s2", "s3"))


def test_a_folder_is_all_folds_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for i in (10, 2, 0):
        (tmp_path / f"splits_{i}.csv").write_text(CLAM)
        (tmp_path / f"splits_{i}_bool.csv").write_text("not,looked,at\n")
        (tmp_path / f"splits_{i}_descriptor.csv").write_text("not,looked,at\n")
    tables = read_split_files(tmp_path)
    assert [t.name for t in tables] == ["splits_0", "splits_2", "splits_10"]
    chosen = read_split_files([tmp_path / "splits_10.csv", tmp_path / "splits_0.csv"])
    assert [t.name for t in chosen] == ["splits_10", "splits_0"]


def test_a_folder_of_flags_alone_and_one_of_other_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "splits_1_bool.csv").write_text(",train,val,test\ns1,True,False,False\ns2,False,False,True\n")
    (tmp_path / "b" / "fold10.csv").write_text("train,test\ns1,s2\n")
    (tmp_path / "b" / "fold9.csv").write_text("train,test\ns2,s1\n")
    assert [t.sides["test"] for t in read_split_files(tmp_path / "a")] == [(("s2",),)]
    assert [t.name for t in read_split_files(tmp_path / "b")] == ["fold9", "fold10"]
    both = read_split_files([tmp_path / "a", tmp_path / "b"])
    assert [t.name for t in both] == ["splits_1_bool", "fold9", "fold10"]
    with pytest.raises(SplitError, match="has no split files"):
        (tmp_path / "c").mkdir()
        read_split_files(tmp_path / "c")


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("task_a", "task_b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "splits_0.csv").write_text(CLAM)
    both = [tmp_path / "task_a" / "splits_0.csv", tmp_path / "task_b" / "splits_0.csv"]
    assert [t.name for t in read_split_files(both)] == ["task_a-splits_0", "task_b-splits_0"]
    with pytest.raises(SplitError, match="several splits called 'task_a-splits_0'"):
        read_split_files([both[0], both[0]])


PATHOBENCH = "case_id\tslide_id\tlabel\tfold_0\tfold_1\n" + "".join(
    f"p{n // 2}\ts{n}\t{n // 2 % 2}\t{'test' if n < 4 else 'train'}\t{'train' if n < 12 else 'test'}\n"
    for n in range(16)
)


def cohort() -> list[BagRecord]:
    """Eight patients of two slides each."""
    return [
        replace(r, label="ab"[n // 2 % 2], patient_id=f"p{n // 2}")
        for n, r in enumerate(bags(*(f"s{n}" for n in range(16))))
    ]


def test_folds_without_validation_get_one_from_training_by_patient(tmp_path: Path) -> None:
    found = read(tmp_path / "k=all.tsv", PATHOBENCH, cohort(), val=0.3, seed=1)
    assert [s.name for s in found.splits] == ["fold_0", "fold_1"]
    first, second = found.splits
    assert first.test == ("s0", "s1", "s2", "s3") and second.test == ("s12", "s13", "s14", "s15")
    for split in found.splits:
        assert len(split.val) == 4 and len(split.train) == 8
        patients = {side: {int(i[1:]) // 2 for i in ids} for side, ids in split.sides().items()}
        assert not patients["train"] & patients["val"]
        assert {p % 2 for p in patients["val"]} == {0, 1}
    again = read(tmp_path / "k=all.tsv", PATHOBENCH, cohort(), val=0.3, seed=1)
    other = read(tmp_path / "k=all.tsv", PATHOBENCH, cohort(), val=0.3, seed=2)
    assert again == found and other.splits[0].test == first.test and other.splits[0].val != first.val
    assert read(tmp_path / "k=all.tsv", PATHOBENCH, cohort(), val=0).splits[0].val == ()


def test_a_given_validation_part_stays(tmp_path: Path) -> None:
    text = PATHOBENCH.replace("s4\t0\ttrain", "s4\t0\tval").replace("s5\t0\ttrain", "s5\t0\tVal ")
    assert read(tmp_path / "k=all.tsv", text, cohort(), val=0.3).splits[0].val == ("s4", "s5")


def test_a_blank_fold_is_no_part(tmp_path: Path) -> None:
    text = PATHOBENCH.replace("s4\t0\ttrain", "s4\t0\t").replace("s5\t0\ttrain", "s5\t0\tnan")
    found = read(tmp_path / "k=all.tsv", text, cohort(), val=0)
    assert "s4" not in found.splits[0].train and "s4" in found.splits[1].train
    assert not found.unused
    assert found.left_out == (("s4", "split: in no part of 'fold_0'"), ("s5", "split: in no part of 'fold_0'"))


def test_the_parts_of_a_run_can_be_used_again(tmp_path: Path) -> None:
    text = "bag_id,patient_id,label,part\ns1,,a,train\ns2,,b,val\ns3,,a,test\n"
    (split,) = read(tmp_path / "split.csv", text, bags("s1", "s2", "s3")).splits
    assert split == Split(("s1",), ("s2",), ("s3",), "split")


def test_bags_in_no_part_are_left_out_and_said(tmp_path: Path) -> None:
    found = read(tmp_path / "splits_0.csv", CLAM, bags(*SIX, "s7"))
    assert found.splits == (SPLIT,) and found.unused == ("s7",)
    assert found.left_out == (("s7", "split: in no part of the split file"),)


def test_names_without_a_bag_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(
        SplitError, match=r"names 2 bags that are not in the table of bags: 's6', 's3'; .*--skip missing"
    ):
        read(tmp_path / "splits_0.csv", CLAM, bags("s1", "s2", "s4", "s5"))
    found = read(tmp_path / "splits_0.csv", CLAM, bags("s1", "s2", "s4", "s5"), skip_unknown=True, val=0)
    assert found.splits[0].train == ("s1", "s2")
    assert found.left_out[0] == ("s6", "missing: named by 'splits_0', but no such bag")
    known = read(tmp_path / "splits_0.csv", CLAM, bags("s1", "s2", "s4", "s5"), missing=["s3", "s6"], val=0)
    assert known.splits == found.splits and known.left_out == ()


def test_a_bag_on_two_sides_or_twice(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"splits_0\.csv: split 'splits_0': 's1' is in train and again in val"):
        read(tmp_path / "splits_0.csv", CLAM.replace("s3", "s1"), bags(*SIX))
    with pytest.raises(SplitError, match="'s1' is in train and again in train"):
        read(tmp_path / "splits_0.csv", CLAM.replace("s6", "s1"), bags(*SIX))


def test_a_patient_on_two_sides(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"patient 'P' is on 2 sides \(train: 's1'; test: 's4'\)"):
        read(tmp_path / "splits_0.csv", CLAM, bags(*SIX, patients={"s1": "P", "s4": "P"}))


def test_a_part_without_bags(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="has no bag in test"):
        read(tmp_path / "splits_0.csv", "train,val,test\ns1,s2,\n", bags("s1", "s2"))


def test_slides_of_a_merged_patient_must_agree(tmp_path: Path) -> None:
    rows = [replace(r, label="a") for r in bags(*SIX, patients={"s1": "P", "s2": "P", "s4": "Q", "s5": "Q"})]
    merged, _ = records_per_patient(rows)
    (split,) = read(tmp_path / "splits_0.csv", CLAM, list(merged)).splits
    assert split == Split(("P", "s6"), ("s3",), ("Q",), "splits_0")
    torn, _ = records_per_patient([replace(r, patient_id="P") if r.bag_id == "s4" else r for r in rows])
    with pytest.raises(SplitError, match="'s1' is in train but 's4' in test, and both are of bag 'P'"):
        read(tmp_path / "splits_0.csv", CLAM, list(torn))


def test_slides_are_known_by_the_files_of_a_bag(tmp_path: Path) -> None:
    """As `qgmil manifest --bag-per patient` writes it: the ids are the patients'."""
    files = {"P": ("s1", "s2"), "Q": ("s3",), "R": ("s4", "s5"), "S": ("s6",)}
    items = [BagRecord(p, "a", p, tuple(Path(f"x/{s}.h5") for s in slides)) for p, slides in files.items()]
    assert read(tmp_path / "splits_0.csv", CLAM, items).splits[0].train == ("P", "S")
    inside = [replace(i, files=tuple(Path(f"all.h5::{f.stem}") for f in i.files)) for i in items]
    assert read(tmp_path / "splits_0.csv", CLAM, inside).splits[0].test == ("R",)


def test_case_ids_name_patients_where_slides_are_not_known(tmp_path: Path) -> None:
    items = [BagRecord(f"p{n}", "ab"[n % 2], f"p{n}", (Path(f"{n}.h5"),)) for n in range(8)]
    found = read(tmp_path / "k=all.tsv", PATHOBENCH, items, val=0)
    assert found.splits[0].test == ("p0", "p1")


@pytest.mark.parametrize("written", ["s1.svs", "s1.h5", "s1.ome.tiff", "slides/s1.svs"])
def test_endings_do_not_matter(tmp_path: Path, written: str) -> None:
    assert "s1" in read(tmp_path / "splits_0.csv", CLAM.replace("s1", written), bags(*SIX)).splits[0].train


def test_names_never_match_by_a_prefix(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"names 1 bag that is not in the table of bags: 's1\.F6E9'"):
        read(tmp_path / "splits_0.csv", CLAM.replace("s1", "s1.F6E9"), bags(*SIX))


def test_numbers_that_gaps_turned_into_fractions(tmp_path: Path) -> None:
    text = ",train,val,test\n0,0012,13.0,14.0\n1,15,,\n"
    (split,) = read(tmp_path / "splits_0.csv", text, bags("0012", "13", "14", "15")).splits
    assert split == Split(("0012", "15"), ("13",), ("14",), "splits_0")
    with pytest.raises(SplitError, match="'12'"):  # text stays text: 12 is not 0012
        read(tmp_path / "splits_0.csv", text.replace("0012", "12"), bags("0012", "13", "14", "15"))


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("a,b\n1,2\n", SplitError, r"is no split file; expected columns train, val, test.*'a', 'b'"),
        ("train,val,test,dev\na,b,c,d\n", SplitError, "mean one part twice"),
        ("train,test\na,b,c\n", SplitError, "line 2 has 3 cells but the header has 2"),
        (
            "slide_id,fold_0\ns1,train\ns2,holdout\n",
            SplitError,
            "line 3: column 'fold_0' has 'holdout'; expected train",
        ),
        ("slide_id,fold_0\n,train\n", SplitError, "line 2 has no 'slide_id'"),
        ("train,test\n\x00,b\n", ManifestError, "not a text file"),
        ("", ManifestError, "is empty"),
    ],
)
def test_files_that_are_no_splits(tmp_path: Path, text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        read(tmp_path / "split.csv", text, bags("s1", "s2"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"gone\.csv: no such file"):
        read_split_files(tmp_path / "gone.csv")
    with pytest.raises(SplitError, match="no split file was given"):
        read_split_files([])


def test_the_files_that_the_sample_trees_have(tmp_path: Path) -> None:
    items = bags("slide_a", "slide_b", "slide_c", patients={"slide_a": "0012", "slide_b": "0012", "slide_c": "0013"})
    write_clam(tmp_path / "clam")
    for name in ("splits_0", "splits_0_bool"):
        (table,) = read_split_files(tmp_path / "clam" / "splits" / f"{name}.csv")
        assert table.sides == {"train": (("slide_a",), ("slide_b",)), "val": (("slide_c",),), "test": ()}
    write_trident(tmp_path / "trident")
    found = from_files(tmp_path / "trident" / "k=all.tsv", items, val=0)
    assert [s.test for s in found.splits] == [("slide_c",), ("slide_a", "slide_b")]
