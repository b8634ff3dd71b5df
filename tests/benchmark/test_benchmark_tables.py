"""The tables say the summary's numbers, on the terminal, in Markdown, LaTeX and CSV, whatever the names are."""

from __future__ import annotations

import io
import re
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from benchmark.synthetic_rows import drawn, row, scores, table
from qgmil.benchmark.notes import friedman_text
from qgmil.benchmark.summary import BenchmarkSummary, summarise_benchmark
from qgmil.benchmark.tables import print_tables, write_tables
from qgmil.errors import MetricError
from qgmil.evaluation import text
from qgmil.files import read_csv

MODELS = {"qgmil_headwise": 1.4, "abmil_gated": 1.0, "mean": 0.8, "linear_probe": 0.7, "majority": -0.4}
NASTY = "[bold]a|b_50%&$x$[/bold] {#1} ~^\\<b>*y*"


@pytest.fixture(scope="module")
def summary() -> BenchmarkSummary:
    rows = drawn(MODELS, ["first", "second", "third"], folds=3, seeds=2, bags=16, attention={"abmil_gated": 0.6})
    return summarise_benchmark(rows, resamples=50)


def printed(rows: pl.DataFrame | BenchmarkSummary) -> str:
    out = io.StringIO()
    print_tables(rows, Console(file=out, width=100, highlight=False))
    return out.getvalue()


def markdown_rows(page: str, heading: str) -> dict[str, list[str]]:
    """{first cell: the cells} of the table under a heading."""
    lines = page.split(f"## {heading}\n\n")[1].split("\n\n")[0].splitlines()
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(c) for c in cells}) == 1, cells
    return {c[0]: c for c in cells}


def test_the_terminal_has_every_model_and_fits(summary: BenchmarkSummary) -> None:
    said = printed(summary)
    assert max(map(len, said.splitlines())) <= 100
    for task in summary.tasks:
        part = said.split(f"{task.name}: 5 models")[1].split("Best baseline")[0]
        for line in summary.lines[task.name]:
            shown = f"{line['macro_f1_mean']:.2f}±{line['macro_f1_sd']:.2f}"
            assert shown in part and f"{line['macro_f1_low']:.2f}–{line['macro_f1_high']:.2f}" in part
            assert f"{line['ece']:.2f}→{line['ece_calibrated']:.2f}" in part
        assert part.count("(control)") == 2 and "none" in part
    assert "3 folds × 2 seeds (6 cells)" in said and "(Nadeau and Bengio 2003)" in " ".join(said.split())
    assert "Wilcoxon" in said
    assert "Over 3 data sets" in said and "not ranked" in said and "(reference)" in said


def test_one_data_set_has_no_overall_table() -> None:
    said = printed(table(scores({"qgmil": [[0.5], [0.7]], "abmil": [[0.4], [0.7]]})))
    assert "Over " not in said and "Friedman" not in said and "d: 2 models" in said
    assert "undef." in said and "no pooled figures" in said  # no predictions in this table


def test_each_task_has_its_own_caption_where_they_differ(summary: BenchmarkSummary) -> None:
    rows = scores({"qgmil": [[0.5], [0.7]], "abmil": [[0.4], [0.7]]})
    rows += scores({"qgmil": [[0.5, 0.6]] * 3, "abmil": [[0.4, 0.7]] * 3}, dataset="e")
    said = " ".join(printed(table(rows)).split())
    first, second = said.split("d: 2 models")[1].split("e: 2 models")
    assert first.count("Mean ± sd over 2 folds × 1 seed (2 cells)") == 1 and "3 folds" not in first
    assert second.count("Mean ± sd over 3 folds × 2 seeds (6 cells)") == 1 and "2 folds" not in second
    assert second.index("Mean ± sd over 3 folds") < second.index("Over 2 data sets")
    same = printed(summary)
    assert same.count("Mean ± sd over") == 1 and same.index("Over 3 data sets") < same.index("Mean ± sd over")


def test_captions_say_what_can_be_the_baseline_and_what_is_taken_as_independent(summary: BenchmarkSummary) -> None:
    said = " ".join(printed(summary).split())
    assert "mean macro F1 on the same cells (not bag size or majority class; for a QG-MIL no other QG-MIL)" in said
    assert "Data sets are taken as independent, which those from the same data (draws, feature sets, " in said
    assert "independent" not in printed(table(scores({"qgmil": [[0.5], [0.7]], "abmil": [[0.4], [0.7]]})))


