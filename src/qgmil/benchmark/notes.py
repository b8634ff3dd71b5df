"""What stands beside the figures: what they are of, what was tested, what is missing."""

from __future__ import annotations

from qgmil.benchmark.collect import Task
from qgmil.benchmark.overall import Overall
from qgmil.benchmark.summary import BenchmarkSummary, Line
from qgmil.evaluation.text import number, one_line, p_value, shorten

LISTED = 8  # of what is missing; the CSV names all


def plural(n: int, word: str) -> str:
    """``1 fold``, ``2 folds``."""
    return f"{n} {word}" + ("" if n == 1 else "s")


def grid_text(task: Task) -> str:
    """``5 folds × 3 seeds (15 cells)``."""
    folds, seeds = len({f for f, _ in task.grid}), len({s for _, s in task.grid})
    return f"{plural(folds, 'fold')} × {plural(seeds, 'seed')} ({plural(len(task.grid), 'cell')})"


def task_caption(task: Task, lines: list[Line]) -> str:
    """What the figures of a data set's table are."""
    unit = "folds, the seeds averaged in each fold" if task.same_splits else "folds and seeds, each seed its own splits"
    text = (
        f"Mean ± sd over {grid_text(task)}. 95 %: bootstrap over patients of the macro F1 of pooled out-of-fold "
        "predictions, limits averaged over seeds. Difference: to the best baseline, the other model with the highest "
        "mean macro F1 on the same cells (not bag size or majority class; for a QG-MIL no other QG-MIL); p: corrected "
        f"resampled t-test (Nadeau and Bengio 2003) over {unit}; not corrected for the number of models. "
        "Seed sd: over seeds of the mean over folds. ECE and NLL: pooled, mean over seeds."
    )
    ranked = lines[0]["rank_models"]
    if ranked and lines[0]["rank_cells"] < len(task.grid):
        text += f" Ranks: {plural(ranked, 'model')} on {plural(lines[0]['rank_cells'], 'cell')} that all share."
    return text


def task_notes(lines: list[Line]) -> list[str]:
    """Missing cells and undefined figures; models with the same note share it."""
    notes: dict[str, list[str]] = {}
    for line in lines:
        for note in _notes(line):
            notes.setdefault(note, []).append(one_line(line["model"]))
    return [f"{'all models' if len(names) == len(lines) else ', '.join(names)}: {n}" for n, names in notes.items()]


def _notes(line: Line) -> list[str]:
    notes = []
    if line["missing"]:
        holes = line["missing"].split("; ")
        more = f"; and {len(holes) - LISTED} more" if len(holes) > LISTED else ""
        cells = f"{line['cells']} of {line['expected_cells']} cells"
        notes.append(f"{cells}; missing: {'; '.join(shorten(h, 200) for h in holes[:LISTED])}{more}")
    if line["macro_f1_undefined"]:
        notes.append(f"macro F1 is undefined in {plural(line['macro_f1_undefined'], 'cell')}, left out")
    if line["not_pooled"] and line["cells"]:
        notes.append(f"no pooled figures: {shorten(line['not_pooled'], 200)}")
    elif line["pooled_seeds"] and line["pooled_seeds"] < line["seeds"]:
        notes.append(f"pooled over {plural(line['pooled_seeds'], 'seed')} of {line['seeds']}")
    if line["difference_undefined"] and line["cells"]:
        notes.append(f"test undefined: {line['difference_undefined']}")
    return notes


def baseline_note(lines: list[Line]) -> str:
    """Which model the differences are to."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if line["best_baseline"]:
            found.setdefault(one_line(line["best_baseline"]), []).append(one_line(line["model"]))
    if not found:
        return ""
    most = max(found, key=lambda name: (len(found[name]), name))
    others = [f"{name} (for {', '.join(models)})" for name, models in found.items() if name != most]
    return f"Best baseline: {', '.join([most, *others])}."


def friedman_text(overall: Overall) -> str:
    """The outcome of Friedman's test in a sentence."""
    test, k = overall.friedman, sum(s.ranked for s in overall.standings)
    if test is None:
        return "Friedman test: undefined, there is no data set on which all ranked models are complete."
    if test.chi2 is None:
        return f"Friedman test: undefined ({test.undefined})."
    text = f"Friedman test over {plural(test.n, 'data set')}, {k} models: χ² = {test.chi2:.2f}, p {_is(test.chi2_p)}"
    if test.f is None:
        text += f"; Iman-Davenport: {test.undefined}."
    else:
        text += f"; Iman-Davenport F({k - 1}, {(k - 1) * (test.n - 1)}) = {test.f:.2f}, p {_is(test.f_p)}."
    if overall.critical_difference is not None:
        text += f" Nemenyi critical difference at 0.05: {overall.critical_difference:.2f} ranks."
    p = test.chi2_p if test.f is None else test.f_p
    if p is not None and p >= 0.05:
        text += " The models' ranks are not shown to differ, so that pairs are not to be read off."
    return text


def _is(p: float | None) -> str:
    return f"= {p_value(p)}" if p is not None and p >= 0.001 else "< 0.001"


def overall_caption(summary: BenchmarkSummary) -> str:
    """What the figures of the table over data sets are."""
    overall = summary.overall
    text = (
        f"Average rank, wins (first, or tied for it) and macro F1 over {plural(len(overall.tasks), 'data set')} on "
        "which every ranked model finished every cell; bag size and majority class are not ranked."
    )
    if overall.reference is not None:
        tests = [s.wilcoxon for s in overall.standings if s.wilcoxon is not None and s.wilcoxon.least_p is not None]
        least = min((t.least_p for t in tests if t.least_p is not None), default=None)
        text += (
            f" Difference: mean macro F1 minus that of {one_line(overall.reference)} on shared cells; p: Wilcoxon "
            "signed-rank over data sets (zeros as Pratt 1959), beside it with Holm's correction"
            + (f"; no p below {number(least, 4)} is possible with so few data sets" if least and least > 0.001 else "")
            + "."
        )
    if len(summary.tasks) > 1:  # a table does not tell which of them share their data
        text += (
            " Data sets are taken as independent, which those from the same data (draws, feature sets, few-patient "
            "versions) are not."
        )
    return text


def left_out_notes(overall: Overall) -> list[str]:
    """Data sets that the ranks leave out, and why."""
    return [f"not ranked over: {one_line(name)}: {one_line(why)}" for name, why in overall.left_out.items()]
