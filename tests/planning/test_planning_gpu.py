"""On a GPU, memory is what torch's allocator hands out."""

from __future__ import annotations

import pytest
import torch

import qgmil
from qgmil.planning.device import autocast
from qgmil.planning.memory import peak_memory


@pytest.mark.gpu
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("name", ["qgmil", "abmil_gated"])
def test_prediction_is_within_a_fifth_of_the_device(name: str, precision: str, training: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found = peak_memory(name, 1024, 2, (20_000,), training=training, precision=precision, device="cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model = qgmil.create_model(name, in_dim=1024, num_classes=2, standardize=True).cuda().train(training)
    bags = qgmil.PackedBags(torch.randn(20_000, 1024), (20_000,), torch.zeros(1, dtype=torch.long)).to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        with torch.inference_mode(not training), autocast("bf16-mixed" if precision == "bf16" else "32-true", "cuda"):
            output = model(bags)
            loss = model.loss(output, bags.labels)
        if training:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        del output, loss
    assert found.bytes == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.2)
