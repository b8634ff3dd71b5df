"""Ablations: every variant moves one factor, and the table says what the cells say."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.synthetic_rows import row, table
from qgmil.benchmark.ablate import FACTORS, Variant, changes, models_section, resolved, variants
from qgmil.benchmark.ablation_table import ablation_lines, markdown_page, over_tasks, print_ablation, write_ablation
from qgmil.benchmark.spec import MODEL_NAME, BenchmarkSpec
from qgmil.errors import ConfigError
from qgmil.evaluation.comparison import corrected_resampled_t, holm
from qgmil.files import read_csv
from qgmil.models.registry import create_model

#: The options that a factor may move.
OPTIONS = {
    "norm": {"norm", "qk_norm"},
    "qk_norm": {"qk_norm"},
    "gate": {"gate"},
    "mlp": {"mlp"},
    "depth": {"num_layers"},
    "heads": {"num_heads", "head_dim", "num_kv_heads"},
    "pooling": {"pooling"},
}
SMALL = {"width": 32, "num_heads": 4, "ffn_dim": 64}


def parameters(variant: Variant) -> int:
    with torch.device("meta"):
        return create_model(variant.model, in_dim=256, num_classes=2, **variant.options).num_parameters()


@pytest.fixture(scope="module")
def plan() -> tuple[Variant, ...]:
    return variants()


@pytest.mark.parametrize("base", ["qgmil", "qgmil_elementwise", "qgmil_minimal", "qgmil_light", "qgmil_layernorm"])
@pytest.mark.parametrize("options", [{}, {"width": 64, "num_heads": 2, "ffn_dim": 128}, {"mlp": "plain"}])
def test_each_variant_moves_its_factor_and_nothing_else(base: str, options: dict[str, Any]) -> None:
    plan = variants(base, options)
    by_name = {variant.name: variant for variant in plan}
    assert len(by_name) == len(plan)
    for variant in plan:
        if variant.factor in OPTIONS:
            moved = changes(variant, by_name[str(variant.reference)])
            assert variant.reference == base
            assert moved
            assert set(moved) <= OPTIONS[variant.factor]
        if variant.matched:
            wanted = parameters(by_name[str(variant.reference)])
            assert abs(parameters(variant) / wanted - 1) < 0.01, variant.name
        assert MODEL_NAME.fullmatch(variant.name)


def test_what_the_variants_of_the_paper_are(plan: tuple[Variant, ...]) -> None:
    made = {variant.name: variant for variant in plan}
    base = made["qgmil"]
    found = {
        name: {k: now for k, (_, now) in changes(v, base).items()} for name, v in made.items() if v.factor != "base"
    }
    assert found["norm=layer"] == {"norm": "layer"}
    assert found["norm=layer+qk"] == {"norm": "layer", "qk_norm": "layer"}
    assert found["qk_norm=none"] == {"qk_norm": "none"}
    assert (found["gate=none"], found["gate=elementwise"]) == ({"gate": "none"}, {"gate": "elementwise"})
    assert found["mlp=plain"] == {"mlp": "plain"}
    assert (found["depth=2"], found["depth=4"]) == ({"num_layers": 2}, {"num_layers": 4})
    assert found["heads=16"] == {"num_heads": 16, "num_kv_heads": 16, "head_dim": 32}
    assert {n.split("=")[1] for n in found if n.startswith("heads")} == {"1", "4", "16"}
    assert all(abs(parameters(made[f"heads={n}"]) / parameters(base) - 1) < 0.01 for n in (1, 4, 16))
    assert {n.split("=")[1] for n in found if n.startswith("pooling")} == {"mean", "max", "cls"}
    assert found["plain"] == {"norm": "layer", "qk_norm": "none", "gate": "none", "mlp": "plain", "activation": "gelu"}


def test_each_component_alone_moves_one_thing_on_the_plain_transformer(plan: tuple[Variant, ...]) -> None:
    made = {variant.name: variant for variant in plan}
    moved = {
        name: changes(made[f"plain+{name}"], made["plain"]) for name in ("rms", "qk_norm", "gate", "swiglu", "cls")
    }
    assert moved == {
        "rms": {"norm": ("layer", "rms")},
        "qk_norm": {"qk_norm": ("none", "rms")},
        "gate": {"gate": ("none", "headwise")},
        "swiglu": {"mlp": ("plain", "swiglu"), "activation": ("gelu", "silu")},
        "cls": {"pooling": ("attention", "cls")},
    }
    assert all(made[f"plain+{name}"].reference == "plain" for name in moved)
    assert parameters(made["plain+swiglu"]) == parameters(made["plain"])
    assert parameters(made["mlp=plain"]) == parameters(made["qgmil"])


def test_presets_are_as_released_and_what_is_the_same_model_is_trained_once(plan: tuple[Variant, ...]) -> None:
    made = {variant.name: variant for variant in plan}
    same = {name: v.same_as for name, v in made.items() if v.factor == "presets"}
    assert same == {
        "qgmil_elementwise": "gate=elementwise",
        "qgmil_no_gate": "gate=none",
        "qgmil_layernorm": None,
        "qgmil_no_qknorm": "qk_norm=none",
        "qgmil_minimal": "plain+swiglu",
        "qgmil_deep": "depth=4",
        "qgmil_light": None,
    }
    light = made["qgmil_light"].resolved
    assert (light["width"], light["num_heads"], light["head_dim"]) == (256, 4, 128)
    section = models_section(plan)
    assert (
        len(section)
        == sum(v.same_as is None for v in plan)
        == len({repr(sorted(v.resolved.items(), key=str)) for v in plan})
    )
    small = {v.name: v for v in variants("qgmil", {"width": 64, "num_heads": 2, "ffn_dim": 128})}
    assert small["qgmil_deep"].resolved["width"] == 64
    assert small["qgmil_light"].options == {"ffn_dim": 128}
    assert "keeps its own num_heads, width" in small["qgmil_light"].moved


def test_resolved_options_are_those_of_the_model_that_is_built(plan: tuple[Variant, ...]) -> None:
    for variant in (*plan, *variants("qgmil_light", {"num_layers": 2})):
        with torch.device("meta"):
            model: Any = create_model(variant.model, in_dim=8, num_classes=2, **variant.options)
        options, attention = variant.resolved, model.blocks[0].self_attn
        assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == tuple(
            options[name] for name in ("num_heads", "num_kv_heads", "head_dim")
        )
        kind = {"rms": "RMSNorm", "layer": "LayerNorm", "none": "Identity"}
        assert type(attention.q_norm).__name__ == kind[options["qk_norm"]]
        assert type(model.final_norm).__name__ == kind[options["norm"]]
        assert (attention.gate, model.pooling_kind) == (options["gate"], options["pooling"])
        assert (len(model.blocks), model.width) == (options["num_layers"], options["width"])
    assert resolved("qgmil", {"norm": "layer"})["qk_norm"] == "layer"  # follows, unless it is given


def test_some_factors_only_and_values_that_do_not_fit() -> None:
    some = variants("qgmil", SMALL, ["gate", "heads"])
    assert [v.name for v in some] == ["qgmil", "gate=elementwise", "gate=none", "heads=1", "heads=8", "heads=16"]
    grouped = variants("qgmil", {**SMALL, "num_kv_heads": 4}, ["heads"])
    assert [v.name for v in grouped] == ["qgmil", "heads=8", "heads=16"]
    wide = variants("qgmil", {"width": 24, "num_heads": 3}, ["heads"])
    assert [v.name for v in wide] == ["qgmil", "heads=1", "heads=4", "heads=8"]
    presets = {v.name: v.same_as for v in variants("qgmil", only=["presets"])}
    assert presets["qgmil_deep"] is None  # there is no depth=4 to stand for it
    for arguments, said in (
        (("abmil",), "base='abmil' is no QG-MIL"),
        (("qgmil", {"widht": 3}), "no option 'widht': did you mean width"),
        (("qgmil", {}, ["gates"]), r"no factor 'gates': did you mean gate\? there are norm, qk_norm"),
        (("qgmil", {"width": 30}), "width=30 is not a multiple of num_heads=8"),
    ):
        with pytest.raises(ConfigError, match=said):
            variants(*arguments)  # type: ignore[arg-type]


def test_the_variants_are_a_valid_benchmark(plan: tuple[Variant, ...]) -> None:
    values = {"datasets": {"w": {"named": "witness"}}, "models": models_section(plan), "controls": False}
    spec = BenchmarkSpec.build(values)
    assert list(spec.all_models()) == [v.name for v in plan if v.same_as is None]


# --- the table

F1 = {
    "qgmil": [[0.80, 0.70], [0.70, 0.75], [0.90, 0.80]],
    "gate=none": [[0.70, 0.72], [0.65, 0.70], [0.80, 0.82]],
    "gate=elementwise": [[0.85, 0.75], [0.75, 0.80], [0.95, 0.85]],
}
PLAN = variants("qgmil", SMALL, ["gate"])
PLAN = (*PLAN, Variant("qgmil_no_gate", "presets", "a preset", "qgmil_no_gate", {}, "qgmil", same_as="gate=none"))


def cells(dataset: str = "d", drop: tuple[str, int, int] | None = None) -> list[dict[str, Any]]:
    made = []
    for model, fold, seed in product(F1, range(3), range(2)):
        value, number = F1[model][fold][seed], list(F1).index(model)
        if (model, fold, seed) == drop:
            continue
        figures = {"top_10pct": 0.2 + 0.1 * number + 0.01 * fold, "entropy": 0.9 - 0.1 * number, "ece": 0.05 * number}
        made.append(
            row(model, fold, seed, value, dataset=dataset, aggregator="qgmil", parameters=1000 + 10 * number,
                nll=1.0 + number * (0.1 + 0.1 * seed), **figures)
        )  # fmt: skip
    return made


def test_the_lines_say_what_the_cells_say() -> None:
    lines = {line["variant"]: line for line in ablation_lines(table(cells()), PLAN)}
    base, none = np.array(F1["qgmil"]), np.array(F1["gate=none"])
    line = lines["gate=none"]
    assert line["difference"] == pytest.approx((none - base).mean())
    wanted = corrected_resampled_t((none - base).mean(axis=1), 20 / 80)
    assert (line["p"], line["difference_low"], line["difference_high"]) == pytest.approx(
        (wanted.p, wanted.low, wanted.high)
    )
    assert line["delta_sd"] == pytest.approx(none.std(ddof=1) - base.std(ddof=1))
    seeds = none.mean(axis=0).std(ddof=1) - base.mean(axis=0).std(ddof=1)
    assert line["delta_seed_sd"] == pytest.approx(seeds)
    assert line["macro_f1"] == pytest.approx(none.mean())
    deltas = [line[f"delta_{name}"] for name in ("top_10pct", "entropy", "ece", "nll", "parameters")]
    assert deltas == pytest.approx([0.1, -0.1, 0.05, 0.15, 10])
    assert lines["qgmil"]["difference"] is None
    assert lines["qgmil"]["undefined"] == ""
    corrected = holm([line["p"], lines["gate=elementwise"]["p"]])
    assert line["p_holm"] == pytest.approx(corrected[0])
    twin = lines["qgmil_no_gate"]
    assert (twin["same_as"], twin["difference"], twin["p_holm"]) == ("gate=none", line["difference"], line["p_holm"])
    constant = lines["gate=elementwise"]  # 0.05 higher in every cell: no variance, no test
    assert constant["difference"] == pytest.approx(0.05)
    assert (constant["p"], "no variance" in constant["undefined"]) == (None, True)


def test_only_shared_cells_are_compared() -> None:
    lines = {line["variant"]: line for line in ablation_lines(table(cells(drop=("gate=none", 0, 0))), PLAN)}
    base, none = np.array(F1["qgmil"]), np.array(F1["gate=none"])
    differences = none - base
    by_fold = [differences[0, 1], differences[1].mean(), differences[2].mean()]
    line = lines["gate=none"]
    assert (line["cells"], line["expected_cells"], line["shared_cells"]) == (5, 6, 5)
    assert line["difference"] == pytest.approx(np.mean(by_fold))
    assert line["delta_nll"] == pytest.approx((3 * 0.2 + 2 * 0.1) / 5)


def test_a_variant_without_cells_or_attention_has_no_figures() -> None:
    rows = [{**r, "top_10pct": None} if r["model"] == "gate=none" else r for r in cells()]
    rows = [r for r in rows if r["model"] != "gate=elementwise"]
    lines = {line["variant"]: line for line in ablation_lines(table(rows), PLAN)}
    assert lines["gate=none"]["delta_top_10pct"] is None
    missing = lines["gate=elementwise"]
    assert (missing["cells"], missing["difference"], missing["p_holm"]) == (0, None, None)
    assert missing["undefined"] == "no cell that both finished"
    assert "0 of 6 cells are finished" in markdown_page(list(lines.values()))


def test_means_over_data_sets() -> None:
    worse = [{**r, "macro_f1": r["macro_f1"] - 0.3 * (r["model"] == "gate=elementwise")} for r in cells("e")]
    lines = ablation_lines(table([*cells("d"), *worse]), PLAN)
    found = {line["variant"]: line for line in over_tasks(lines)}
    assert found["gate=elementwise"]["difference"] == pytest.approx((0.05 - 0.25) / 2)
    assert (found["gate=elementwise"]["higher"], found["gate=elementwise"]["data_sets"]) == (1, 2)
    assert found["gate=none"]["delta_top_10pct"] == pytest.approx(0.1)


def test_what_is_written_and_printed(tmp_path: Path) -> None:
    from rich.console import Console

    lines = ablation_lines(table([*cells("d"), *cells("e")]), PLAN)
    paths = write_ablation(tmp_path, lines)
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [f"tables/ablation.{e}" for e in ("csv", "md", "tex")]
    rows = read_csv(paths[0])
    assert len(rows) == 8
    assert [float(r["difference"]) for r in rows if r["variant"] == "gate=none"] == pytest.approx(
        [-0.0433333] * 2, abs=1e-6
    )
    page = paths[1].read_text()
    deltas = " | ".join(("-0.011", "-0.014", "+0.100", "-0.100", "+0.050", "+0.150"))
    assert f"| gate=none | 0.732±0.065 | -0.043 | -0.062 to -0.024 | 0.010 | {deltas} | 1.01 k |" in page
    assert "## Over data sets" in page
    latex = paths[2].read_text()
    assert latex.count(r" \\") == 1 + 2 * 5
    assert latex.count("{") == latex.count("}")
    assert r"gate=none & 0.732$\pm$0.065 & $-$0.043" in latex
    console = Console(record=True, width=160)
    print_ablation(lines, console)
    said = console.export_text()
    assert "no gate instead of a gate for each head" in said
    assert "(the same model as gate=none)" in said
    assert len({len(row.split("|")) for row in page.splitlines() if row.startswith("| gate=none | 0")}) == 1


def test_every_factor_makes_variants() -> None:
    for factor in FACTORS:
        made = variants("qgmil", SMALL, [factor])
        assert len(made) > 1
        assert {v.factor for v in made[1:]} == {factor}
