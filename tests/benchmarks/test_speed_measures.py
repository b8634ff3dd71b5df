"""The speed scripts count arithmetic, turns and memory rightly."""

from __future__ import annotations

import pytest
import torch
from contenders import EAGER, HAEMATOLOGY, IN_DIM, LAYER, ONE_BY_ONE, OURS, Case, contenders, needed_flops, prepare
from eager_reference import EagerQGMIL, pad
from measure import growth, in_fresh_process, peak_of, summary, take_turns
from torch.utils.flop_counter import FlopCounterMode

from qgmil import PackedBags, create_model


def test_arithmetic_is_what_torch_counts() -> None:
    """Of one bag, so that the eager reference has no padding; its backward makes no product of the map again."""
    size = 20
    bags = PackedBags(torch.randn(size, IN_DIM), (size,))
    eager = EagerQGMIL(create_model("qgmil", in_dim=IN_DIM, num_classes=2, dropout=0.0))
    with FlopCounterMode(display=False) as forward:
        logits = eager(*pad(bags)).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    weighted_sum = 2 * size * 512  # not a matrix product there
    assert needed_flops((size,), "forward") == forward.get_total_flops() + weighted_sum
    attention = 4 * size**2 * 512
    needed = needed_flops((size,), "train") - needed_flops((size,), "forward")
    assert needed == backward.get_total_flops() + 2 * weighted_sum + 0.5 * attention


def test_arithmetic_of_a_batch_is_that_of_its_bags() -> None:
    both = needed_flops((4, 5), "forward")
    assert both == needed_flops((4,), "forward") + needed_flops((5,), "forward")
    head = 2 * (512 * 256 + 256 * 2)
    assert needed_flops((9,), "forward") - both == 4 * (9**2 - 4**2 - 5**2) * 512 - head  # pairs across the whole bag


def test_haematology_bags_are_skewed_like_blood_smears() -> None:
    sizes = sorted(HAEMATOLOGY)
    assert len(sizes) == 64 and sizes[0] >= 60 and sizes[-1] == 800
    assert 120 <= sizes[32] <= 140 and 150 <= sum(sizes) / 64 <= 190


def test_contenders_take_turns_and_only_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    steps = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = take_turns(steps, "cpu", rounds=3, budget=60.0)
    assert "".join(order) == "abababab"
    assert {name: len(runs) for name, runs in times.items()} == {"a": 3, "b": 3}


def test_a_slow_round_counts_and_the_budget_ends_the_turns() -> None:
    count = [0]

    def slow() -> None:
        count[0] += 1
        torch.randn(200_000).sort()

    assert len(take_turns({"a": slow}, "cpu", rounds=9, budget=1e-4, least=2)["a"]) == 2
    assert count[0] == 2


def test_growth_is_the_exponent() -> None:
    assert growth((10, 3.0), (1000, 3e4)) == pytest.approx(2.0)
    assert growth((10, 0.0), (1000, 1.0)) is None and growth((10, None), (20, 1.0)) is None


def test_summary_takes_the_quickest_run() -> None:
    assert summary([3.0, 1.0, 2.5]) == {"seconds": 1.0, "median_seconds": 2.5, "runs": 3}


def _take_64_mib() -> dict[str, float]:
    return peak_of(lambda: torch.ones(16 * 2**20).sum(), "cpu")


def _die() -> None:
    raise MemoryError


def test_peak_memory_is_of_the_step_and_of_a_fresh_process() -> None:
    kept = torch.ones(64 * 2**20)  # what this process holds is not counted
    found = in_fresh_process(_take_64_mib)
    assert found is not None and kept.numel()
    assert 63 * 2**20 <= found["peak_bytes"] <= 80 * 2**20
    assert in_fresh_process(_die) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_every_contender_computes(mode: str, dtype: str) -> None:
    """Products of at least the forward's linear layers, twice as many and more in training."""
    for name in (*contenders(), ONE_BY_ONE):
        sizes = (7,) if name == LAYER else (5, 3)
        with FlopCounterMode(display=False) as counted:
            prepare(Case(name, sizes, mode, dtype))()
        least = 2 * sum(sizes) * IN_DIM * 512 * (2 if mode == "train" else 1)
        assert counted.get_total_flops() > least, name
    assert {OURS, EAGER, LAYER} <= set(contenders())


@pytest.mark.parametrize("contender", [OURS, EAGER, ONE_BY_ONE])
def test_arithmetic_of_the_contenders_is_the_one_that_is_counted(contender: str) -> None:
    """Of equal bags, which need no padding; fused attention and the weighted sums are not all seen by the counter."""
    sizes = (6, 6)
    with FlopCounterMode(display=False) as counted:
        prepare(Case(contender, sizes, "forward", "float32"))()
    assert counted.get_total_flops() == pytest.approx(needed_flops(sizes, "forward"), rel=0.01)