def test_the_command_sums_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qgmil.benchmark import summary as module
    from qgmil.benchmark import tables
    from qgmil.cli.benchmark import _tables

    calls: list[BenchmarkSummary] = []

    def counted(rows: pl.DataFrame) -> BenchmarkSummary:
        calls.append(summarise_benchmark(rows, resamples=10))
        return calls[-1]

    monkeypatch.setattr(module, "summarise_benchmark", counted)
    monkeypatch.setattr(tables, "summarise_benchmark", counted)
    _tables(tmp_path, scores({"qgmil": [[0.5], [0.7]], "abmil": [[0.4], [0.7]]}), quiet=False)
    assert len(calls) == 1 and "d: 2 models" in capsys.readouterr().out
    assert (tmp_path / "tables" / "results.md").is_file()


def test_what_is_missing_is_named() -> None:
    rows = [*scores({"qgmil": [[0.5], [0.7], [0.6]], "abmil": [[0.4], [0.7]]})]
    rows += [row("abmil", 2, 0, status="failed", error="out of memory [3 GB]")]
    said = " ".join(printed(table(rows)).split())
    assert "abmil [2/3]" in said and "missing: fold 2 seed 0 failed: out of memory [3 GB]" in said
    none = " ".join(printed(table([*rows, row("dead", 0, 0, status="failed", error="x")])).split())
    assert "dead [0/3] undef." in none and "dead: 0 of 3 cells" in none


def test_markdown_has_the_numbers(tmp_path: Path, summary: BenchmarkSummary) -> None:
    write_tables(tmp_path, summary, "Ours", figures=False)
    page = (tmp_path / "tables" / "results.md").read_text()
    assert page.startswith("# Ours\n") and "![" not in page
    for task in summary.tasks:
        rows = markdown_rows(page, task.name)
        head = rows["model"]
        for line in summary.lines[task.name]:
            name = text.markdown(line["model"]) + (" (control)" if line["control"] else "")
            cells = dict(zip(head, rows[name], strict=True))
            f1 = f"{line['macro_f1_mean']:.3f} ± {line['macro_f1_sd']:.3f}"
            assert cells["macro F1"] == (f"**{f1}**" if line["rank"] == 1 else f1)
            assert cells["rank"] == ("–" if line["rank"] is None else f"{line['rank']:g}")
            assert cells["ECE"] == f"{line['ece']:.3f} → {line['ece_calibrated']:.3f}"
            assert cells["NLL"] == f"{line['nll']:.3f} → {line['nll_calibrated']:.3f}"
            assert cells["difference (p)"].startswith(f"{line['difference']:+.3f} (")
            assert cells["seed distance"] == f"{line['seed_distance']:.3f}"
            assert (cells["top 10 %"] == "none") == (line["model"] != "abmil_gated")
            assert cells["peak MB"] == f"{line['peak_mb']:.0f}"
    assert page.count("3 folds × 2 seeds (6 cells)") == 1  # one caption, as all data sets have the same grid
    matrix = markdown_rows(page, "Macro F1")
    assert matrix["model"][1:] == [text.markdown(task.name) for task in summary.tasks]
    for place, task in enumerate(summary.tasks, 1):
        for line in summary.lines[task.name]:
            f1 = f"{line['macro_f1_mean']:.2f} ± {line['macro_f1_sd']:.2f}"
            assert matrix[text.markdown(line["model"])][place] == (f"**{f1}**" if line["rank"] == 1 else f1)
    overall = markdown_rows(page, "Over data sets")
    for s in summary.overall.standings:
        [cells] = [c for name, c in overall.items() if name.split(" (")[0] == text.markdown(s.model)]
        assert cells[1] == ("not ranked" if s.average_rank is None else f"{s.average_rank:.2f}")
        assert cells[6] == ("–" if s.p_holm is None else f"{s.p_holm:.3f}")
    assert text.markdown(friedman_text(summary.overall)) in page


def test_latex_has_the_numbers(tmp_path: Path, summary: BenchmarkSummary) -> None:
    write_tables(tmp_path, summary, figures=False)
    page = (tmp_path / "tables" / "results.tex").read_text()
    assert r"Model & first & second & third & Rank \\" in page and r"\begin{tabular}{lcccc}" in page
    assert page.count(r"\midrule") == 2 and "3 folds $\\times$ 2 seeds (6 cells)" in page
    for s in summary.overall.standings:
        [shown] = [line for line in page.splitlines() if line.startswith(text.latex(s.model)) and "&" in line]
        cells = shown.removesuffix(r" \\").split(" & ")
        rank = "--" if s.average_rank is None else f"{s.average_rank:.2f}"
        assert cells[-1] == (rf"\textbf{{{rank}}}" if s is summary.overall.standings[0] else rank)
        for cell, task in zip(cells[1:-1], summary.tasks, strict=True):
            [line] = [found for found in summary.lines[task.name] if found["model"] == s.model]
            mean = f"{line['macro_f1_mean']:.3f}"
            mean = rf"\textbf{{{mean}}}" if line["rank"] == 1 else mean
            assert cell == mean + rf"{{\scriptsize\,$\pm$\,{line['macro_f1_sd']:.3f}}}"


