"""The benchmark's figures draw the summary's numbers, and are left out where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmark.synthetic_rows import drawn, scores, table
from qgmil.benchmark.figures import (
    calibration_figure,
    concentration_figure,
    critical_difference_figure,
    draw_figures,
    macro_f1_figure,
)
from qgmil.benchmark.summary import BenchmarkSummary, summarise_benchmark
from qgmil.benchmark.tables import write_tables

LONG = "a_very_long_model_name_with_a_great_many_parts_and_a_variant_"
MODELS = {"qgmil": 1.4, "_under$x$": 1.1, LONG + "A": 1.0, LONG + "B": 0.8, "linear_probe": 0.7, "majority": -0.4}
NAMES = ("critical_difference.png", "macro_f1.png", "concentration.png", "calibration.png")


@pytest.fixture(scope="module")
def summary() -> BenchmarkSummary:
    rows = drawn(MODELS, list("abc"), folds=3, seeds=2, bags=16, attention={"qgmil": 0.2, "_under$x$": 0.6})
    return summarise_benchmark(rows, resamples=20)


def texts(fig: Figure) -> list[Text]:
    fig.draw_without_rendering()
    return [t for t in fig.findobj(Text) if isinstance(t, Text) and t.get_text().strip() and t.get_visible()]


def shown_texts(fig: Figure) -> list[Text]:
    """Titles, labels, legends and the labels of ticks in view."""
    fig.draw_without_rendering()
    found = [t for legend in fig.legends for t in legend.get_texts()] + fig.texts
    for ax in (ax for ax in fig.axes if ax.get_visible()):
        found += [ax.title, *ax.texts]
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())) if ax.axison else ():
            found += [tick.label1 for tick in axis.get_major_ticks() if min(limits) <= tick.get_loc() <= max(limits)]
    return [t for t in found if t.get_visible() and t.get_text().strip()]


def drawn_at(ax, marker: str, y: float) -> list[float]:
    """The x of the marks of this kind in this row."""
    lines = [line for line in ax.lines if line.get_marker() == marker and np.isclose(line.get_ydata()[0], y)]
    return [float(x) for line in lines for x in line.get_xdata()]


def test_macro_f1_marks_means_and_folds(summary: BenchmarkSummary) -> None:
    fig = macro_f1_figure(summary)
    rows = [s.model for s in summary.overall.standings]
    for ax, task in zip(fig.axes, summary.tasks, strict=False):
        for line in summary.lines[task.name]:
            y = rows.index(line["model"])
            marker = "o" if line["model"] == "qgmil" else "s" if line["control"] else "D"
            assert drawn_at(ax, marker, y) == pytest.approx([line["macro_f1_mean"]])
            whisker = [x for line2 in ax.lines if line2.get_linestyle() == "-" and line2.get_ydata()[0] == y
                       for x in line2.get_xdata()]  # fmt: skip
            assert np.mean(whisker) == pytest.approx(line["macro_f1_mean"])
            assert np.ptp(whisker) == pytest.approx(2 * line["macro_f1_sd"])
            cells = task.scores(line["model"])
            folds = sorted(np.mean([cells[f, s] for s in range(2)]) for f in range(3))
            assert drawn_at(ax, ".", y + 0.27) == pytest.approx(folds)


def test_concentration_has_only_models_with_attention(summary: BenchmarkSummary) -> None:
    fig = concentration_figure(summary)
    labels = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert labels == ["qgmil", r" _under\$x\$"]
    line = next(line for line in summary.lines["a"] if line["model"] == "qgmil")
    assert drawn_at(fig.axes[0], "o", 0) == pytest.approx([line["top_10pct"]])


def test_calibration_has_before_and_after(summary: BenchmarkSummary) -> None:
    ax = calibration_figure(summary).axes[0]
    line = next(line for line in summary.lines["a"] if line["model"] == "qgmil")
    y = [s.model for s in summary.overall.standings].index("qgmil")
    assert drawn_at(ax, "o", y) == pytest.approx([line["ece_calibrated"], line["ece"]])
    hollow = [one for one in ax.lines if one.get_marker() == "o" and one.get_markerfacecolor() == "white"]
    assert [float(one.get_xdata()[0]) for one in hollow] == pytest.approx([line["ece"]])


def test_ranks_stand_where_they_are(summary: BenchmarkSummary) -> None:
    fig = critical_difference_figure(summary.overall)
    said = [t.get_text() for t in texts(fig)]
    assert f"CD = {summary.overall.critical_difference:.2f}" in said
    feet = {round(float(line.get_xdata()[0]), 9) for line in fig.axes[0].lines if len(line.get_xdata()) == 3}
    assert feet == {round(s.average_rank, 9) for s in summary.overall.standings if s.ranked}
    assert any(t.startswith("qgmil  ") for t in said) and not any("majority" in t for t in said)


def test_no_text_lies_on_another(summary: BenchmarkSummary) -> None:
    for fig in (critical_difference_figure(summary.overall), macro_f1_figure(summary), calibration_figure(summary)):
        found = shown_texts(fig)
        assert len(found) > 10
        boxes = [t.get_window_extent() for t in found]
        for i, one in enumerate(boxes):
            for j, other in enumerate(boxes[:i]):
                over_x = min(one.x1, other.x1) - max(one.x0, other.x0)
                over_y = min(one.y1, other.y1) - max(one.y0, other.y0)
                assert over_x < 1 or over_y < 1, (found[i].get_text(), found[j].get_text())


def test_figures_that_are_not_defined_are_not_left_behind(tmp_path: Path) -> None:
    rows = table(scores({"qgmil": [[0.5], [0.7]], "abmil": [[0.4], [0.6]]}))
    (tmp_path / "tables").mkdir()
    for name in NAMES:
        (tmp_path / "tables" / name).write_bytes(b"old")
    written = write_tables(tmp_path, rows)
    assert [p.name for p in written] == ["summary.csv", "results.md", "results.tex", "macro_f1.png"]
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == sorted(p.name for p in written)
    assert (tmp_path / "tables" / "results.md").read_text().count("![") == 1


def test_all_figures_reach_the_disk(tmp_path: Path) -> None:
    models = {"qgmil": 1.2, "abmil": 0.9, "mean": 0.5}
    small = summarise_benchmark(drawn(models, ["a", "b"], folds=2, seeds=1, bags=10, attention={"abmil": 0.4}))
    assert [p.name for p in draw_figures(small, tmp_path)] == list(NAMES)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in NAMES)
    assert macro_f1_figure(summarise_benchmark(table(scores({"abmil": [[None]]})))) is None
