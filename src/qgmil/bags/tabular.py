"""CSV and parquet as rows of text: ids stay what the user wrote ("0012" stays "0012")."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from qgmil.bags.problems import Problem
from qgmil.bags.readers.base import check_expansion, holes, listing
from qgmil.errors import ManifestError, ReadError

SEPARATORS = (",", "\t", ";")
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".parquet", ".pq"})
BYTE_ORDER_MARK = "\ufeff"
MAX_CELLS = 20_000_000  # of a table that becomes text, some hundred bytes each: ten columns for two million bags
MAX_TEXT = 2**28  # bytes of such a table
MAX_LINE = 2**24  # characters: a bag of a hundred thousand one-cell files
SAID_SEPARATOR = re.compile(r"sep=([^\w\s\"]|\t)", re.IGNORECASE)  # Excel's first line


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are text without surrounding blanks.

    Args:
        path: where it was read.
        columns: names of the columns; columns without a name (a data frame's index) are left out.
        rows: line number (first data row of a parquet file: 1) and cells by column.
        word: "line" or "row", whichever the numbers count.
        problems: lines with the wrong number of cells, which are not in `rows`.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]
    word: str
    problems: tuple[Problem, ...] = ()


def is_parquet(path: Path) -> bool:
    """Whether the name says parquet."""
    return path.suffix.lower() in (".parquet", ".pq")


def read_text_table(path: Path) -> TextTable:
    """Read a CSV (comma, semicolon or tab; UTF-8 or UTF-16) or parquet file.

    Raises:
        ManifestError: missing, not text, no header, a column twice, or far larger than a table of bags can be.
    """
    check_table_path(path)
    try:
        return _read_parquet(path) if is_parquet(path) else _read_csv(path)
    except MemoryError as error:
        raise ManifestError(f"{path}: does not fit into memory; make a smaller table") from error


def check_table_path(path: Path) -> None:
    """Refuse what is no regular file with something in it."""
    if "\0" in str(path):
        raise ManifestError(f"{str(path)!r}: a path cannot contain a zero byte; correct the path")
    with os_errors(path):
        _check_regular(path)


def _check_regular(path: Path) -> None:
    if path.is_dir():
        raise ManifestError(f"{path}: is a folder; name the table of bags (CSV or parquet) inside it")
    if not path.exists():
        raise ManifestError(f"{path}: no such file; name the table of bags (CSV or parquet)")
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise ManifestError(f"{path}: is a spreadsheet; save it as CSV (UTF-8) or parquet")
    if not path.is_file() or path.stat().st_size == 0:
        raise ManifestError(f"{path}: is empty or not a regular file; expected a CSV or parquet table")
    if stored := holes(path):
        raise ManifestError(f"{path}: {stored}")


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says (no permission, a name too long) into a `ManifestError`."""
    try:
        yield
    except OSError as error:
        name = str(path) if len(str(path)) <= 1000 else f"{str(path)[:100]}..."
        reason = error.strerror or str(error)
        raise ManifestError(f"{name}: cannot be opened ({reason}); check the path and its permissions") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file, or a `ManifestError`."""
    with os_errors(path):
        return path.read_bytes()


def read_parquet(path: Path, most_cells: int | None = None) -> pl.DataFrame:
    """A parquet file of plain columns, once its declared size is believed.

    Raises:
        ManifestError: broken, columns of lists, more cells than `most_cells`, or far more than what is stored.
    """
    try:
        _check_declared(path, most_cells)
        return pl.read_parquet(path, glob=False)
    except ManifestError:
        raise
    except ReadError as error:
        raise ManifestError(str(error)) from error
    except MemoryError as error:
        raise ManifestError(f"{path}: does not fit into memory; make a smaller table") from error
    except (Exception, pl.exceptions.PanicException) as error:  # many kinds, polars' own and the operating system's
        raise ManifestError(f"{path}: cannot be read as parquet ({type(error).__name__}: {error})") from error


def _check_declared(path: Path, most_cells: int | None) -> None:
    """Read the metadata alone: a few hundred bytes can declare a billion equal rows."""
    lazy = pl.scan_parquet(path, glob=False)
    schema, rows = lazy.collect_schema(), int(lazy.select(pl.len()).collect().item())
    if nested := [name for name, kind in schema.items() if kind.is_nested()]:
        raise ManifestError(f"{path}: the column {listing(nested)} holds lists; write plain columns")
    what = f"a table of {rows:,} rows and {len(schema):,} columns"
    if most_cells is not None and rows * len(schema) > most_cells:
        raise ManifestError(f"{path}: {what} is no table of bags or labels (at most {most_cells:,} cells are read)")
    check_expansion(path, rows * len(schema) * 8, path.stat().st_size, what)


def decode(path: Path, raw: bytes) -> str:
    """The text of a file in UTF-8 or, with its byte-order mark, UTF-16 (what spreadsheets write)."""
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ManifestError(f"{path}: line {line} is not {encoding.upper()}; save the table as UTF-8") from error
    if "\0" in text:
        raise ManifestError(f"{path}: is not a text file (it contains zero bytes); expected CSV or parquet")
    return text.removeprefix(BYTE_ORDER_MARK)


def sniff_separator(line: str) -> str:
    """The separator that cuts a line into most cells; comma where none does."""
    counts = {s: len(cells_of(line, s)) for s in SEPARATORS}
    return max(SEPARATORS, key=lambda s: counts[s])


def cells_of(line: str, separator: str) -> list[str]:
    """The cells of one line."""
    with long_cells():
        return next(csv.reader([line], delimiter=separator), [])


@contextmanager
def long_cells() -> Iterator[None]:
    """Lift the csv module's limit on the length of a cell: a bag of many one-cell files has a long one."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """The cells of every line of a CSV file that is not blank, with the number it starts at; the header is the first.

    Raises:
        ManifestError: missing, not text, or no header.
    """
    check_table_path(path)
    with os_errors(path):
        size = path.stat().st_size
    if size > MAX_TEXT:
        raise ManifestError(f"{path}: has {size:,} bytes; a table of bags or labels has at most {MAX_TEXT:,}")
    lines = _parse(path, decode(path, read_bytes(path)))
    if not lines:
        raise ManifestError(f"{path}: has no header line")
    return lines


def _read_csv(path: Path) -> TextTable:
    lines = read_lines(path)
    header = [c.strip() for c in lines[0][1]]
    _check_header(path, header)
    rows, problems = [], []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            message = f"line {number} has {len(cells)} cells but the header has {len(header)}; mend that line"
            problems.append(Problem("table", None, message))
            continue
        rows.append((number, {c: v.strip() for c, v in zip(header, cells, strict=True) if c}))
    return TextTable(path, tuple(c for c in header if c), tuple(rows), "line", tuple(problems))


def _parse(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Every line that is not blank, with the number it starts at."""
    _check_lines(path, text)
    text, before, separator = _start(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines, number = [], before + 1
    with long_cells():
        try:
            for cells in reader:
                if any(c.strip() for c in cells):
                    lines.append((number, cells))
                number = before + reader.line_num + 1
        except csv.Error as error:
            raise ManifestError(f"{path}: line {number} cannot be read as CSV ({error}); mend its quotes") from error
    return lines


def _start(text: str) -> tuple[str, int, str]:
    """The text from its header on, how many lines lie before that, and the separator: "sep=;" in front says it."""
    lines = enumerate(text.splitlines(keepends=True), start=1)
    number, first = next(((n, line) for n, line in lines if line.strip()), (1, ""))
    said = SAID_SEPARATOR.fullmatch(first.rstrip("\r\n"))
    if said is None:
        return text, 0, sniff_separator(first)
    return text[text.index(first) + len(first) :], number, said[1]


def _check_lines(path: Path, text: str) -> None:
    """Refuse a line of millions of cells before any of them is made."""
    for number, line in enumerate(io.StringIO(text), start=1):
        if len(line) > MAX_LINE:
            raise ManifestError(
                f"{path}: line {number} has {len(line):,} characters, which is no row of a table of bags (at most "
                f"{MAX_LINE:,}); write each bag on a line of its own"
            )


def _read_parquet(path: Path) -> TextTable:
    frame = read_parquet(path, MAX_CELLS)
    _check_header(path, frame.columns)
    size = sum(int(c.str.len_bytes().cast(pl.UInt64).sum()) for c in frame if c.dtype == pl.String)
    if size > MAX_TEXT:  # one long text that all rows share is stored once
        raise ManifestError(f"{path}: its texts have {size:,} bytes; a table of bags has at most {MAX_TEXT:,}")
    texts = [_as_text(frame[c]) for c in frame.columns]
    rows = tuple(
        (i, dict(zip(frame.columns, cells, strict=True))) for i, cells in enumerate(zip(*texts, strict=True), start=1)
    )
    return TextTable(path, tuple(frame.columns), rows, "row")


def _as_text(column: pl.Series) -> list[str]:
    if column.dtype.is_float():
        # A data frame turns whole numbers into fractions as soon as one cell is missing.
        known = column.fill_nan(None).drop_nulls()
        if known.is_finite().all() and (known == known.floor()).all():
            column = column.fill_nan(None).cast(pl.Int64, strict=False)
    return ["" if v is None else str(v).strip() for v in column.to_list()]


def _check_header(path: Path, columns: list[str]) -> None:
    twice = sorted(c for c, n in Counter(columns).items() if c and n > 1)
    if twice:
        raise ManifestError(f"{path}: the column {listing(twice)} is there twice; rename one")
