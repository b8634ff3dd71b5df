"""Killed, interrupted, resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cohort import SMALL, make_cohort
from qgmil.errors import RunError
from qgmil.training.config import TrainConfig
from qgmil.training.run import resume_run, train_run
from qgmil.training.runfolder import is_finished

CONFIG = {**SMALL, "epochs": 8, "sample": 8, "patience": 8, "checkpoint_seconds": 0.0, "folds": 2, "seed": 5}

KILLED = """
import os, signal, sys
from qgmil.training import module
from qgmil.training.config import TrainConfig
from qgmil.training.run import train_run
steps, original = [0], module.MILModule.training_step
def step(self, batch, index):
    steps[0] += 1
    if steps[0] == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, batch, index)
module.MILModule.training_step = step
train_run(sys.argv[1], sys.argv[2], TrainConfig.read(sys.argv[3]))
"""


@pytest.mark.parametrize("step", [8, 29])  # mid-epoch in the first model, mid-epoch in the second
def test_killed_and_resumed_equals_never_stopped_bit_for_bit(tmp_path: Path, step: int) -> None:
    manifest = make_cohort(tmp_path / "data")
    config = TrainConfig.build(CONFIG)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    train_run(manifest, tmp_path / "whole", config)
    arguments = [str(manifest), str(tmp_path / "killed"), str(tmp_path / "config.yaml"), str(step)]
    child = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not is_finished(tmp_path / "killed")
    resume_run(tmp_path / "killed")
    for cell in ("fold0_seed5", "fold1_seed5"):
        whole, resumed = tmp_path / "whole" / "cells" / cell, tmp_path / "killed" / "cells" / cell
        for name in ("model.safetensors", "history.csv", "predictions.csv", "split.csv"):
            assert (whole / name).read_bytes() == (resumed / name).read_bytes(), (cell, name)
    assert (tmp_path / "whole" / "predictions.csv").read_bytes() == (
        tmp_path / "killed" / "predictions.csv"
    ).read_bytes()


def test_finished_models_are_not_trained_again(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", patients=12)
    run = train_run(manifest, tmp_path / "run", TrainConfig.build({**CONFIG, "epochs": 2}))
    first = run / "cells" / "fold0_seed5" / "model.safetensors"
    before = first.stat().st_mtime_ns
    (run / "metrics.json").unlink()
    (run / "cells" / "fold1_seed5" / "metrics.json").unlink()
    resume_run(run)
    assert first.stat().st_mtime_ns == before
    assert is_finished(run)


def test_a_broken_checkpoint_is_never_left_behind(tmp_path: Path) -> None:
    """Whatever is under checkpoints/ is whole: partial files carry another name and are removed."""
    manifest = make_cohort(tmp_path / "data", patients=12)
    run = train_run(manifest, tmp_path / "run", TrainConfig.build({**CONFIG, "epochs": 2}))
    assert not list(run.rglob("*.part"))
    assert not list(run.rglob("checkpoints"))


def test_resume_refuses_a_changed_manifest(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", patients=12)
    run = train_run(manifest, tmp_path / "run", TrainConfig.build({**CONFIG, "epochs": 1}))
    manifest.write_text(manifest.read_text().replace("P00", "P99"))
    with pytest.raises(RunError, match=r"bags\.csv has changed since the run began"):
        resume_run(run)
    manifest.unlink()
    with pytest.raises(RunError, match=r"bags\.csv is gone"):
        resume_run(run)


def test_resume_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        resume_run(tmp_path)


def test_ctrl_c_leaves_a_usable_run(tmp_path: Path) -> None:
    """SIGINT as a terminal sends it: exit code 130, the best model so far predicts, --resume finishes."""
    manifest = make_cohort(tmp_path / "data", patients=12)
    run = tmp_path / "run"
    options = ["--epochs", "2000", "--patience", "2000", "--checkpoint-seconds", "0", "--options.width", "16"]
    options += ["--options.num-heads", "2", "--options.ffn-dim", "16", "--device", "cpu"]
    command = [sys.executable, "-m", "qgmil", "train", str(manifest), "-o", str(run), *options]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background of a script ignores SIGINT, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (run / "history.csv").exists():
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130, (out, err)
    assert f"qgmil train --resume {run}" in err and "Traceback" not in err
    from qgmil.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["predict", str(run), str(manifest), "-o", str(tmp_path / "p.csv")])
    assert stop.value.code == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 25
    assert not is_finished(run) and (run / "checkpoints" / "last.ckpt").is_file()


def test_resume_refuses_bags_that_changed_behind_the_manifest(tmp_path: Path) -> None:
    """A missing file that turned up again would move bags from test to training."""
    manifest = make_cohort(tmp_path / "data", patients=12)
    file = tmp_path / "data" / "features" / "p03_0.npy"
    aside = file.rename(tmp_path / "aside.npy")
    run = train_run(manifest, tmp_path / "run", TrainConfig.build({**CONFIG, "epochs": 1, "skip": ("missing",)}))
    assert "p03_0" in (run / "skipped.csv").read_text()
    aside.rename(file)
    (run / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"'p03_0' was in part none when the run began"):
        resume_run(run)
