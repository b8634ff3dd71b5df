"""Two processes train as one: the same steps, the same history, and one message if one of them fails."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from cohort import SMALL, make_cohort
from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.cli import main
from qgmil.errors import BagError, ConfigError, RunError
from qgmil.training.config import TrainConfig
from qgmil.training.fit import FitResult, Interrupted, fit_model
from qgmil.training.processes import run_processes
from qgmil.training.run import resume_run, train_run
from qgmil.training.sampler import train_loader
from qgmil.training.share import ALL, Share, count_processes
from training.failing_processes import fails
from training.two_processes import CLASSES, STEPS, all_steps, gradients, make_bags

OPTIONS = {"width": 16, "num_heads": 2, "ffn_dim": 16, "dropout": 0.0}
TWO = {
    **SMALL,
    "options": OPTIONS,
    "epochs": 6,
    "batch_size": 3,
    "sample": 6,
    "patience": 2,
    "min_epochs": 2,
    "lr": 1e-3,
}


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 5))
def test_shares_make_up_the_joint_batches(bags: int, batch_size: int, world: int, step: int) -> None:
    """Each bag counts once, with the weight that it has in the joint batch's mean."""
    batches = [list(range(i, min(i + batch_size, bags))) for i in range(0, bags, batch_size)]
    step %= len(batches)
    counted: list[int] = []
    for rank in range(world):
        share = Share(rank, world, bags, batch_size)
        part = share.of(batches[step])
        own, factor = share.weight(step, len(part))
        assert part  # a process that has no bag works on one that does not count
        counted += part[:own]
        if own:
            assert factor / world / own == pytest.approx(1 / len(batches[step]))
        else:
            assert factor == 0
    assert sorted(counted) == batches[step]


def test_processes_read_the_bags_and_instances_of_one(tmp_path: Path) -> None:
    bags = open_bags(make_cohort(tmp_path / "data", patients=7, bags_per_patient=1))

    def epoch(share: Share) -> list[dict[str, torch.Tensor]]:
        loader: Any = train_loader(bags, CLASSES, seed=2, sample=4, share=share, batch_size=3)
        for sampler in {id(s): s for s in (loader.sampler, getattr(loader.batch_sampler, "sampler", None))}.values():
            getattr(sampler, "set_epoch", lambda epoch: None)(5)
        return [dict(zip(b.bag_ids, b.unpack(b.features), strict=True)) for b in loader]

    joint, parts = epoch(ALL), [epoch(Share(rank, 2, 7, 3)) for rank in (0, 1)]
    assert [len(b) for b in joint] == [3, 3, 1]
    for step, batch in enumerate(joint):
        together = {**parts[0][step], **parts[1][step]}
        assert together.keys() == batch.keys()
        assert all(torch.equal(together[bag], batch[bag]) for bag in batch)
    assert [[len(b) for b in part] for part in parts] == [[2, 2, 1], [1, 1, 1]]


def test_processes_differ_in_dropout_and_the_first_is_as_one_alone() -> None:
    assert Share(0, 4).seed(17) == ALL.seed(17) == 17
    assert len({Share(rank, 64).seed(seed) for rank in range(64) for seed in range(100)}) == 6400


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"devices": 0}, r"devices = 0: .*whole number of at least 1, or auto"),
        ({"devices": "two"}, r"devices = 'two'"),
        ({"devices": 1.5}, r"devices = 1.5"),
    ],
)
def test_wrong_numbers_of_devices_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig.build(values)


def test_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(devices: int | str, device: str, batch_size: int = 4) -> int:
        return count_processes(TrainConfig.build({"devices": devices, "batch_size": batch_size}), device)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert (count(1, "cpu"), count("2", "cpu"), count("auto", "cpu"), count("auto", "mps")) == (1, 2, 1, 1)
    assert (count("auto", "cuda"), count("auto", "cuda", 2), count("auto", "cuda", 1), count(3, "cuda")) == (3, 2, 1, 3)
    with pytest.raises(ConfigError, match=r"devices = 4, but cuda has 3 here"):
        count(4, "cuda")
    with pytest.raises(ConfigError, match=r"devices = 2, but mps has 1"):
        count(2, "mps")
    with pytest.raises(ConfigError, match=r"devices = 2 with batch_size = 1.*at least 2"):
        count(2, "cpu", 1)


