"""One matrix product for q, gate, k and v, or three? Attention's projections and their norms, in turns.

    python benchmarks/projections.py [--device cuda] [--instances 100 200 1000 4000 10000]

Three: q with its gate, k, v, as the model has them. One: their weights side by side, put together for each step,
because checkpoints hold them apart. Both are `GatedSelfAttention.project` of QG-MIL's sizes, forward in inference mode,
and forward and backward as in training.
"""

from __future__ import annotations

import json
import statistics
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from cyclopts import Parameter, run
from measure import Step, machine, take_turns
from rich.console import Console
from rich.table import Table
from torch import Tensor

from qgmil.layers.attention import GatedSelfAttention
from qgmil.layers.linear import in_few_sizes
from qgmil.training.device import autocast, choose_precision

WIDTH, HEADS, HEAD_DIM = 512, 8, 64
MODES, DTYPES = ("forward", "train"), ("float32", "bfloat16")
Projected = tuple[Tensor, Tensor, Tensor, Tensor | None]


class OneProduct(GatedSelfAttention):
    """As its base, from one matrix product. Headwise gate, as many keys as queries."""

    def project(self, u: Tensor) -> Projected:
        parts = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([part.weight for part in parts])
        made = in_few_sizes(lambda x: F.linear(x, weight), u)
        mixed, k, v = made.split([part.out_features for part in parts], dim=1)
        mixed = mixed.unflatten(1, (self.num_heads, self.head_dim + 1))
        k, v = (x.unflatten(1, (self.num_heads, self.head_dim)) for x in (k, v))
        return self.q_norm(mixed[..., :-1]), self.k_norm(k), v, mixed[..., -1:]


def step_of(layer: GatedSelfAttention, u: Tensor, mode: str, dtype: str) -> Step:
    """One run of the projections on rows u ``(N, width)``."""
    precision = choose_precision("bf16" if dtype == "bfloat16" else "32", u.device.type)

    def forward() -> None:
        with torch.inference_mode(), autocast(precision, u.device.type):
            layer.project(u)

    def train() -> None:
        with autocast(precision, u.device.type):
            made = [x for x in layer.project(u) if x is not None]
        torch.autograd.backward(made, [torch.ones_like(x) for x in made])
        layer.zero_grad(set_to_none=True)
        u.grad = None

    u.requires_grad_(mode == "train")
    return train if mode == "train" else forward


def projections(
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    instances: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative=())] = (
        100,
        200,
        1_000,
        4_000,
        10_000,
    ),
    budget: float = 5.0,
) -> None:
    """Measure and print.

    Parameters
    ----------
    device
        Where to run.
    instances
        Rows.
    budget
        Seconds for the turns at one size.
    """
    table = Table("step", "dtype", "instances", "three ms", "one ms", "three / one")
    for mode in MODES:
        for dtype in DTYPES:
            for n in instances:
                three, one = (
                    kind(WIDTH, HEADS, HEADS, HEAD_DIM).to(device) for kind in (GatedSelfAttention, OneProduct)
                )
                one.load_state_dict(three.state_dict())
                u = torch.randn(n, WIDTH, device=device)
                steps = {name: step_of(x, u.clone(), mode, dtype) for name, x in (("three", three), ("one", one))}
                times = take_turns(steps, device, rounds=200, budget=budget)
                a, b = (1e3 * statistics.median(times[name]) for name in ("three", "one"))
                table.add_row(mode, dtype, f"{n:,}", f"{a:.2f}", f"{b:.2f}", f"{a / b:.2f}")
    console = Console(highlight=False)
    console.print(json.dumps(machine(device)), markup=False, soft_wrap=True)
    console.print(table)


if __name__ == "__main__":
    run(projections)
