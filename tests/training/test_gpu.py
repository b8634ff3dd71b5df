"""On a CUDA device (``make test ARGS="-m gpu"``): the same results as on the CPU, and training in bfloat16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import qgmil
from cohort import SMALL, make_cohort
from qgmil.training.config import TrainConfig
from qgmil.training.predict import predict
from qgmil.training.run import train_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


@pytest.mark.parametrize("name", ["qgmil", "qgmil_elementwise", "qgmil_layernorm", "abmil_gated", "max"])
def test_cuda_agrees_with_cpu(name: str) -> None:
    model = qgmil.create_model(name, in_dim=64, num_classes=3).eval()
    bags = qgmil.PackedBags(torch.randn(700, 64), (1, 199, 500))
    want = model(bags, return_attention=True)
    got = model.cuda()(bags.to("cuda"), return_attention=True)
    assert torch.allclose(got.logits.cpu(), want.logits, atol=1e-4)
    if want.attention is not None:
        assert torch.allclose(got.attention.cpu(), want.attention, atol=1e-5)


def test_memory_is_linear_on_the_device() -> None:
    model = qgmil.create_model("qgmil", in_dim=64, num_classes=2, width=128, ffn_dim=128).cuda()
    peaks = []
    for n in (20_000, 40_000):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            model(torch.randn(n, 64, device="cuda")).logits.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 2.3 * peaks[0]
    assert peaks[1] < 8 * 40_000**2 * 2  # one bfloat16 map of all heads


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("name", ["qgmil", "transformer"])
def test_compiled_parts_agree_for_bags_of_any_size(name: str, mode: str) -> None:
    torch.manual_seed(0)
    model = qgmil.create_model(name, in_dim=64, num_classes=3, width=64, num_layers=2, dropout=0.0).cuda()
    bags = [torch.randn(n, 64, device="cuda") for n in (40, 41, 70, 40, 300)]
    labels = torch.tensor([1], device="cuda")

    def figures() -> list[torch.Tensor]:
        made = []
        for x in bags:
            model.zero_grad()
            model.loss(model.train()(x), labels).backward()
            made += [p.grad.clone() for p in model.parameters()]
            with torch.inference_mode():
                made.append(model.eval()(x).logits.clone())
        return made

    plain = figures()
    model.compile_parts(mode)
    for a, b in zip(plain, figures(), strict=True):
        assert (a - b).norm() <= 1e-3 * (1e-3 + a.norm())


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_a_run_on_the_device(tmp_path: Path, precision: str) -> None:
    manifest = make_cohort(tmp_path / "data")
    config = TrainConfig.build({**SMALL, "device": "cuda", "precision": precision})
    runs = [train_run(manifest, tmp_path / name, config) for name in ("a", "b")]
    assert (runs[0] / "model.safetensors").read_bytes() == (runs[1] / "model.safetensors").read_bytes()
    bags = qgmil.open_bags(manifest)
    on_cpu = predict(qgmil.load_model(runs[0]), bags, device="cpu", precision="32").probabilities()
    on_gpu = predict(qgmil.load_model(runs[0]), bags, device="cuda", precision="32").probabilities()
    assert np.abs(on_cpu - on_gpu).max() < 1e-3
