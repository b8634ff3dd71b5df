"""Figures and users' names as text: for the terminal, Markdown, LaTeX and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

UNDEFINED = "undefined"
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    **{c: "\\" + c for c in "&%$#_{}"},
}


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A figure, or "undefined"; never "-0.000"."""
    if value is None:
        return UNDEFINED
    value = round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0
    return f"{value:{'+' if signed and value else ''}.{digits}f}"


def spread(mean: float | None, sd: float | None, digits: int = 3, sign: str = " ± ") -> str:
    """``mean ± sd``; the mean alone where there is no sd."""
    return number(mean, digits) + (f"{sign}{sd:.{digits}f}" if mean is not None and sd is not None else "")


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """``low–high``, or "undefined"."""
    return UNDEFINED if low is None or high is None else f"{number(low, digits)}–{number(high, digits)}"


def change(before: float | None, after: float | None, digits: int = 3) -> str:
    """``before → after``; "undefined" once where neither is defined."""
    return UNDEFINED if before is None and after is None else f"{number(before, digits)} → {number(after, digits)}"


def p_value(p: float | None) -> str:
    """Three decimals; below them "<0.001"."""
    return UNDEFINED if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def rank(value: float | None) -> str:
    """1 to k, halves for ties."""
    return "–" if value is None else f"{value:g}"


def count(value: float | None) -> str:
    """A count in three figures: 843, 12.3 k, 1.31 M, 2.5 G."""
    if value is None:
        return UNDEFINED
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value / size < 999.5 else f"{value / size:.0f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours."""
    if seconds is None:
        return UNDEFINED
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def one_line(name: str) -> str:
    """A name on one line without characters that steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(name).split()))


def shorten(name: str, most: int) -> str:
    """A name of at most `most` characters: the middle gives way, as ends tell variants apart."""
    name = one_line(name)
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"


def shorten_all(names: Sequence[str], most: int) -> list[str]:
    """The names shortened, with a number where two would read the same."""
    short = [shorten(name, most) for name in names]
    return [s if short.count(s) == 1 else f"{s} ({short[: i + 1].count(s)})" for i, s in enumerate(short)]


def markdown(name: str) -> str:
    """A name in a Markdown table or line: no cell, emphasis, code, link or tag begins in it."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$!])", r"\\\1", one_line(name)).replace("&", "&amp;")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, escaped: bool = True) -> str:
    """A Markdown table: the first `left` columns at the left, figures at the right.

    `escaped` says that the cells of the rows are Markdown already; else they are made so (`markdown`).
    """
    rule = [*["---"] * left, *["---:"] * (len(head) - left)]
    body = rows if escaped else ([markdown(cell) for cell in row] for row in rows)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))


def latex(name: str) -> str:
    """A name in LaTeX text: its special characters are printed, not obeyed."""
    text = "".join(LATEX.get(c, c) for c in one_line(name))
    return "{}" + text if text.startswith(("[", "*")) else text  # after a row's end these would be its options
