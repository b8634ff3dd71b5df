"""Lines a data set and model, and the comparison over data sets: by hand, and what must not matter."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from benchmark.synthetic_rows import drawn, metrics, predicted, row, scores, table
from qgmil.benchmark.collect import collect
from qgmil.benchmark.summary import summarise_benchmark, task_lines
from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.bootstrap import bootstrap_interval
from qgmil.evaluation.comparison import corrected_resampled_t

# {model: [[macro F1 of seed 0, of seed 1] of each fold]}
VALUES = {
    "qgmil": [[0.9, 0.7], [0.8, 0.8], [0.6, 0.7]],
    "abmil": [[0.7, 0.7], [0.7, 0.5], [0.7, 0.6]],
    "mean": [[0.5, 0.6], [0.5, 0.6], [0.4, 0.5]],
}


def lines_of(rows: list[dict] | pl.DataFrame, **options) -> dict[str, dict]:
    """{model: line} of a table of one data set."""
    [task] = collect(rows if isinstance(rows, pl.DataFrame) else table(rows))
    return {line["model"]: line for line in task_lines(task, **{"resamples": 50, **options})}


def same(one: dict, other: dict, but: tuple[str, ...] = ()) -> None:
    """Two lines are equal to rounding, apart from the columns named."""
    assert one.keys() == other.keys()
    for name in one.keys() - set(but):
        a, b = one[name], other[name]
        close = isinstance(a, float) and b is not None and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
        assert close or a == b, (name, a, b)


def test_means_and_spreads_by_hand() -> None:
    line = lines_of(scores(VALUES))["qgmil"]
    flat = [0.9, 0.7, 0.8, 0.8, 0.6, 0.7]
    assert line["macro_f1_mean"] == pytest.approx(0.75) and line["macro_f1_sd"] == pytest.approx(np.std(flat, ddof=1))
    # per seed over folds: (.9 + .8 + .6) / 3 and (.7 + .8 + .7) / 3
    assert line["macro_f1_seed_sd"] == pytest.approx(np.std([2.3 / 3, 2.2 / 3], ddof=1))
    assert (line["cells"], line["expected_cells"], line["folds"], line["seeds"], line["missing"]) == (6, 6, 3, 2, "")


def test_difference_to_the_best_baseline_by_hand() -> None:
    found = lines_of(scores(VALUES))
    line = found["qgmil"]
    expected = corrected_resampled_t([0.1, 0.2, 0.0], 20 / 80)  # seeds averaged in each fold
    assert line["best_baseline"] == "abmil" and line["difference_cells"] == 6
    assert line["difference"] == pytest.approx(0.1) and line["difference_df"] == 2
    assert line["difference_t"] == pytest.approx(expected.t) and line["difference_p"] == pytest.approx(expected.p)
    assert line["difference_low"] == pytest.approx(expected.low)
    assert found["abmil"]["best_baseline"] == "qgmil" and found["abmil"]["difference"] == pytest.approx(-0.1)
    assert [found[m]["rank"] for m in VALUES] == [1, 2, 3] and line["rank_cells"] == 6


def test_ties_share_a_rank() -> None:
    found = lines_of(scores({**VALUES, "twin": VALUES["abmil"]}))
    assert [found[m]["rank"] for m in ("qgmil", "abmil", "twin", "mean")] == [1, 2.5, 2.5, 4]
    assert found["qgmil"]["best_baseline"] == "abmil"  # of equal ones the first by name
    equal = lines_of(scores({"abmil": VALUES["abmil"], "twin": VALUES["abmil"]}))["twin"]
    assert equal["difference"] == 0 and equal["difference_p"] is None
    assert "no variance" in equal["difference_undefined"]


def test_floors_and_the_own_family_are_no_baseline() -> None:
    good, floors = [[0.99, 0.99]] * 3, {"majority": [[0.3, 0.3]] * 3, "bag_size": [[1.0, 1.0]] * 3}
    found = lines_of(scores({**VALUES, "qgmil_b": good, **floors}))
    assert found["qgmil"]["best_baseline"] == "abmil" and found["abmil"]["best_baseline"] == "qgmil_b"
    assert found["majority"]["best_baseline"] == "qgmil_b"


def test_the_linear_probe_can_be_the_best_baseline() -> None:
    good = [[0.99, 0.99]] * 3
    found = lines_of(scores({**VALUES, "qgmil_b": good, "linear_probe": good, "majority": [[0.3, 0.3]] * 3}))
    assert found["qgmil"]["best_baseline"] == found["qgmil_b"]["best_baseline"] == "linear_probe"
    assert found["abmil"]["best_baseline"] == "linear_probe"  # as good as qgmil_b, and before it by name
    ours = np.mean([np.mean(fold) for fold in VALUES["qgmil"]])
    assert found["qgmil"]["difference"] == pytest.approx(ours - 0.99) and found["qgmil_b"]["difference"] == 0
    assert found["linear_probe"]["best_baseline"] == "qgmil_b" and found["linear_probe"]["control"]
    assert found["linear_probe"]["rank"] == 1.5 and found["qgmil_b"]["rank"] == 1.5
    assert found["majority"]["rank"] is None and found["majority"]["rank_models"] == 5
    assert list(found)[-2:] == ["linear_probe", "majority"]  # controls last
    alone = lines_of(scores({"qgmil": good, "qgmil_b": VALUES["qgmil"]}))
    assert alone["qgmil"]["best_baseline"] == "qgmil_b"  # nothing else to compare with


def test_no_other_model_no_test() -> None:
    line = lines_of(scores({"qgmil": VALUES["qgmil"]}))["qgmil"]
    assert line["best_baseline"] is line["difference"] is line["difference_p"] is None
    assert "no other model" in line["difference_undefined"] and line["rank"] == 1


def test_an_incomplete_model_changes_no_other() -> None:
    whole = lines_of(scores(VALUES))
    late = [r for r in scores({"late": [[0.99, 0.99]] * 3}) if (r["fold"], r["seed"]) in {(0, 0), (0, 1), (1, 1)}]
    failed = row("late", 2, 0, None, status="failed", error="out of memory; at epoch 3")
    found = lines_of([*scores(VALUES), *late, failed])
    for model, line in whole.items():
        same(line, found[model])
    line = found["late"]
    assert line["rank"] is None and (line["cells"], line["expected_cells"]) == (3, 6)
    assert line["missing"] == "fold 1 seed 0; fold 2 seed 0 failed: out of memory, at epoch 3; fold 2 seed 1"
    # compared on its own three cells: abmil has .7 .7 .5 there, qgmil .9 .7 .8
    assert line["best_baseline"] == "qgmil" and line["difference_cells"] == 3
    assert line["difference"] == pytest.approx(np.mean([(0.09 + 0.29) / 2, 0.19]))
    # its seed sd is over the fold that both seeds have
    assert line["macro_f1_seed_sd"] == 0


def test_a_half_done_benchmark_ranks_on_shared_cells() -> None:
    rows = [r for r in scores(VALUES) if r["fold"] < 2 or r["model"] == "mean"]
    rows = [r for r in rows if not (r["model"] == "mean" and r["fold"] == 0)]
    found = lines_of(rows)  # the three models share fold 1: .8 .8, .7 .5, .5 .6
    assert [found[m]["rank"] for m in VALUES] == [1, 2, 3] and found["mean"]["rank_cells"] == 2
    assert lines_of([*scores(VALUES), row("none", 0, 0, status="failed", error="x")])["none"]["rank"] is None


def test_undefined_macro_f1_counts_for_none() -> None:
    values = {m: [list(v) for v in folds] for m, folds in VALUES.items()}
    for folds in values.values():
        folds[0] = [None, None]
    found = lines_of(scores(values))
    line = found["qgmil"]
    assert line["macro_f1_undefined"] == 2 and line["macro_f1_mean"] == pytest.approx(0.725)
    assert line["rank_cells"] == 4 and line["rank"] == 1 and line["difference_df"] == 1
    assert line["macro_f1_seed_sd"] == pytest.approx(np.std([0.7, 0.75], ddof=1))
    one_fold = lines_of(scores({m: v[1:2] for m, v in values.items()}))["qgmil"]
    assert one_fold["difference_p"] is None and "1 fold only" in one_fold["difference_undefined"]


def test_order_of_rows_does_not_matter() -> None:
    rows = drawn({"qgmil": 1.2, "abmil": 0.9, "linear_probe": 0.8}, ["a", "b", "c"], folds=3, seeds=2, bags=16)
    one = summarise_benchmark(rows, resamples=50)
    other = summarise_benchmark(rows.sample(fraction=1, shuffle=True, seed=3), resamples=50)
    assert one.overall == other.overall and list(one.lines) == list(other.lines) == ["a", "b", "c"]
    for name in one.lines:
        for a, b in zip(one.lines[name], other.lines[name], strict=True):
            same(a, b)


def cells_with_predictions() -> list[dict]:
    rng = np.random.default_rng(5)
    return [
        predicted("abmil", fold, seed, [0, 1, 1, 0, 1, 0], rng.uniform(0.02, 0.98, 6), top_10pct=0.2 + 0.1 * seed)
        for fold in range(3)
        for seed in range(2)
    ]


def test_pooled_figures_are_those_of_all_folds_together() -> None:
    rows = cells_with_predictions()
    line = lines_of(rows, resamples=300)["abmil"]
    per_seed = []
    for seed in range(2):
        mine = [r for r in rows if r["seed"] == seed]
        p = np.concatenate([r["test_probabilities"] for r in mine])
        y = np.concatenate([r["test_labels"] for r in mine])
        patients = [patient for r in mine for patient in r["test_patients"]]
        interval = bootstrap_interval(p, y, patients, ["a", "b"], n=300)["macro_f1"]
        sample = metrics(p.tolist(), y)
        hits = (p.argmax(axis=1) == y).mean()  # 18 bags make one bin
        per_seed.append({**sample, "ece": abs(hits - p.max(axis=1).mean()), "low": interval.low, "high": interval.high})
    for name, key in (
        *(("pooled_macro_f1", "macro_f1"), ("pooled_auroc", "auroc"), ("ece", "ece"), ("brier", "brier")),
        *(("nll", "nll"), ("nll_calibrated", "nll"), ("macro_f1_low", "low"), ("macro_f1_high", "high")),
    ):
        assert line[name] == pytest.approx(np.mean([s[key] for s in per_seed])), name
    assert (line["pooled_seeds"], line["pooled_bags"], line["not_pooled"]) == (2, 18, "")
    assert line["top_10pct"] == pytest.approx(0.25) and line["top_1pct"] is None


def test_seed_distance_by_hand() -> None:
    rows = [
        predicted("abmil", 0, 0, [0, 1], [0.2, 0.9]),
        predicted("abmil", 0, 1, [1, 0], [0.6, 0.3], bags=["f0b1", "f0b0"]),  # the same bags in another order
    ]
    assert lines_of(rows)["abmil"]["seed_distance"] == pytest.approx((0.3 + 0.1) / 2)
    assert lines_of(rows[:1])["abmil"]["seed_distance"] is None
    same_twice = [predicted("abmil", 0, s, [0, 1], [0.2, 0.9]) for s in range(3)]
    assert lines_of(same_twice)["abmil"]["seed_distance"] == 0


def test_seed_distance_follows_a_bag_into_its_other_fold() -> None:
    rows = [
        predicted("abmil", 0, 0, [0, 1], [0.2, 0.9], bags=["x", "y"]),
        predicted("abmil", 1, 0, [0, 1], [0.4, 0.7], bags=["z", "w"]),
        predicted("abmil", 0, 1, [0, 1], [0.2, 0.7], bags=["z", "y"]),
        predicted("abmil", 1, 1, [0, 1], [0.3, 0.8], bags=["x", "w"]),
    ]
    assert lines_of(rows)["abmil"]["seed_distance"] == pytest.approx((0.1 + 0.2 + 0.2 + 0.1) / 4)


def test_draws_of_a_data_set_are_pooled_as_they_are() -> None:
    """Every fold a draw: the same names and patients again, with other bags behind them."""
    rows = [
        predicted("abmil", fold, 0, [0, 1, 0, 1], [0.1 + fold / 5, 0.8, 0.3, 0.6], bags=list("wxyz"))
        for fold in range(3)
    ]
    line = lines_of(rows)["abmil"]
    assert line["pooled_bags"] == 12 and line["not_pooled"] == "" and line["macro_f1_low"] is not None
    assert line["brier"] == pytest.approx(np.mean([2 * v**2 for f in range(3) for v in (0.1 + f / 5, 0.2, 0.3, 0.4)]))


def test_seeds_with_other_test_bags_are_repeats() -> None:
    def cell(model: str, fold: int, seed: int, value: float) -> dict:
        bags = [f"b{(i + 2 * fold + seed) % 4}" for i in range(2)]
        return predicted(model, fold, seed, [0, 1], [0.2, 0.9], bags=bags, macro_f1=value, n_train=8)

    values = {"abmil": [[0.6, 0.5], [0.7, 0.3]], "mean": [[0.5, 0.6], [0.4, 0.4]]}
    rows = [
        cell(m, f, s, v) for m, folds in values.items() for f, seeds in enumerate(folds) for s, v in enumerate(seeds)
    ]
    line = lines_of(rows)["abmil"]
    expected = corrected_resampled_t([0.1, -0.1, 0.3, -0.1], 2 / 8)
    assert line["difference_df"] == 3 and line["difference_p"] == pytest.approx(expected.p)


def test_pooling_leaves_out_seeds_that_lack_a_fold() -> None:
    rows = cells_with_predictions()
    line = lines_of([r for r in rows if (r["fold"], r["seed"]) != (2, 1)])["abmil"]
    first = lines_of([r for r in rows if r["seed"] == 0])["abmil"]
    assert (
        line["pooled_seeds"] == 1 and line["nll"] == pytest.approx(first["nll"]) and "fold 2 seed 1" in line["missing"]
    )


def test_without_predictions_pooled_figures_are_undefined() -> None:
    rows = table(cells_with_predictions())
    scalars = rows.select([c for c in rows.columns if not isinstance(rows[c].dtype, pl.List)])
    line = lines_of(scalars)["abmil"]
    assert line["ece"] is line["macro_f1_low"] is line["seed_distance"] is None
    assert "results.parquet" in line["not_pooled"] and line["macro_f1_mean"] is not None
    broken = cells_with_predictions()
    broken[0]["test_probabilities"] = [[0.9, 0.9]] * 6
    assert "sum to 1.8" in lines_of(broken)["abmil"]["not_pooled"]


def test_costs_are_medians() -> None:
    rows = [
        row("abmil", f, 0, 0.5, seconds=s, peak_mb=m, parameters=7)
        for f, (s, m) in enumerate(((1, 5), (9, 6), (2, 90)))
    ]
    line = lines_of(rows)["abmil"]
    assert (line["seconds"], line["peak_mb"], line["parameters"]) == (2, 6, 7)


def over(values: dict[str, list[float]], datasets: str = "abcdef") -> pl.DataFrame:
    """{model: [macro F1 on each data set]}, two folds around each."""
    return table([
        row(model, fold, 0, value + step, dataset=dataset)
        for model, per_set in values.items()
        for dataset, value in zip(datasets, per_set, strict=False)
        for fold, step in enumerate((-0.01, 0.01))
    ])  # fmt: skip


OVER = {
    "qgmil": [0.9, 0.8, 0.7, 0.6, 0.9],
    "abmil": [0.8, 0.7, 0.6, 0.65, 0.7],
    "mean": [0.7, 0.7, 0.5, 0.4, 0.3],
}


def test_over_data_sets_by_hand() -> None:
    found = summarise_benchmark(over(OVER)).overall
    by_model = {s.model: s for s in found.standings}
    assert found.reference == "qgmil" and found.tasks == list("abcde") and found.left_out == {}
    # ranks of qgmil 1 1 1 2 1, abmil 2 2.5 2 1 2, mean 3 2.5 3 3 3
    assert [by_model[m].average_rank for m in OVER] == pytest.approx([1.2, 1.9, 2.9])
    assert [by_model[m].wins for m in OVER] == [4, 1, 0]
    assert by_model["qgmil"].macro_f1 == pytest.approx(0.78) and by_model["qgmil"].wilcoxon is None
    # abmil - qgmil: -.1 -.1 -.1 +.05 -.2, ranks 3 3 3 1 5: sums 1 and 14
    test = by_model["abmil"].wilcoxon
    assert (test.positive, test.negative, test.n) == (1, 14, 5) and test.difference == pytest.approx(-0.09)
    assert test.p == pytest.approx(4 / 32)  # 0 or 1 of one sign: {} and {1}, twice
    assert by_model["mean"].wilcoxon.p == pytest.approx(2 / 32)
    assert by_model["mean"].p_holm == pytest.approx(2 * 2 / 32) and by_model["abmil"].p_holm == pytest.approx(4 / 32)
    assert found.friedman.n == 5 and found.friedman.average_ranks == pytest.approx((1.2, 1.9, 2.9))
    assert found.critical_difference == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 5)), abs=1e-3)


def test_incomplete_data_sets_are_left_out_and_named() -> None:
    rows = over(OVER).filter(~((pl.col("model") == "mean") & (pl.col("dataset") == "b") & (pl.col("fold") == 1)))
    rows = pl.concat([rows, over({"qgmil": [0.5], "abmil": [0.4]}, "z")])
    found = summarise_benchmark(rows).overall
    assert found.tasks == list("acde")
    assert found.left_out == {"b": "mean has 1 of 2 cells", "z": "mean has 0 of 2 cells"}
    by_model = {s.model: s for s in found.standings}
    assert by_model["abmil"].wilcoxon.n == 6 and by_model["mean"].wilcoxon.n == 5
    nothing = summarise_benchmark(over({"qgmil": [0.5], "abmil": [0.4]}).head(3)).overall
    assert (
        nothing.friedman is None and nothing.standings[0].average_rank is None and nothing.critical_difference is None
    )


def test_floors_are_neither_ranked_nor_tested() -> None:
    plain = summarise_benchmark(over(OVER)).overall
    found = summarise_benchmark(over({**OVER, "majority": [0.3] * 5, "bag_size": [0.95] * 4})).overall
    assert found.standings[:3] == plain.standings and found.friedman == plain.friedman
    assert [(s.model, s.ranked, s.macro_f1) for s in found.standings[3:]] == [
        ("bag_size", False, None),  # it lacks a data set
        ("majority", False, pytest.approx(0.3)),
    ]


def test_reference_is_chosen_and_checked() -> None:
    assert summarise_benchmark(over(OVER), reference="mean").overall.reference == "mean"
    assert summarise_benchmark(over({k: OVER[k] for k in ("mean", "abmil")})).overall.reference == "abmil"
    with pytest.raises(ConfigError, match=r"reference 'abmil_x' is no model.*abmil, mean, qgmil"):
        summarise_benchmark(over(OVER), reference="abmil_x")


def test_feature_sets_are_named_where_there_are_several() -> None:
    rows = [row("abmil", 0, 0, 0.5, features=f, dataset=d) for d, f in (("a", "x"), ("a", "y"), ("b", "x"))]
    assert [task.name for task in collect(table(rows))] == ["a (x)", "a (y)", "b"]


def test_tables_that_cannot_be_read() -> None:
    good = scores(VALUES)
    with pytest.raises(MetricError, match="no cell has run"):
        collect(table([]))
    with pytest.raises(MetricError, match="lacks the column 'macro_f1'"):
        collect(table(good).drop("macro_f1"))
    with pytest.raises(MetricError, match="d, qgmil, fold 0, seed 0 twice"):
        collect(table([*good, good[0]]))
    with pytest.raises(MetricError, match="model 'qgmil' is 'qgmil' and 'abmil'"):
        collect(table([good[0], {**good[1], "aggregator": "abmil"}]))
    with pytest.raises(MetricError, match="status is 'running'"):
        collect(table([{**good[0], "status": "running"}]))
    with pytest.raises(MetricError, match="fold 0, seed 0: 'abmil' and 'mean' were tested on different bags"):
        collect(
            table(
                [
                    predicted(m, 0, 0, [0, 1], [0.1, 0.9], bags=b)
                    for m, b in (("abmil", ["x", "y"]), ("mean", ["x", "z"]))
                ]
            )
        )
