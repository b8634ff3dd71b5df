"""docs/results.md says what the committed results tables say."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean, stdev

import polars as pl
import pytest
import results

from qgmil.benchmark.results import as_table, read_rows

TABLES = sorted(results.TABLES.glob("*.parquet"))


def test_every_block_of_the_page_has_its_table() -> None:
    named = [found[1] for found in results.BLOCK.finditer(results.PAGE.read_text(encoding="utf-8"))]
    assert "paper" in named
    assert set(named) == {path.stem for path in TABLES}


def test_the_means_on_the_page_are_those_of_the_table() -> None:
    """The whole page is made by `python benchmarks/results.py`; this checks each macro F1 by other means."""
    block = next(b[2] for b in results.BLOCK.finditer(results.PAGE.read_text(encoding="utf-8")) if b[1] == "paper")
    lines = [line for line in block.splitlines() if line.startswith("|")]
    head = _cells(lines[0])
    scores: dict[tuple[str, str], list[float]] = {}
    for row in read_rows(results.TABLES / "paper.parquet"):
        if row["status"] == "finished" and row["macro_f1"] is not None:
            scores.setdefault((row["model"], row["dataset"]), []).append(row["macro_f1"])
    models = {model for model, _ in scores}
    rows = [_cells(line) for line in lines[2 : 2 + len(models)]]
    assert {row[0].replace("\\", "") for row in rows} == models
    for name, *cells in rows:
        for data_set, cell in zip(head[1:], cells, strict=True):
            found = scores.get((name.replace("\\", ""), data_set.replace("\\", "")))
            said = [float(x) for x in re.findall(r"\d\.\d+", cell)]
            expected = [] if found is None else [mean(found), stdev(found)]
            assert said == pytest.approx(expected, abs=0.0051), (name, data_set)


def test_a_block_and_a_table_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, tables = tmp_path / "results.md", tmp_path / "results"
    tables.mkdir()
    monkeypatch.setattr(results, "PAGE", page)
    monkeypatch.setattr(results, "TABLES", tables)
    page.write_text("# Results\n")
    with pytest.raises(SystemExit, match="has no block"):
        results.results(check=True)
    as_table([recipe_row("a", 0, 0.5)]).write_parquet(tables / "recipe-small.parquet")
    with pytest.raises(SystemExit, match=r"no block shows .*recipe-small\.parquet: add <!-- recipe-small -->"):
        results.results(check=True)
    page.write_text("<!-- recipe-small -->\n<!-- end recipe-small -->\n<!-- paper -->\n<!-- end paper -->\n")
    with pytest.raises(SystemExit, match=r"the block paper has no results table .*paper\.parquet$"):
        results.results()
    page.write_text("before\n<!-- recipe-small -->\n<!-- end recipe-small -->\nafter\n")
    with pytest.raises(SystemExit, match="is not what the results tables say"):
        results.results(check=True)
    results.results()
    results.results(check=True)
    made = page.read_text()
    assert made.startswith("before\n<!-- recipe-small -->\n| model | d: val macro F1 |")
    assert made.endswith("<!-- end recipe-small -->\nafter\n")
    page.write_text(made.replace("0.500", "0.600"))
    with pytest.raises(SystemExit, match="is not what the results tables say"):
        results.results(check=True)


def recipe_row(model: str, fold: int, val: float | None, dataset: str = "d", **changes: object) -> dict[str, object]:
    place = {"dataset": dataset, "features": "", "model": model, "fold": fold, "seed": 0, "status": "finished"}
    test = {"macro_f1": 0.111, "auroc": 0.222, "nll": 0.333, "fingerprint": "f"}
    return {**place, **test, "val_macro_f1": val, "val_auroc": 0.75, "val_nll": 1.25 + fold, **changes}


def test_a_recipe_is_shown_by_validation_figures_alone() -> None:
    rows = [recipe_row("b_2", 0, 0.5), recipe_row("a", 0, 0.9), recipe_row("b_2", 1, 0.6), recipe_row("a", 1, None)]
    rows += [recipe_row("b_2", 0, 0.4, "e"), recipe_row("a", 0, 0.8, "e", status="failed")]
    said = results.recipe_block(rows)
    lines = [_cells(line) for line in said.splitlines() if line.startswith("|")]
    figures = ("val macro F1", "val AUROC", "val NLL")
    assert lines[0] == ["model", *(f"{name}: {figure}" for name in "de" for figure in figures)]
    assert lines[2] == [r"b\_2", "0.550 ± 0.071", "0.750 ± 0.000", "1.750 ± 0.707", "0.400", "0.750", "1.250"]
    undefined = ["undefined"] * 3
    assert lines[3] == ["a", "0.900 (1 of 2)", "0.750 ± 0.000", "1.750 ± 0.707", *undefined] and len(lines) == 4
    assert "(d 2, e 1)" in said and not re.search(r"0\.(111|222|333)", said)


def test_a_table_is_not_replaced_by_one_that_forgets_cells(tmp_path: Path) -> None:
    row = {
        **dict.fromkeys(("dataset", "features", "model", "status"), "x"),
        "fold": 0,
        "seed": 0,
        "fingerprint": "a",
        "status": "finished",
    }
    whole, part = tmp_path / "whole.parquet", tmp_path / "part.parquet"
    as_table([row, {**row, "fold": 1}]).write_parquet(whole)
    as_table([row]).write_parquet(part)
    target = tmp_path / "results" / "paper.parquet"
    results.take_table(whole, target)
    assert pl.read_parquet(target).height == 2
    with pytest.raises(SystemExit, match="lacks 1 cells"):
        results.take_table(part, target)
    assert pl.read_parquet(target).height == 2


def test_further_models_are_shown_beside_the_others_at_their_seed(tmp_path: Path) -> None:
    """Cells of the whole table are not kept twice, and its other seeds do not count in this block."""
    real = [
        r for r in read_rows(results.TABLES / "paper.parquet") if r["dataset"] in ("musk1", "ucsb") and r["seed"] < 2
    ]
    paper = [r for r in real if r["model"] == "qgmil"]
    others = [{**r, "model": "other", "macro_f1": r["macro_f1"] - 0.25} for r in paper]
    tables = tmp_path / "results"
    tables.mkdir()
    as_table(paper).write_parquet(tables / "paper.parquet")
    as_table([*paper, *others]).write_parquet(tmp_path / "all.parquet")
    results.take_table(tmp_path / "all.parquet", tables / "one_seed.parquet")
    assert {(r["model"], r["seed"]) for r in read_rows(tables / "one_seed.parquet")} == {("other", 0)}
    said = results.block("one_seed", tables, None)
    rows = {line[0]: line[1:] for line in map(_cells, said.split("### Over")[0].splitlines()) if len(line) == 3}
    for name, minus in (("qgmil", 0), ("other", 0.25)):
        for cell, data_set in zip(rows[name], ("musk1", "ucsb"), strict=True):
            first = [r["macro_f1"] for r in paper if r["dataset"] == data_set and r["seed"] == 0]
            assert float(re.findall(r"\d\.\d+", cell)[0]) == pytest.approx(mean(first) - minus, abs=0.0051)
    assert re.findall("^### .*", said, re.M) == ["### Macro F1", "### Over data sets"]


def test_an_ablation_is_shown_as_the_verb_does() -> None:
    said = results.block("ablation", results.TABLES, None)
    assert said.startswith("| variant | what is moved | against |")
    assert "### Over data sets" in said and "\n# " not in said
    rows = [r for r in read_rows(results.TABLES / "ablation.parquet") if r["dataset"] == "pbc05"]
    base, plain = ({(r["fold"], r["seed"]): r["macro_f1"] for r in rows if r["model"] == m} for m in ("qgmil", "plain"))
    difference = mean(plain[k] - base[k] for k in base)
    part = said.split("### pbc05")[1].split("###")[0]
    line = next(_cells(line) for line in part.splitlines() if line.startswith("| plain |"))
    assert float(line[2]) == pytest.approx(difference, abs=0.00051)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split(" | ")]
