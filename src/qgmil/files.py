"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. What is no text (the name of a file may be any bytes) is written as an escape."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically. NaN is not JSON: it raises ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def append_json_line(path: Path, value: Any) -> None:
    """Add a line of JSON to a file; it is on the disk when this returns, whatever becomes of the process.

    What a kill left of an earlier line is ended first, so that it takes no other with it. NaN raises ValueError.
    """
    line = json.dumps(value, allow_nan=False) + "\n"
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> Iterator[Any]:
    """The lines of a file that `append_json_line` wrote, without those that a kill cut short; none without a file."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file that `write_csv` wrote, as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV atomically. The columns are the keys of all rows in order of appearance; None is blank."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
