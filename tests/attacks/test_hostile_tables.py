"""Tables whose ids climb out of folders, and tables that are not tables."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from qgmil.bags.check import check_bags
from qgmil.bags.dataset import open_bags
from qgmil.bags.manifest import Manifest
from qgmil.errors import ManifestError

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
