"""What the processes of test_parallel.py run: functions that a started process can import."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset
from qgmil.models.abmil import ABMIL
from qgmil.models.output import BagOutput
from qgmil.models.registry import create_model
from qgmil.training.callbacks import Recorder
from qgmil.training.config import TrainConfig
from qgmil.training.fit import run_training
from qgmil.training.module import MILModule
from qgmil.training.processes import send
from qgmil.training.share import Share

CLASSES = ("benign", "tumour")


class Choosy(ABMIL):
    """A weight that only bags of the second class use, and one that nothing uses."""

    def __init__(self, in_dim: int, num_classes: int, **options: Any) -> None:
        super().__init__(in_dim, num_classes, **options)
        self.second = nn.Parameter(torch.ones(options["width"]))
        self.never = nn.Parameter(torch.ones(2, 2))

    def loss(self, output: BagOutput, labels: Tensor, **options: Any) -> Tensor:
        found = super().loss(output, labels, **options)
        if labels.any():
            found = found + (labels * (output.embedding @ self.second)).mean()
        return found


#: Model, options, bags a step and bags in all: a batch that divides, one that does not, a last one that leaves the
#: second process without a bag, and weights that only some bags use, so that some processes and steps do not.
STEPS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "even": ("qgmil", {"width": 16, "num_heads": 2, "ffn_dim": 16, "dropout": 0.0}, 4, 4),
    "odd": ("qgmil", {"width": 16, "num_heads": 2, "ffn_dim": 16, "dropout": 0.0}, 3, 3),
    "choosy": ("choosy", {"width": 16, "attention_dim": 8, "dropout": 0.0}, 2, 8),
    "idle": ("abmil_gated", {"width": 16, "attention_dim": 8, "dropout": 0.0}, 2, 5),
}


def make_bags(count: int) -> BagDataset:
    generator = torch.Generator().manual_seed(4)
    sizes = [3 + 5 * (i % 4) for i in range(count)]
    return BagDataset.from_bags(
        [
            Bag(torch.randn(n, 12, generator=generator, dtype=torch.float64), CLASSES[i % 2], f"b{i}")
            for i, n in enumerate(sizes)
        ]
    )


class Gradients(MILModule):
    """Keeps the gradients of every step, before they are clipped."""

    def on_after_backward(self) -> None:
        if not hasattr(self, "kept"):
            self.kept: list[dict[str, torch.Tensor]] = []
        self.kept.append({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None})


def gradients(case: str, rank: int, world: int) -> list[dict[str, torch.Tensor]]:
    """Gradients of all steps of one epoch in float64, with plain gradient descent."""
    name, options, batch_size, count = STEPS[case]
    torch.manual_seed(1)
    make = Choosy if name == "choosy" else partial(create_model, name)
    model = make(in_dim=12, num_classes=2, **options).double()
    config = TrainConfig.build(
        {"batch_size": batch_size, "epochs": 1, "device": "cpu", "precision": "32", "optimizer": "sgd", "lr": 0.1}
    )
    share = Share(rank, world, count, batch_size)
    module = Gradients(model, CLASSES, config, seed=0, total_steps=10, share=share)
    run_training(module, Recorder(None, None, 1, 60.0), make_bags(count), None, resume=False)
    return module.kept


def all_steps(rank: int, world: int, exchange: Path, output: Path) -> None:
    """Every case, each process's gradients in a file."""
    for case in STEPS:
        for step, found in enumerate(gradients(case, rank, world)):
            save_file(found, output / f"{case}-{step}-{rank}.safetensors")
    shares = [Share(rank, world).sum([float(rank), 2.0], torch.device("cpu"))]
    values = {"a": None if rank == 0 else 1.0, "b": float("nan") if rank == 0 else 1.0, "c": 5.0 + rank}
    first = Share(rank, world).first(values, torch.device("cpu"))
    said = {"sum": shares[0], "first": first, "ignores_ctrl_c": signal.getsignal(signal.SIGINT) == signal.SIG_IGN}
    (output / f"said-{rank}.json").write_text(json.dumps(said))
    if rank == 0:
        send(exchange, {"number": 1})
        send(exchange, {"number": 2})
