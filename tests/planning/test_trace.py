"""A traced step takes what the computed step takes, for every model there is."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from models.small import D, small_model
from qgmil import PackedBags, list_models
from qgmil.models.registry import create_model
from qgmil.planning.device import autocast
from qgmil.planning.tape import FREED
from qgmil.planning.trace import trace_step

SIZES = (300, 41)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", list_models())
def test_fake_and_real_steps_take_the_same_memory(name: str, precision: str, training: bool) -> None:
    model = small_model(name)
    settings = {"training": training, "precision": precision, "device": "cpu"}
    fake, real = (trace_step(model, SIZES, fake=fake, **settings) for fake in (True, False))  # type: ignore[arg-type]
    assert fake.peak == pytest.approx(real.peak, rel=0.03)
    assert fake.flops == pytest.approx(real.flops, rel=0.03)
    assert fake.training == real.training


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "precision"), [("qgmil", "32-true"), ("qgmil", "bf16-mixed"), ("abmil", "32-true")])
def test_a_trace_takes_what_torch_s_allocator_hands_out(name: str, precision: str, training: bool) -> None:
    """Of a real step, by the profiler: what kernels take for themselves is in it."""
    model = create_model(name, in_dim=64, num_classes=2, width=128).train(training)
    bags = PackedBags(torch.randn(3000, 64), (3000,), torch.zeros(1, dtype=torch.long))

    def step() -> None:
        with torch.inference_mode(not training), autocast(precision, "cpu"):
            loss = model.loss(model(bags), torch.zeros(1, dtype=torch.long))
        model.zero_grad()
        if training:
            loss.backward()

    step()
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    now = most = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    trace = trace_step(model, (3000,), training=training, precision=precision, device="cpu")
    weights = sum(p.numel() * 4 for p in model.parameters())
    before = sum(n for _, n in trace.before) - (weights if training else 0)  # gradients: there were none
    assert trace.peak == pytest.approx(before + most, rel=0.06)


def test_parts_of_a_step() -> None:
    model = create_model("mean", in_dim=10, num_classes=2, width=20)  # 10 x 20 + 20 + 20 x 2 + 2 = 262 weights
    trace = trace_step(model, (1000,), training=True, precision="32-true", device="cpu")
    weights, labels = 262 * 4, 8
    assert sum(n for _, n in trace.before) == 4 * weights + 1000 * 10 * 4 + labels  # gradients and two moments
    assert trace.flops == 2 * 1000 * 10 * 20 * 2 + 2 * 20 * 2 * 3  # the features need no gradient
    rest = trace_step(model, (1000,), training=False, precision="32-true", device="cpu")
    assert sum(n for _, n in rest.before) == weights + 1000 * 10 * 4 + labels
    assert rest.peak < trace.peak


def test_steps_in_a_row_end_with_as_much_as_they_began_with() -> None:
    trace = trace_step(small_model(), SIZES, training=True, precision="32-true", device="cpu")
    for steps in (1, 3):
        alive: dict[int, int] = {}
        most = 0
        for key, nbytes in trace.steps(steps):
            if nbytes == FREED:
                del alive[key]  # nothing is freed twice
            else:
                assert key not in alive
                alive[key] = nbytes
            most = max(most, sum(alive.values()))
        assert sum(alive.values()) == sum(n for _, n in trace.before)
        assert most == trace.peak


def test_tracing_changes_nothing() -> None:
    model = small_model().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    for fake in (True, False):
        trace_step(model, SIZES, training=True, precision="32-true", device="cpu", fake=fake)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_checkpointing_and_attention_dropout_are_followed() -> None:
    settings = {"training": True, "precision": "32-true", "device": "cpu"}
    model = create_model("qgmil_deep", in_dim=D, num_classes=2, width=64, num_heads=4, ffn_dim=256)
    plain = trace_step(model, (2000,), **settings)  # type: ignore[arg-type]
    model.checkpointing = True
    saved = trace_step(model, (2000,), **settings)  # type: ignore[arg-type]
    assert saved.peak < 0.5 * plain.peak and saved.flops > 1.2 * plain.flops
    computed = trace_step(model, (500,), fake=False, **settings)  # type: ignore[arg-type]
    assert trace_step(model, (500,), **settings).peak == pytest.approx(computed.peak, rel=0.03)  # type: ignore[arg-type]
    dropped = small_model(attention_dropout=0.2)
    fake, real = (trace_step(dropped, (400,), fake=fake, **settings) for fake in (True, False))  # type: ignore[arg-type]
    assert fake.peak == pytest.approx(real.peak, rel=0.03)


def test_linear_attention_is_no_map() -> None:
    """Twice the instances, twice the memory: N x N would show."""
    model = small_model()
    one, two = (trace_step(model, (n,), training=True, precision="32-true", device="cpu") for n in (4000, 8000))
    assert two.peak < 2.1 * one.peak
