"""From a manifest to a store, and from the store to everything that a manifest is for."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from cohort import SMALL, make_cohort
from commandline import run
from qgmil.bags.store import is_store, store_identity
from qgmil.bags.store.layout import FEATURES
from qgmil.errors import RunError
from qgmil.training.config import TrainConfig
from qgmil.training.run import resume_run, train_run

RECIPE = ["--options.width", 16, "--options.num-heads", 2, "--options.ffn-dim", 16, "--epochs", 2, "--min-epochs", 1]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def store(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "store"
    assert run("pack", manifest, "-o", folder) == 0
    return folder


def test_packing_says_what_it_made(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pack", manifest, "-o", tmp_path / "s", "--dtype", "float16") == 0
    said = capsys.readouterr().err
    assert re.search(r"40 bags, \d+ instances x 12, 0\.0 MB in float16 \(as asked\)", said)
    assert re.search(r"largest rounding error: 0\.00\d+ \(a value of -?\d+\.\d+ in bag 'p\d\d_\d'\)", said)
    assert run("pack", manifest, "-o", tmp_path / "s") == 1
    assert "is a store already: choose another folder with --output, or replace it with --force" in (
        capsys.readouterr().err
    )
    assert run("pack", manifest, "-o", tmp_path / "s", "--force") == 0
    assert "in float32 (as the files have them)" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_what_is_skipped_and_what_overflows_is_said(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "huge.npy", np.full((2, 12), 1e5, np.float32))
    text = manifest.read_text().replace("features/", f"{manifest.parent}/features/")
    (tmp_path / "m.csv").write_text(f"{text}huge,H,tumour,huge.npy,0\ngone,G,tumour,gone.npy,1\n")
    assert run("pack", tmp_path / "m.csv", "-o", tmp_path / "s", "--skip", "missing", "--dtype", "float16") == 1
    said = capsys.readouterr().err
    assert "bag 'huge': feature 0 of instance 0 is 100000, and float16 ends at 65504" in said
    assert "--dtype bfloat16" in said and not (tmp_path / "s").exists()
    assert run("pack", tmp_path / "m.csv", "-o", tmp_path / "s", "--skip", "missing", "--dtype", "bfloat16") == 0
    assert "skipped gone: missing" in capsys.readouterr().err and is_store(tmp_path / "s")


def test_a_run_from_the_store_is_the_run_from_the_manifest_bit_for_bit(
    manifest: Path, store: Path, tmp_path: Path
) -> None:
    for name, source in (("m", manifest), ("s", store)):
        assert run("train", source, "-o", tmp_path / name, "--split-column", "fold", "-q", "--sample", 6, *RECIPE) == 0
    for name in ("predictions.csv", "cells/fold0_seed0/model.safetensors", "cells/fold2_seed0/split.csv"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "s" / name).read_bytes(), name
    for name, source in (("pm", manifest), ("ps", store)):
        assert run("predict", tmp_path / "s", source, "-o", tmp_path / f"{name}.csv") == 0
        assert run("evaluate", tmp_path / "m", source, "-o", tmp_path / name) == 0
    assert rows(tmp_path / "pm.csv") == rows(tmp_path / "ps.csv")
    assert (tmp_path / "pm/metrics.json").read_bytes() == (tmp_path / "ps/metrics.json").read_bytes()


def test_workers_and_memory_change_nothing(store: Path, tmp_path: Path) -> None:
    for name, options in (("memory", ["--in-memory", "yes"]), ("workers", ["--in-memory", "no", "--workers", 2])):
        assert run("train", store, "-o", tmp_path / name, "-q", *options, *RECIPE) == 0
    assert rows(tmp_path / "memory" / "predictions.csv") == rows(tmp_path / "workers" / "predictions.csv")


def test_check_takes_a_store_and_names_the_bag_with_a_flipped_bit(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check", store) == 0
    assert "no problems" in capsys.readouterr().out
    other = shutil.copytree(store, tmp_path / "other")
    with (other / FEATURES).open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))
    assert run("check", other) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "p00_0" in out and "checksum" in out


def test_a_run_resumes_only_on_the_store_that_it_began_with(manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert run("pack", manifest, "-o", store) == 0
    config = TrainConfig.build({**SMALL, "epochs": 1, "min_epochs": 1, "folds": 2})
    folder = train_run(store, tmp_path / "run", config)
    recorded = yaml.safe_load((folder / "config.yaml").read_text())
    assert recorded["manifest"] == str(store) and recorded["manifest_sha256"] == store_identity(store)
    (folder / "cells" / "fold1_seed0" / "metrics.json").unlink()
    assert run("pack", manifest, "-o", store, "--dtype", "bfloat16", "--force") == 0
    with pytest.raises(RunError, match=r"its manifest .*store has changed since the run began"):
        resume_run(folder)
    assert run("pack", manifest, "-o", store, "--force") == 0  # the same bags again
    resume_run(folder)
    assert (folder / "cells" / "fold1_seed0" / "metrics.json").is_file()
    store.rename(tmp_path / "moved")
    with pytest.raises(RunError, match="is gone"):
        resume_run(folder)


def test_feature_files_without_labels(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pack", manifest.parent / "features", "-o", tmp_path / "s") == 1
    assert "feature files alone have no labels" in capsys.readouterr().err
    assert run("pack", manifest.parent / "features", "-o", tmp_path / "s", "--no-labels") == 0
    assert run("train", tmp_path / "s", "-o", tmp_path / "run", "-q") == 1
    assert "40 of 40 bags have no label" in capsys.readouterr().err


STOPPED = """
import os, signal, sys
from qgmil.bags.store import writing
from qgmil.cli import main
add = writing.StoreWriter.add
def slow(self, item, bag):
    add(self, item, bag)
    if len(self.features.sizes) == 3:
        os.kill(os.getpid(), signal.SIGINT)
writing.StoreWriter.add = slow
main(sys.argv[1:])
"""


def test_ctrl_c_leaves_nothing_and_says_so(manifest: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED, "pack", str(manifest), "-o", str(tmp_path / "s")]
    child = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "300"},
        # as a program that a shell starts in the foreground, however this one was started
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert child.returncode == 130, child.stderr
    assert "s was not packed, and nothing is left of it" in child.stderr and "Traceback" not in child.stderr
    assert not list(tmp_path.iterdir())
