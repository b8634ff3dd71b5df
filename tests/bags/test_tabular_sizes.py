"""Tables that are far larger than a table of bags, or that a spreadsheet wrote in a way of its own."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl
import pytest

from qgmil.bags import tabular
from qgmil.bags.manifest import Manifest
from qgmil.bags.tabular import read_lines, read_parquet, read_text_table
from qgmil.errors import ManifestError


def bomb(path: Path, rows: int) -> Path:
    """Equal rows, which parquet stores in a few kilobytes; written in parts, so that nobody holds them."""
    same = [pl.repeat(1, rows, dtype=pl.Int8).alias(name) for name in ("bag_id", "label", "features")]
    pl.LazyFrame({"a": [1]}).select(same).sink_parquet(path, row_group_size=2_000_000)
    return path


def test_a_parquet_of_millions_of_equal_rows_is_refused_by_its_metadata(tmp_path: Path) -> None:
    path = bomb(tmp_path / "labels.parquet", 8_000_000)
    assert path.stat().st_size < 100_000
    start = time.perf_counter()
    with pytest.raises(ManifestError, match=r"labels\.parquet: a table of 8,000,000 rows and 3 columns is no table of"):
        read_text_table(path)
    with pytest.raises(ManifestError, match=r"labels\.parquet"):
        Manifest.read(path)
    # A long table of instances may have many rows, but they must be stored.
    with pytest.raises(ManifestError, match=r"rows and 3 columns declares 192,000,000 bytes but only [0-9,]+ are"):
        read_parquet(path)
    assert time.perf_counter() - start < 1


def test_one_long_text_in_every_row_of_a_parquet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pl.DataFrame({"bag_id": [str(i) for i in range(50)], "label": ["x" * 10_000] * 50})
    frame.write_parquet(tmp_path / "t.parquet")
    assert len(read_text_table(tmp_path / "t.parquet").rows) == 50
    monkeypatch.setattr(tabular, "MAX_TEXT", 400_000)
    with pytest.raises(ManifestError, match=r"t\.parquet: its texts have 500,0\d\d bytes"):
        read_text_table(tmp_path / "t.parquet")


def test_columns_of_lists_are_refused_by_name(tmp_path: Path) -> None:
    pl.DataFrame({"bag_id": ["a"], "parts": [[1, 2]]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(ManifestError, match=r"t\.parquet: the column 'parts' holds lists"):
        read_text_table(tmp_path / "t.parquet")


def test_a_parquet_of_no_rows_or_that_is_broken_is_named(tmp_path: Path) -> None:
    pl.DataFrame({"bag_id": [], "label": []}).write_parquet(tmp_path / "none.parquet")
    assert read_text_table(tmp_path / "none.parquet").rows == ()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more PAR1")
    with pytest.raises(ManifestError, match=r"broken\.parquet: cannot be read as parquet"):
        read_text_table(tmp_path / "broken.parquet")


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    path = tmp_path / "bags[1].parquet"
    pl.DataFrame({"bag_id": ["a"]}).write_parquet(path)
    assert read_text_table(path).rows == ((1, {"bag_id": "a"}),)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_what_does_not_fit_into_memory_is_an_error_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    frame = pl.DataFrame({"bag_id": ["a"]})
    (frame.write_csv if name == "t.csv" else frame.write_parquet)(tmp_path / name)

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(tabular, "_as_text", full)
    monkeypatch.setattr(tabular, "decode", full)
    with pytest.raises(ManifestError, match=rf"{name}: does not fit into memory"):
        read_text_table(tmp_path / name)


def test_a_file_or_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    path.write_text("bag_id,label\na,1\n" + "b" * 5000 + ",2\n")
    assert len(read_lines(path)) == 3
    monkeypatch.setattr(tabular, "MAX_LINE", 4000)
    with pytest.raises(ManifestError, match=r"t\.csv: line 3 has 5,003 characters"):
        read_lines(path)
    monkeypatch.setattr(tabular, "MAX_TEXT", 5000)
    with pytest.raises(ManifestError, match=r"t\.csv: has 5,020 bytes; a table of bags or labels has at most 5,000"):
        read_lines(path)


@pytest.mark.parametrize("separator", [";", ",", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_first_line_of_excel_names_the_separator(tmp_path: Path, separator: str, ending: str) -> None:
    lines = [f"sep={separator}", "bag_id,label,note", 'a,1,"x', 'y"', "b,2", "c,3,z"]
    text = ending.join([lines[0], *(line.replace(",", separator) for line in lines[1:]), ""])
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    table = read_text_table(tmp_path / "t.csv")
    assert table.columns == ("bag_id", "label", "note")
    assert [(line, cells["bag_id"], cells["label"]) for line, cells in table.rows] == [(3, "a", "1"), (6, "c", "3")]
    assert "line 5 has 2 cells" in table.problems[0].message


def test_a_column_called_sep_is_a_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sep=x,bag_id\n1,a\n")
    assert read_text_table(tmp_path / "t.csv").columns == ("sep=x", "bag_id")
