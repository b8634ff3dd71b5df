"""`qgmil verify` and `qgmil ablate` as they are typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmark.small_benchmark import InProcess
from cohort import make_cohort
from commandline import run
from qgmil.bags.bag import PackedBags
from qgmil.benchmark import grid
from qgmil.benchmark import verify as module
from qgmil.files import read_csv
from qgmil.models import registry
from qgmil.models.output import BagOutput
from qgmil.models.qgmil import QGMIL
from qgmil.models.simple import MeanPool
from qgmil.training.config import read_yaml

TINY = [
    *("--options.width", 16, "--options.num-heads", 2, "--options.ffn-dim", 16),
    *("--epochs", 1, "--min-epochs", 1, "--lr", "3e-3", "--batch-size", 8, "--device", "cpu", "--precision", 32),
]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    made = InProcess()
    monkeypatch.setattr(grid, "choose_engine", lambda *_, **__: made)
    return made


def test_verify_passes_sound_models_and_writes_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "verify.csv"
    assert run("verify", "--quick", "--models", "abmil,linear_probe", "majority", "-o", out) == 0
    said = capsys.readouterr()
    assert "2 classes, 20% witnesses, 5 sd apart, labels shuffled" in said.out
    assert "all 6 checks passed" in said.err
    rows = read_csv(out)
    assert [(r["model"], r["shuffled"]) for r in rows] == [
        (m, s) for s in ("False", "True") for m in ("abmil", "linear_probe", "majority")
    ]
    for row in rows:
        assert row["verdict"] == "ok"
        assert float(row["macro_f1_low"]) - 1e-6 <= float(row["macro_f1"]) <= float(row["macro_f1_high"]) + 1e-6
    assert float(rows[0]["attention_ap"]) > float(rows[0]["attention_ap_low"]) > 0.2


def test_verify_catches_an_aggregator_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_that_is_deaf.py").write_text(
        "import torch\n"
        "from qgmil.models.registry import register_model\n"
        "from qgmil.models.simple import MeanPool\n\n\n"
        '@register_model("deaf_mean", "looks at nothing")\n'
        "class DeafMean(MeanPool):\n"
        "    def forward_packed(self, bags, return_attention):\n"
        "        return super().forward_packed(bags.with_features(torch.ones_like(bags.features)), return_attention)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry.model_entries()))
    monkeypatch.setitem(module.QUICK, "epochs", 2)
    try:
        assert run("verify", "--quick", "--models", "deaf_mean", "--load", "mine_that_is_deaf") == 1
    finally:
        sys.modules.pop("mine_that_is_deaf", None)
    said = capsys.readouterr()
    assert "OUT" in said.out
    assert "deaf_mean, 2 classes, 20% witnesses, 5 sd apart: macro F1 0.333 is below 0." in said.err
    assert "1 of 2 checks passed" in said.err


def test_verify_names_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "--models", "abmill") == 1
    assert "unknown model 'abmill': did you mean abmil" in capsys.readouterr().err
    assert run("verify", "--load", "no_such_module_here") == 1
    assert "--load no_such_module_here: cannot be imported" in capsys.readouterr().err
    assert run("verify", "-o", "figures.txt") == 1
    assert "end its name with .csv" in capsys.readouterr().err
    assert run("verify", "--sizes", 30) == 1
    assert "sizes 30: must be two whole numbers, the fewest" in capsys.readouterr().err
    assert run("verify", "--sizes", 30, 10) == 1
    assert "sizes 30 10: must be two whole numbers, the fewest" in capsys.readouterr().err
    assert run("verify", "--sizes", 10.5, 20) == 1
    assert "sizes 10.5 20: must be two whole numbers, the fewest" in capsys.readouterr().err
    assert run("verify", "--sizes", 10, "many") == 2
    assert 'Invalid value for --sizes: unable to convert "many"' in capsys.readouterr().err


def test_verify_goes_on_after_a_model_that_fails_and_writes_its_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Raising(MeanPool):
        def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
            raise RuntimeError("a bug of mine")

    registry.model_entries()
    monkeypatch.setitem(registry._ENTRIES, "raising", registry.Entry(Raising, {}, "raises"))
    out = tmp_path / "new" / "folder" / "verify.csv"
    assert run("verify", "--quick", "--models", "raising,majority", "--sizes", 4, 8, "-o", out) == 1
    said = capsys.readouterr()
    assert "raising, 2 classes, 20% witnesses, 5 sd apart, bags of 4 to 8: RuntimeError: a bug of mine" in said.err
    assert "2 of 4 checks passed" in said.err
    rows = [(r["model"], r["sizes"], r["verdict"]) for r in read_csv(out)]
    assert rows == [("raising", "4-8", "RuntimeError: a bug of mine"), ("majority", "4-8", "ok")] * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:\n", "SyntaxError: invalid syntax (module_of_mine.py, line 1)"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("from qgmil import nothing_there\n", "ImportError: cannot import name 'nothing_there' from 'qgmil'"),
        ("import no_such_dependency\n", "No module named 'no_such_dependency'"),
    ],
)
def test_verify_names_a_module_that_cannot_be_imported(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "module_of_mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert run("verify", "--quick", "--models", "majority", "--load", "module_of_mine") == 1
    told = capsys.readouterr().err
    assert told.startswith("qgmil: --load module_of_mine: cannot be imported (")
    assert said in told
    assert told.count("\n") == 1
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "said"),
    [("folder.csv", "is a folder; name a file"), ("file/x.csv", "the figures cannot be written there")],
)
def test_verify_does_not_train_for_figures_that_cannot_be_written(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("no folder")
    trained: list[str] = []
    monkeypatch.setattr(module, "check_model", lambda model, *_, **__: trained.append(model))
    assert run("verify", "--quick", "--models", "majority", "-o", tmp_path / name) == 1
    told = capsys.readouterr().err
    assert f"{tmp_path / name}" in told
    assert said in told
    assert trained == []


def test_ablate_shows_its_variants_without_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ablate", "--dry-run", "--only", "gate,components") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no gate instead of a gate" in said
    assert "activation=gelu" in said
    assert "9 variants, 9 different models" in said


def test_ablate_trains_the_variants_and_writes_their_table(
    tmp_path: Path, engine: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = make_cohort(tmp_path / "smears", patients=10, bags_per_patient=1)
    command = ["ablate", manifest, "-o", tmp_path / "out", "--only", "gate", "--folds", 2, "--seeds", 1, *TINY]
    assert run(*command, "--max-minutes", 0) == 0
    assert "no cell has ended yet" in capsys.readouterr().err
    assert run(*command) == 0
    said = capsys.readouterr()
    assert sorted(engine.jobs) == sorted(
        f"smears/{model}/fold{fold}_seed0" for model in ("qgmil", "gate=none", "gate=elementwise") for fold in (0, 1)
    )
    assert "6 of 6 cells are finished" in said.err
    assert "no gate instead of a gate for each head" in said.out
    assert "…" not in said.out
    rows = {r["variant"]: r for r in read_csv(tmp_path / "out" / "tables" / "ablation.csv")}
    cells = {(r["model"], r["fold"]): r for r in read_csv(tmp_path / "out" / "results.csv")}
    for name in ("gate=none", "gate=elementwise"):
        wanted = [float(cells[name, f]["top_10pct"]) - float(cells["qgmil", f]["top_10pct"]) for f in "01"]
        assert float(rows[name]["delta_top_10pct"]) == pytest.approx(sum(wanted) / 2)
        assert int(float(rows[name]["parameters"])) == int(cells[name, "0"]["parameters"])
    assert float(rows["gate=none"]["delta_parameters"]) == -16 * 2  # no gate: a column of q_proj a head
    assert (tmp_path / "out" / "tables" / "ablation.tex").is_file()
    before = len(engine.jobs)
    assert run(*command, "-q") == 0  # nothing is left to do
    assert len(engine.jobs) == before


def test_ablate_takes_the_data_sets_and_the_recipe_of_a_benchmark(tmp_path: Path, engine: InProcess) -> None:
    manifest = make_cohort(tmp_path / "smears", patients=10, bags_per_patient=1)
    spec = tmp_path / "bench.yaml"
    spec.write_text(
        "folds: 2\nseeds: 1\ncommon: {epochs: 1, min_epochs: 1, batch_size: 8, device: cpu, precision: '32'}\n"
        f"datasets: {{a: {{manifest: {manifest}}}}}\nmodels: {{abmil: }}\n"
    )
    sizes = TINY[:6]
    assert run("ablate", "--spec", spec, "-o", tmp_path / "out", "--only", "qk-norm", "--lr", "1e-3", *sizes, "-q") == 0
    assert {job.split("/")[1] for job in engine.jobs} == {"qgmil", "qk_norm=none"}
    config = (tmp_path / "out" / "cells" / "a" / "qk_norm=none" / "fold0_seed0" / "config.yaml").read_text()
    assert "lr: 0.001" in config
    assert "epochs: 1" in config


def test_ablate_says_that_qgmil_has_no_published_recipe(
    tmp_path: Path, engine: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = make_cohort(tmp_path / "smears", patients=10, bags_per_patient=1)
    spec = tmp_path / "bench.yaml"
    spec.write_text(
        f"folds: 2\nseeds: 1\nrecipe: published\ndatasets:\n  a: {{manifest: {manifest}}}\nmodels: {{abmil: }}\n"
    )
    why = "no published recipe of 'qgmil' is known, and variants are compared under one recipe; use --recipe common"
    out = tmp_path / "out"
    for arguments in ([manifest, "-o", out], [manifest, "--dry-run"], ["--spec", spec, "-o", out]):
        assert run("ablate", *arguments, "--recipe", "published") == 1
        assert capsys.readouterr().err == f"qgmil: --recipe published: {why}\n"
    assert run("ablate", "--spec", spec, "-o", out) == 1
    assert capsys.readouterr().err == f"qgmil: {spec}: recipe published: {why}\n"
    assert not out.exists()
    command = ["ablate", "--spec", spec, "-o", out, "--only", "qk_norm", *TINY, "--recipe", "common", "-q"]
    assert run(*command) == 0
    assert len(engine.jobs) == 4


def test_ablate_by_the_published_recipe_of_a_variant_of_ones_own(
    tmp_path: Path, engine: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QGMIL, "published_recipe", {"lr": 7e-4, "batch_size": 2, "epochs": 9, "min_epochs": 1})
    manifest = make_cohort(tmp_path / "smears", patients=10, bags_per_patient=1)
    typed = [*TINY[:6], "--epochs", 1, "--device", "cpu", "--recipe", "published"]
    out = tmp_path / "out"
    assert run("ablate", manifest, "-o", out, "--only", "qk_norm", "--folds", 2, "--seeds", 1, *typed, "-q") == 0
    config = read_yaml(out / "cells" / "smears" / "qk_norm=none" / "fold0_seed0" / "config.yaml")
    assert (config["recipe"], config["lr"], config["batch_size"]) == ("published", 7e-4, 2)
    assert (config["epochs"], config["device"]) == (1, "cpu")  # what is typed wins


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "out"], "give tables of bags"),
        (["a.csv", "--spec", "b.yaml"], "or --spec bench.yaml, not both"),
        (["a.csv"], "name a folder for the results"),
        (["x/bags.csv", "y/x.csv", "-o", "out"], "would both be data set 'x'"),
        (["a.csv", "--base", "abmil"], "base='abmil' is no QG-MIL"),
        (["a.csv", "--only", "gates"], "there is no factor 'gates': did you mean gate"),
        (["--spec", "b.yaml", "--label", "y", "-o", "out"], "--label says how a table is read: write it into b.yaml"),
    ],
)
def test_ablate_names_mistakes(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ablate", *arguments) == 1
    assert said in capsys.readouterr().err