def test_too_many_devices_stop_a_run_before_there_is_a_folder(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", patients=12)
    with pytest.raises(ConfigError, match="fewer bags than devices"):
        train_run(manifest, tmp_path / "run", TrainConfig.build({**TWO, "devices": 4}))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The gradients of two processes in files, and what they sent."""
    output, heard = tmp_path_factory.mktemp("gradients"), []
    run_processes(all_steps, 2, [output], tmp_path_factory.mktemp("exchange"), on_message=heard.append)
    return output, heard


@pytest.mark.parametrize("case", STEPS)
def test_gradients_are_those_of_one_process_on_the_joint_batch(steps: tuple[Path, Any], case: str) -> None:
    """In float64; the weights of later steps come from the gradients of those before."""
    alone = gradients(case, 0, 1)
    assert (
        len(alone) == len(list(steps[0].glob(f"{case}-*-0.safetensors"))) == math.ceil(STEPS[case][3] / STEPS[case][2])
    )
    for step, expected in enumerate(alone):
        first, second = (load_file(steps[0] / f"{case}-{step}-{rank}.safetensors") for rank in (0, 1))
        assert first.keys() == second.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.equal(first[name], second[name]), name
            assert torch.allclose(first[name], gradient, rtol=1e-9, atol=1e-12), (step, name)
        assert max(g.abs().max() for g in expected.values()) > 1e-3


def test_a_weight_that_no_bag_of_a_step_uses_gets_no_gradient(steps: tuple[Path, Any]) -> None:
    names = [set(load_file(path)) for path in sorted(steps[0].glob("choosy-*-0.safetensors"))]
    assert len(names) == 4 and all("never" not in found and "embed.0.weight" in found for found in names)
    labels = [b.labels.tolist() for b in train_loader(make_bags(8), CLASSES, seed=0, batch_size=2)]
    assert [0, 1] in [sorted(pair) for pair in labels] and [0, 0] in labels
    assert ["second" in found for found in names] == [any(pair) for pair in labels]


def test_what_processes_tell_each_other(steps: tuple[Path, list[dict[str, Any]]]) -> None:
    said = [json.loads((steps[0] / f"said-{rank}.json").read_text()) for rank in (0, 1)]
    for one in said:
        assert one["sum"] == [1.0, 4.0] and one["ignores_ctrl_c"]
        assert one["first"]["a"] is None and math.isnan(one["first"]["b"]) and one["first"]["c"] == 5.0
    assert steps[1] == [{"number": 1}, {"number": 2}]


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("bag", BagError, r"^bag 'b7': broken$"),
        pytest.param(
            "deep", RunError, r"number 1 of the 2.* failed: RuntimeError: something deep", marks=pytest.mark.slow
        ),
        pytest.param("killed", RunError, r"number 1 of the 2.* was killed by signal 9", marks=pytest.mark.slow),
    ],
)
def test_one_that_fails_ends_all_with_its_message(tmp_path: Path, how: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        run_processes(fails, 2, [how], tmp_path)


def bags_in_memory(folder: Path) -> tuple[BagDataset, BagDataset]:
    bags = open_bags(make_cohort(folder))
    held = BagDataset.from_bags([bags[i] for i in range(len(bags))])
    return held.subset(range(25)), held.subset(range(25, 40))


def assert_alike(one: FitResult, two: FitResult) -> None:
    assert (one.best_epoch, len(one.history)) == (two.best_epoch, len(two.history))
    for a, b in zip(one.history, two.history, strict=True):
        assert a.keys() == b.keys()
        assert list(a.values()) == pytest.approx(list(b.values()), abs=2e-5)
    for name, value in one.model.state_dict().items():
        assert torch.allclose(value, two.model.state_dict()[name], atol=2e-5), name


def test_a_model_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """25 bags, 3 a step: no step divides evenly, and the second process has no bag in the last of an epoch."""
    train, val = bags_in_memory(tmp_path / "data")
    told: list[int] = []
    (tmp_path / "two").mkdir()
    one = fit_model(train, val, CLASSES, TrainConfig.build(TWO), seed=1)
    two = fit_model(
        train,
        val,
        CLASSES,
        TrainConfig.build({**TWO, "devices": 2}),
        seed=1,
        folder=tmp_path / "two",
        on_epoch=lambda done, most, scores: told.append(done),
    )
    assert_alike(one, two)
    assert told == list(range(1, len(two.history) + 1))
    assert len((tmp_path / "two" / "history.csv").read_text().splitlines()) == 1 + len(two.history)
    assert not two.model.training and {p.device.type for p in two.model.parameters()} == {"cpu"}


@pytest.mark.slow
def test_ctrl_c_leaves_the_best_model_and_resuming_repeats_nothing(tmp_path: Path) -> None:
    """With dropout, whose noise of each process follows from seed and epoch."""
    train, val = bags_in_memory(tmp_path / "data")
    options = {"options": {**OPTIONS, "dropout": 0.2}, "devices": 2, "checkpoint_seconds": 0.0, "patience": 6}
    config = TrainConfig.build({**TWO, **options, "optimizer": "lookahead_radam"})

    def stop(done: int, most: int, scores: object) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = fit_model(train, val, CLASSES, config, seed=1, folder=_made(tmp_path / "whole"))
    with pytest.raises(Interrupted) as stopped:
        fit_model(train, val, CLASSES, config, seed=1, folder=_made(tmp_path / "stopped"), on_epoch=stop)
    assert stopped.value.model is not None and not stopped.value.model.training
    resumed = fit_model(train, val, CLASSES, config, seed=1, folder=tmp_path / "stopped", resume=True)
    assert resumed.history == whole.history
    assert all(torch.equal(v, whole.model.state_dict()[k]) for k, v in resumed.model.state_dict().items())


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


ORPHANS = """
import multiprocessing, os, signal, sys
from pathlib import Path
from qgmil.training.config import TrainConfig
from qgmil.training.run import Silent, train_run
class Killer(Silent):
    def epoch(self, cell, done, most, scores):
        if done == 3:
            Path(sys.argv[4]).write_text(" ".join(str(p.pid) for p in multiprocessing.active_children()))
            os.kill(os.getpid(), signal.SIGKILL)
train_run(sys.argv[1], sys.argv[2], TrainConfig.read(sys.argv[3]), Killer())
"""


@pytest.mark.slow
def test_killed_and_resumed_equals_never_stopped_and_no_process_is_left(tmp_path: Path) -> None:
    """The script above has no guard against being imported again, and no file: it need not have."""
    manifest = make_cohort(tmp_path / "data")
    config = TrainConfig.build({**TWO, "devices": 2, "checkpoint_seconds": 0.0, "patience": 6})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    train_run(manifest, tmp_path / "whole", config)
    arguments = [manifest, tmp_path / "killed", tmp_path / "config.yaml", tmp_path / "children"]
    environment = {**os.environ, "TMPDIR": str(_made(tmp_path / "temporary"))}
    command = [sys.executable, "-c", ORPHANS, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert child.returncode == -9, child.stderr
    children = (tmp_path / "children").read_text().split()
    assert len(children) == 2
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in children):
        assert time.monotonic() < until, "processes outlive the one that started them"
        time.sleep(0.2)
    assert not list((tmp_path / "temporary").glob("qgmil-*"))
    resume_run(tmp_path / "killed")
    for name in ("model.safetensors", "history.csv", "predictions.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_the_command_line_trains_on_two_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_cohort(tmp_path / "data")
    monkeypatch.setattr("qgmil.cli.output.finish_run", lambda folder, quiet: None)
    (tmp_path / "config.yaml").write_text(TrainConfig.build(TWO).to_yaml())
    for devices in ("1", "2"):
        arguments = ["train", str(manifest), "-c", str(tmp_path / "config.yaml"), "-o", str(tmp_path / devices)]
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--devices", devices, "--quiet"])
        assert stop.value.code == 0
    one, two = (np.genfromtxt(tmp_path / d / "history.csv", delimiter=",", skip_header=1) for d in ("1", "2"))
    assert one == pytest.approx(two, abs=2e-5)
    assert "devices: 2" in (tmp_path / "2" / "config.yaml").read_text()


@pytest.mark.slow
def test_a_broken_bag_is_named_by_whichever_process_reads_it(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", patients=8)
    np.save(tmp_path / "data" / "features" / "p07_1.npy", np.full((3, 12), np.inf, dtype=np.float32))
    config = TrainConfig.build({**TWO, "devices": 2, "scaling": "none"})
    with pytest.raises(BagError, match=r"bag 'p07_1'.*inf") as error:
        fit_model(open_bags(manifest), None, CLASSES, config)
    assert "Traceback" not in str(error.value)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices here")
def test_two_gpus_train_as_one(tmp_path: Path) -> None:
    train, val = bags_in_memory(tmp_path / "data")
    results = [
        fit_model(train, val, CLASSES, TrainConfig.build({**TWO, "device": "cuda", "devices": devices}), seed=1)
        for devices in (1, 2)
    ]
    assert_alike(*results)
    assert os.environ.get("LOCAL_RANK") is None  # the processes' own numbers stay theirs