def test_csv_has_a_row_a_model_and_all_figures(tmp_path: Path, summary: BenchmarkSummary) -> None:
    write_tables(tmp_path, summary, figures=False)
    rows = read_csv(tmp_path / "tables" / "summary.csv")
    assert len(rows) == 15
    for found in rows:
        [line] = [one for one in summary.lines[found["task"]] if one["model"] == found["model"]]
        assert found.keys() == line.keys()
        for name, value in line.items():
            assert found[name] == ("" if value is None else str(value))


def unescape_latex(source: str) -> str:
    for name, c in (("textbackslash", "\\"), ("textasciitilde", "~"), ("textasciicircum", "^"), ("textless", "<"),
                    ("textgreater", ">"), ("textbar", "|")):  # fmt: skip
        source = source.replace(f"\\{name}{{}}", f"\0{ord(c)}\0")
    source = re.sub(r"\\([&%$#_{}])", lambda m: f"\0{ord(m[1])}\0", source).removeprefix("{}")
    assert not re.search(r"[\\&%$#_{}~^]", source), source
    return re.sub("\0(\\d+)\0", lambda m: chr(int(m[1])), source)


def test_names_are_printed_not_obeyed(tmp_path: Path) -> None:
    values = {NASTY: [[0.5], [0.7]], "\x1b[31mred\nline": [[0.4], [0.6]], "[8pt]": [[0.4], [0.5]]}
    rows = table(scores(values, dataset=NASTY))
    assert NASTY in printed(rows).replace("\n", "") and "\x1b" not in printed(rows)
    write_tables(tmp_path, rows, NASTY, figures=False)
    page = (tmp_path / "tables" / "results.md").read_text()
    cells = markdown_rows(page, text.markdown(NASTY))
    assert set(cells) == {"model", "---", *map(text.markdown, values)}
    tex = (tmp_path / "tables" / "results.tex").read_text()
    assert f"{text.latex(NASTY)} & " in tex and "\n{}[8pt] & " in tex
    assert "\x1b" not in page and "\x1b" not in tex
    assert unescape_latex(text.latex(NASTY)) == NASTY
    assert re.sub(r"\\(.)", r"\1", text.markdown(NASTY)).replace("&amp;", "&") == NASTY


def test_incomplete_and_undefined_in_latex(tmp_path: Path) -> None:
    rows = scores({"qgmil": [[0.5], [0.7]], "abmil": [[0.4]], "mean": [[None], [None]]})
    rows += scores({"qgmil": [[0.5], [0.7]]}, dataset="e")
    write_tables(tmp_path, table(rows), figures=False)
    tex = (tmp_path / "tables" / "results.tex").read_text()
    assert re.search(r"^abmil & 0\.400\$\^\{\*\}\$ & -- & undefined", tex, re.MULTILINE)
    assert re.search(r"^mean & undefined & -- & undefined", tex, re.MULTILINE) and "not all cells finished" in tex


def test_errors_before_files(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="no rows"):
        write_tables(tmp_path, table([]))
    assert not list(tmp_path.iterdir())


def test_numbers_as_text() -> None:
    assert text.number(-0.0001) == "0.000" and text.number(-0.0001, signed=True) == "0.000"
    assert text.number(0.0123, signed=True) == "+0.012" and text.number(None) == "undefined"
    assert text.spread(0.5, None) == "0.500" and text.spread(None, 0.1) == "undefined"
    assert text.interval(0.1, None) == "undefined" and text.change(0.1, None) == "0.100 → undefined"
    assert [text.p_value(p) for p in (0.0004, 0.001, 0.05, None)] == ["<0.001", "0.001", "0.050", "undefined"]
    assert [text.count(n) for n in (843, 12_345, 1_310_000, 999_900)] == ["843", "12.3 k", "1.31 M", "1000 k"]
    assert [text.duration(s) for s in (3.21, 42.4, 600, 7200)] == ["3.2 s", "42 s", "10 min", "2.0 h"]
    assert [text.rank(r) for r in (1.0, 2.5, None)] == ["1", "2.5", "–"]


def test_short_names_stay_distinct() -> None:
    assert text.shorten("abcdefghij", 7) == "abc…hij" and text.shorten("abc", 3) == "abc"
    assert text.shorten_all(["abcdefghij", "abcXXXXhij", "x"], 7) == ["abc…hij (1)", "abc…hij (2)", "x"]
