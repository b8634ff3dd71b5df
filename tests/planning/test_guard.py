"""Training that would not fit is refused before its first step; running out names the bags."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qgmil.bags.bag import Bag, PackedBags
from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.errors import ConfigError
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput
from qgmil.planning import batches, guard
from qgmil.planning.batches import largest_batch
from qgmil.planning.guard import check_memory, explained_memory_errors, is_out_of_memory
from qgmil.planning.memory import estimate
from qgmil.training.config import TrainConfig
from qgmil.training.fit import build_model, fit_model
from qgmil.training.predict import predict

GB = 1e9
CLASSES = ("no", "yes")
SETTINGS: dict[str, Any] = {
    "options": {"width": 64, "num_heads": 4, "ffn_dim": 128},
    "epochs": 1,
    "batch_size": 2,
    "device": "cpu",
    "precision": "32",
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    guard._estimate.cache_clear()
    yield
    guard._estimate.cache_clear()


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often large blocks were mapped; this process keeps its allocator."""
    calls: list[int] = []
    monkeypatch.setattr(guard, "map_large_blocks", lambda: calls.append(1))
    return calls


def has(monkeypatch: pytest.MonkeyPatch, count: float) -> None:
    monkeypatch.setattr(guard, "available_memory", lambda device: int(count))


def cohort(sizes: tuple[int, ...] = (40, 3000, 50, 1700, 60, 70), width: int = 16) -> BagDataset:
    return BagDataset.from_bags(
        [Bag(torch.zeros(n, width), CLASSES[i % 2], f"slide{i}") for i, n in enumerate(sizes)], width=width
    )


def check(bags: BagDataset, val: BagDataset | None = None, **values: Any) -> None:
    config = TrainConfig.build({**SETTINGS, **values})
    check_memory(
        build_model(config, bags.width, 2),
        bags,
        val,
        batch_size=config.batch_size,
        sample=config.sample,
        eval_sample=config.eval_sample,
        precision="32-true",
        device="cpu",
    )


def needed(sizes: tuple[int, ...], **values: Any) -> int:
    model = build_model(TrainConfig.build({**SETTINGS, **values}), 16, 2)
    return estimate(model, sizes, training=True, precision="32-true", device="cpu").tensors


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch, mapped: list[int]) -> None:
    takes = needed((3000, 1700))
    has(monkeypatch, takes * 0.8)
    with pytest.raises(ConfigError) as refused:
        check(cohort())
    said = str(refused.value)
    assert "bag 'slide1' (3,000 instances) and 1 more (4,700 instances in all)" in said
    assert f"takes about {guard.size(takes)} and cpu has {guard.size(int(takes * 0.8))} available" in said
    assert "what fits: " in said and "--no-memory-check (memory_check=False in Python)" in said
    sampled = int(said.split("--sample ")[1].split()[0])
    assert f"(sample={sampled} in Python)" in said
    assert 0.5 * 3000 < sampled < 3000
    assert 0.65 * takes < needed((sampled, min(sampled, 1700))) <= 0.8 * takes
    check(cohort(), sample=sampled // 2)  # followed, it is not refused


def test_every_remedy_is_offered_only_where_it_fits(monkeypatch: pytest.MonkeyPatch, mapped: list[int]) -> None:
    deep = {"options": {**SETTINGS["options"], "num_layers": 2}}
    bags, takes = cohort((900, 40, 600)), needed((900, 600), **deep)
    has(monkeypatch, 0.85 * takes)
    with pytest.raises(ConfigError) as refused:
        check(bags, **deep)
    fits = str(refused.value).partition("not enough alone")[0]
    assert "--checkpointing (checkpointing=True in Python)" in fits
    assert "--batch-size 1 (batch_size=1 in Python)" in fits
    has(monkeypatch, 0.47 * takes)
    with pytest.raises(ConfigError) as refused:
        check(bags, **deep)
    fits, _, short = str(refused.value).partition("not enough alone")
    assert "--batch-size 1" in short and "--checkpointing" in short and "--sample" in fits
    has(monkeypatch, 1000)
    with pytest.raises(ConfigError, match="nothing that is known fits"):
        check(cohort((300, 200)))


def test_bags_in_memory_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: list[int]) -> None:
    rows = ["bag_id,label,features"]
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", np.zeros((3000, 16), np.float32))
        rows.append(f"b{i},{CLASSES[i % 2]},{i}.npy")
    (tmp_path / "bags.csv").write_text("\n".join(rows))
    bags = open_bags(tmp_path / "bags.csv")
    takes = needed((3000, 3000))
    has(monkeypatch, takes + 3000 * 16 * 4 * 5)  # one of the six has no place
    check(bags)
    with pytest.raises(ConfigError, match=r"available \(after 1 MB for the bags that are kept in memory\)"):
        check(bags.in_memory())


