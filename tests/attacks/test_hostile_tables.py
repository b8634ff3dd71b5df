"""Tables whose ids climb out of folders, and tables that are not tables."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from qgmil.bags.check import check_bags
from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.bags.layouts.build import build_manifest
from qgmil.bags.manifest import BagRecord, Manifest
from qgmil.bags.readers import MissingFileError, read_bag_file
from qgmil.errors import ManifestError, ReadError
from qgmil.files import write_csv

CLIMBING = (
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\boot.ini",
    "a/../b",
    "..",
    "x\x1b[2Jy",
    "a\u202etxt.h5",
    "a\u2028b",
)


@pytest.mark.parametrize("bag_id", CLIMBING)
def test_ids_that_climb_are_refused_wherever_they_come_from(tmp_path: Path, bag_id: str) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 2), np.float32))
    (tmp_path / "bags.csv").write_text(f'bag_id,label,features\n"{bag_id}",x,a.npy\n', encoding="utf-8")
    (tmp_path / "table.csv").write_text(f'1,"{bag_id}",2,3\n', encoding="utf-8")
    for name in ("bags.csv", "table.csv"):
        with pytest.raises(ManifestError, match="cannot be used"):
            open_bags(tmp_path / name)
        assert next(p.kind for p in check_bags(tmp_path / name).problems) == "bad-id"


def test_a_patient_that_climbs_cannot_name_a_bag(tmp_path: Path) -> None:
    (tmp_path / "bags.csv").write_text("bag_id,patient_id,label,features\na,../up,x,a.npy\n")
    with pytest.raises(ManifestError, match=r"patient '\.\./up' cannot name a bag"):
        Manifest.read(tmp_path / "bags.csv").per_patient()


def test_a_feature_file_whose_name_climbs(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="rename the file"):
        Manifest.from_files([tmp_path / "a..b.npy"])


def test_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "bags.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(ManifestError, match=r"bags\.xlsx: is a spreadsheet; save it as CSV"):
        open_bags(tmp_path / "bags.xlsx")


def test_binary_tables(tmp_path: Path) -> None:
    for content in (os.urandom(5000), b"\x00" * 100, b"\xff\xfe\x00", b"PK\x03\x04" + bytes(50), b"\x93NUMPY"):
        for name in ("a.csv", "a.parquet", "a.tsv"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ManifestError, match=name):
                open_bags(tmp_path / name)


@pytest.mark.timeout(60)
def test_a_very_long_line_and_very_many_columns(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text("bag_id,label,features" + "," * 200_000 + "\n")
    start = time.perf_counter()
    with pytest.raises(ManifestError):
        open_bags(tmp_path / "wide.csv")
    (tmp_path / "long.csv").write_text('bag_id,label,features\na,"' + "x" * 10_000_000 + "\n")
    with pytest.raises(ManifestError, match=r"long\.csv: line 2 cannot be read as CSV"):
        open_bags(tmp_path / "long.csv")
    assert time.perf_counter() - start < 20


def test_many_duplicates_give_a_short_message(tmp_path: Path) -> None:
    (tmp_path / "bags.csv").write_text("bag_id,label,features\n" + "a,x,a.npy\nb,y,b.npy\n" * 5000)
    with pytest.raises(ManifestError) as caught:
        open_bags(tmp_path / "bags.csv")
    assert len(str(caught.value)) < 2000 and "'a' is there 5000 times (lines 2, 4, " in str(caught.value)


def test_file_cells_that_no_file_system_takes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 2), np.float32))
    (tmp_path / "bags.csv").write_text(f"bag_id,label,features\na,x,a.npy\nb,y,{'c' * 5000}.npy\n")
    with pytest.raises(MissingFileError, match=r"bag 'b': .*no such file, the name is too long") as caught:
        open_bags(tmp_path / "bags.csv")
    assert len(str(caught.value)) < 1000
    data = open_bags(tmp_path / "bags.csv", skip={"missing"})
    assert data.bag_ids == ("a",) and data.bytes_on_disk() > 0
    report = check_bags(tmp_path / "bags.csv")
    assert ("missing", "b") in [(p.kind, p.bag_id) for p in report.problems]
    pl.DataFrame({"bag_id": ["a"], "label": ["x"], "features": ["a\0.npy"]}).write_parquet(tmp_path / "z.parquet")
    with pytest.raises(ReadError, match=r"bag 'a': .*a path cannot contain a zero byte"):
        open_bags(tmp_path / "z.parquet", width=2)[0]
    record = BagRecord("l", None, None, (tmp_path / ("c" * 5000),))
    assert BagDataset([record]).bytes_on_disk() == 0


def test_a_name_too_long_for_a_lock_is_no_error(tmp_path: Path) -> None:
    name = "n" * 250 + ".npy"
    np.save(tmp_path / name, np.ones((2, 2), np.float32))
    assert read_bag_file(tmp_path / name).features.shape == (2, 2)


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + ".csv", "a\0b.csv", "a\0b"])
def test_table_names_that_no_file_system_takes(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match=r"File name too long|zero byte"):
        open_bags(tmp_path / name)
    with pytest.raises(ManifestError, match=r"File name too long|zero byte"):
        Manifest.read(tmp_path / name)


@pytest.mark.parametrize("method", ["stat", "read_bytes", "open"])
def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    (tmp_path / "bags.csv").write_text("bag_id,label,features\na,x,a.npy\n")
    (tmp_path / "table.csv").write_text("1,a,2,3\n")

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, method, refuse)  # the tests may run as root, who may read everything
    for name in ("bags.csv", "table.csv"):
        with pytest.raises(ManifestError, match=rf"{name}: cannot be opened \(Permission denied\); check"):
            open_bags(tmp_path / name)
    if method == "stat":
        with pytest.raises(ReadError, match=r"a\.npy: there is no permission to read it"):
            read_bag_file(tmp_path / "a.npy")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A file system takes any bytes for a name; tables and reports do not."""
    odd = tmp_path / os.fsdecode(b"\xff")
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("this file system takes only text for names")
    np.save(odd / "a.npy", np.ones((2, 2), np.float32))
    (tmp_path / "labels.csv").write_text("slide,label\na,x\n")
    built = build_manifest(odd, tmp_path / "labels.csv")
    with pytest.raises(ManifestError, match=r"udcff/a\.npy': a name that is no UTF-8 text cannot be written"):
        built.manifest.to_csv(tmp_path / "bags.csv")
    write_csv(tmp_path / "left_out.csv", [{"file": str(odd)}])
    assert r"\udcff" in (tmp_path / "left_out.csv").read_text(encoding="utf-8")
