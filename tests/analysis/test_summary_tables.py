"""Summaries by class and correctness, paired comparisons, and their tables: values by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from qgmil.analysis.figures import entropy_figure, faithfulness_figure, head_figure
from qgmil.analysis.records import Record
from qgmil.analysis.summary import compare_records, groups_of, summarise_records
from qgmil.analysis.tables import bag_rows, head_rows, markdown, summary_tables
from qgmil.errors import MetricError


def record(number: int, entropy: float | None, source: str = "a", **row: object) -> Record:
    label = "tumour" if number % 2 else "benign"
    identity = {"bag_id": f"b{number}", "patient_id": f"p{number // 2}", "label": label, "correct": number != 3}
    return Record(source, {**identity, "n_instances": 10 + number, "entropy": entropy, **row}, [0.0, 1.0])


RECORDS = [record(i, 0.1 * i) for i in range(6)]


def test_groups_are_classes_and_correctness() -> None:
    groups = {name: [r.bag_id for r in found] for name, found in groups_of(RECORDS)}
    assert groups == {
        "all": [f"b{i}" for i in range(6)],
        "class benign": ["b0", "b2", "b4"],
        "class tumour": ["b1", "b3", "b5"],
        "correct": ["b0", "b1", "b2", "b4", "b5"],
        "incorrect": ["b3"],
    }


def test_means_and_intervals_over_patients() -> None:
    rows = {(r["group"], r["figure"]): r for r in summarise_records({"a": RECORDS})}
    whole = rows["all", "entropy"]
    assert whole["mean"] == pytest.approx(0.25)
    assert whole["sd"] == pytest.approx(np.std([0.1 * i for i in range(6)], ddof=1))
    assert (whole["bags"], whole["patients"]) == (6, 3)
    # patients have means .05, .25, .45: resampled means lie between, and 3 patients reach both ends
    assert whole["low"] == pytest.approx(0.05)
    assert whole["high"] == pytest.approx(0.45)
    alone = rows["incorrect", "entropy"]
    assert (alone["mean"], alone["sd"], alone["low"]) == (pytest.approx(0.3), None, None)
    assert ("all", "gini") not in rows


def test_undefined_figures_are_left_out_of_the_mean() -> None:
    rows = summarise_records({"a": [record(0, 0.5), record(1, None), record(2, 0.7)]})
    whole = next(r for r in rows if r["group"] == "all")
    assert (whole["mean"], whole["bags"]) == (pytest.approx(0.6), 2)


def test_pairs_are_compared_on_the_bags_of_both() -> None:
    other = [record(i, 0.1 * i + 0.2, "b") for i in (5, 4, 3, 2, 1)] + [record(9, 5.0, "b")]
    third = [record(i, 0.1 * i, "c") for i in range(6)]
    rows = compare_records({"a": RECORDS, "b": other, "c": third})
    found = {(r["first"], r["second"]): r for r in rows if r["figure"] == "entropy"}
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    first = found["a", "b"]
    assert (first["bags"], first["patients"]) == (5, 3)
    assert first["difference"] == pytest.approx(-0.2)
    assert (first["low"], first["high"]) == (pytest.approx(-0.2), pytest.approx(-0.2))
    assert first["p"] == pytest.approx(0.25)  # three patients, all the same sign
    assert found["a", "c"]["p"] is None  # no difference at all
    assert first["p_holm"] == pytest.approx(0.5)


def test_tables_say_it_in_80_columns() -> None:
    figures = {
        "top_10pct": 0.2,
        "gini": 0.3,
        "deletion_advantage": -0.4,
        "insertion_advantage": -0.5,
        "instance_auroc": 0.6,
    }
    summary = summarise_records({"runs/[x] <b>": [record(i, 0.1 * i, **figures) for i in range(4)]})
    console = Console(file=io.StringIO(), width=80)
    for table in summary_tables(summary, width=80):
        console.print(table)
    assert len(summary_tables(summary)) == 1
    text = console.file.getvalue()
    assert "runs/[x] <b>" in text
    assert "class tumour (2)" in text
    assert all(f"{value:.3f}" in text and f"[{value:.2f}, {value:.2f}]" in text for value in figures.values())
    assert max(len(line) for line in text.splitlines()) <= 80
    page = markdown(summary, [], {"a|b": "Faithful <script>."})
    assert r"**a\|b**: Faithful \<script\>." in page
    assert r"| runs/\[x\] \<b\> | all (4) |" in page


def test_rows_of_files() -> None:
    heads = Record("a", RECORDS[0].row, [0.0], None, [{"model": 0, "layer": 0, "head": 1, "sink": 2.0}])
    assert head_rows([heads]) == [{"source": "a", "bag_id": "b0", "model": 0, "layer": 0, "head": 1, "sink": 2.0}]
    rows = bag_rows(RECORDS)
    assert list(rows[0])[:4] == ["source", "bag_id", "patient_id", "label"]
    assert [r["entropy"] for r in rows] == [r.row["entropy"] for r in RECORDS]


def test_figures_draw_what_there_is() -> None:
    curves = {
        "shares": [0, 0.5],
        "deletion": [0.9, 0.4],
        "insertion": [0.5, 0.9],
        "random_deletion": [[0.9, 0.8]],
        "random_insertion": [[0.6, 0.8]],
    }
    heads = [{"layer": 0, "head": h, "row_entropy": 0.5 + h / 10, "sink": 2.0, "gate_mean": None} for h in (0, 1)]
    full = [Record("a", r.row, r.curve, curves, heads) for r in RECORDS]
    fig = faithfulness_figure({"$a_1": full})
    lines = {line.get_label(): line.get_ydata() for line in fig.axes[0].lines}
    np.testing.assert_allclose(lines[r"\$a_1"], [0.9, 0.4])
    assert len(head_figure({"a": full, "none": RECORDS}).axes) == 2  # no gate, no logit
    hollow = entropy_figure({"a": full}).axes[0].collections[1]
    np.testing.assert_allclose(hollow.get_offsets(), [[13, 0.3]])
    for draw in (entropy_figure, head_figure, faithfulness_figure):
        with pytest.raises(MetricError):
            draw({"a": []})