def test_validation_counts_too(monkeypatch: pytest.MonkeyPatch, mapped: list[int]) -> None:
    has(monkeypatch, needed((1500, 1500)) * 0.5)
    small, large = cohort((40, 50)), cohort((9000, 50))
    with pytest.raises(ConfigError, match=r"validation will not fit.*--eval-sample \d+ \(eval_sample=\d+ in Python\)"):
        check(small, large)
    check(small, large, eval_sample=300)


def test_where_it_is_tight_one_is_told(
    monkeypatch: pytest.MonkeyPatch, mapped: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    has(monkeypatch, needed((3000, 1700)) * 1.1)
    with caplog.at_level(logging.INFO, "qgmil"):
        check(cohort())
    assert "memory is tight: training on bag 'slide1' (3,000 instances) and 1 more" in caplog.text
    assert "--sample" in caplog.text and mapped == [1]


def test_small_bags_are_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(guard, "_estimate", never)
    has(monkeypatch, 9 * 1024**3)
    check(cohort((2000, 2000, 1000)))
    with pytest.raises(AssertionError):
        check(cohort((2000, 2100)))
    has(monkeypatch, 7 * 1024**3)
    with pytest.raises(AssertionError):
        check(cohort((20, 20)))
    monkeypatch.setattr(guard, "available_memory", lambda device: None)
    check(cohort())  # where the system does not say, nothing is refused


def test_the_check_is_quick_where_bags_are_small() -> None:
    bags = cohort((200,) * 300)
    started = time.perf_counter()
    check(bags)
    assert time.perf_counter() - started < 1.0


def test_folds_ask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    real = guard.estimate
    monkeypatch.setattr(guard, "estimate", lambda *a, **k: asked.append(a) or real(*a, **k))  # type: ignore[func-returns-value]
    has(monkeypatch, 5 * GB)
    for _ in range(3):
        check(cohort((900, 800)))
    assert len(asked) == 1


def test_only_the_largest_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["bag_id,label,features"]
    for i in range(60):
        np.save(tmp_path / f"{i}.npy", np.zeros((5 + (i * 7) % 60, 3), np.float32))
        rows.append(f"b{i},{CLASSES[i % 2]},{i}.npy")
    (tmp_path / "bags.csv").write_text("\n".join(rows))
    bags = open_bags(tmp_path / "bags.csv")
    opened: list[str] = []
    import qgmil.bags.dataset as dataset

    real = dataset.bag_file_shape
    monkeypatch.setattr(dataset, "bag_file_shape", lambda p, **o: opened.append(str(p)) or real(p, **o))  # type: ignore[func-returns-value]
    batch = largest_batch(bags, 3)
    assert batch is not None and batch.sizes == (64, 63, 62)
    assert len(opened) == batches.HEADERS
    assert largest_batch(bags, 2, sample=10).sizes == (10, 10)  # type: ignore[union-attr]
    (tmp_path / "17.npy").write_bytes(b"broken" * 1000)  # the largest file, and unreadable: said when it is read
    assert largest_batch(open_bags(tmp_path / "bags.csv"), 3) is not None


def test_fit_refuses_and_can_be_told_not_to(monkeypatch: pytest.MonkeyPatch, mapped: list[int]) -> None:
    has(monkeypatch, 1e6)
    bags = cohort((400, 500, 300, 600))
    with pytest.raises(ConfigError, match="training will not fit into memory"):
        fit_model(bags, None, CLASSES, TrainConfig.build(SETTINGS))
    result = fit_model(bags, None, CLASSES, TrainConfig.build({**SETTINGS, "memory_check": False}))
    assert len(result.history) == 1


held: list[weakref.ref[Tensor]] = []


class Hungry(Aggregator):
    """Runs out of memory in the forward or the backward pass of bags of more than 100 instances."""

    def __init__(self, in_dim: int, num_classes: int, *, where: str = "forward", kind: str = "cuda") -> None:
        super().__init__(in_dim, num_classes)
        self.head = nn.Linear(in_dim, num_classes)
        self.where, self.kind = where, kind

    def fail(self) -> None:
        large = torch.zeros(10)
        held.append(weakref.ref(large))
        if self.kind == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        if self.kind == "cpu":
            torch.empty(2**60)
        raise MemoryError

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        means = torch.stack([x.mean(dim=0) for x in bags.unpack(bags.features)])
        large = max(bags.sizes) > 100
        if large and self.where == "forward":
            self.fail()
        logits = self.head(means)
        if large and logits.requires_grad:

            def backward(grad: Tensor) -> None:
                self.fail()

            logits.register_hook(backward)
        return BagOutput(logits, means)


@pytest.mark.parametrize("kind", ["cuda", "cpu", "python"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_running_out_in_training_names_the_bags(where: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgmil.training.fit.create_model", lambda *a, **k: Hungry(16, 2, where=where, kind=kind))
    config = TrainConfig.build({**SETTINGS, "options": {}})
    with pytest.raises(ConfigError) as ran_out:
        fit_model(cohort((40, 300)), None, CLASSES, config)
    said = str(ran_out.value)
    assert said.startswith(
        "training ran out of memory on bag 'slide1' (300 instances) and 1 more (340 instances in all)"
    )
    for remedy in ("--batch-size 1 (batch_size=1 in Python)", "--sample 150", "--checkpointing", "--precision bf16"):
        assert remedy in said
    assert "qgmil plan --instances 300" in said
    assert held[-1]() is None  # what the step had is free, although the error is still there


@pytest.mark.parametrize("kind", ["cuda", "cpu", "python"])
def test_running_out_in_prediction_names_the_bags(kind: str) -> None:
    model = Hungry(16, 2, kind=kind)
    bags = cohort((40, 300, 50))
    with pytest.raises(
        ConfigError, match=r"predicting ran out of memory on bag 'slide1' \(300 instances\): try"
    ) as said:
        predict(model, bags, batch_size=1, device="cpu", precision="32")
    assert "--batch-size" not in str(said.value)


def test_other_errors_stay_what_they_are() -> None:
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")):
        assert not is_out_of_memory(error)
        with pytest.raises(type(error)), explained_memory_errors(lambda: None, training=True):
            raise error
    explained = explained_memory_errors(lambda: None, training=True)
    with pytest.raises(ConfigError, match="between batches, where bags are read"), explained:
        raise MemoryError


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process")
def test_a_process_that_really_runs_out_says_so_in_one_line(tmp_path: Path) -> None:
    """Under a limit on its memory, the check switched off: no traceback, and the bag's name."""
    rows = ["bag_id,label,patient_id,features"]
    for i in range(12):
        np.save(tmp_path / f"{i}.npy", np.zeros((60_000 if i == 5 else 20, 64), np.float16))
        rows.append(f"bag{i},{CLASSES[i % 2]},{i},{i}.npy")
    (tmp_path / "bags.csv").write_text("\n".join(rows))
    code = (
        "import json, resource, sys\n"
        "import lightning.pytorch, torch, qgmil.training.run, qgmil.cli.output\n"
        "from qgmil.cli import main\n"
        "torch.nn.Linear(8, 8)(torch.ones(4, 8)).sum().backward()\n"
        "with open('/proc/self/status') as f: size = int(f.read().split('VmSize:')[1].split()[0]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))\n"
        "main(json.loads(sys.argv[1]))"
    )
    arguments = ["train", tmp_path / "bags.csv", "-o", tmp_path / "run", "--epochs", 1, "--device", "cpu", "-q"]
    arguments += ["--precision", "32", "--batch-size", 12, "--val", 0.2, "--split-column", "part"]
    arguments += ["--scaling", "none", "--model", "abmil_gated"]
    table = (tmp_path / "bags.csv").read_text().splitlines()
    parts = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    (tmp_path / "bags.csv").write_text(
        "\n".join([table[0] + ",part", *(f"{row},{part}" for row, part in zip(table[1:], parts, strict=True))])
    )
    command = [sys.executable, "-c", code, json.dumps([*map(str, arguments), "--no-memory-check"])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1, ended.stderr[-2000:]
    assert "training ran out of memory on bag 'bag5' (60,000 instances) and 7 more" in ended.stderr
    assert "Traceback" not in ended.stderr and "--sample 30000" in ended.stderr
