"""Aggregators without recorded vectors against references written from their papers' equations, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_dtfd
import torch
from reference_ilra import ilra
from reference_wikg import wikg
from torch import Tensor

import qgmil
from qgmil.bags.bag import PackedBags
from qgmil.models.base import Aggregator

EXACT = 1e-10
SIZES = (1, 2, 7, 33)
D = 9
SMALL: dict[str, dict[str, Any]] = {
    "dtfd": {"width": 12, "attention_dim": 6, "pseudo_bags": 4},
    "ilra": {"width": 12, "num_heads": 3, "num_latents": 5},
    "wikg": {"width": 12, "topk": 4},
}
classes = pytest.mark.parametrize("num_classes", [1, 2, 4])


def built(name: str, num_classes: int, **options: Any) -> Aggregator:
    """In evaluation mode and float64, with weights of a size at which nothing is nearly linear or flat."""
    model = qgmil.create_model(name, in_dim=D, num_classes=num_classes, **{**SMALL[name], **options}).double().eval()
    generator = torch.Generator().manual_seed(num_classes)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(noise * 1.4 / p.shape[-1] ** 0.5 if p.ndim == 2 else noise * 0.5 + 0.3)
    return model


def weights(model: Aggregator) -> dict[str, np.ndarray]:
    return {name: p.numpy() for name, p in model.state_dict().items()}


def bags(seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, D, generator=generator, dtype=torch.float64) for n in SIZES)


def compare(model: Aggregator, parts: tuple[Tensor, ...], results: list[Any]) -> Any:
    """All bags in one batch; gives the output."""
    output = model(PackedBags(torch.cat(parts), tuple(map(len, parts))), return_attention=True)
    for b, result in enumerate(results):
        np.testing.assert_allclose(output.logits[b].detach().numpy(), result.logits, rtol=0, atol=EXACT)
        np.testing.assert_allclose(output.embedding[b].detach().numpy(), result.embedding, rtol=0, atol=EXACT)
    if results[0].attention is None:
        assert output.attention is None
    else:
        expected = np.concatenate([result.attention for result in results])
        np.testing.assert_allclose(output.attention.detach().numpy(), expected, rtol=0, atol=EXACT)
    return output


@classes
@pytest.mark.parametrize("distillation", ["afs", "maxs", "maxmins", "mas"])
def test_dtfd(distillation: str, num_classes: int) -> None:
    model, parts = built("dtfd", num_classes, distillation=distillation), bags()
    w = weights(model)
    results = [reference_dtfd.dtfd(w, part.numpy(), 4, distillation) for part in parts]
    output = compare(model, parts, results)
    expected = np.concatenate([result.pseudo_logits for result in results])
    np.testing.assert_allclose(output["pseudo_logits"].detach().numpy(), expected, rtol=0, atol=EXACT)
    labels = [0, 1, max(1, num_classes - 1), 0]
    loss = sum(reference_dtfd.loss(result, y) for result, y in zip(results, labels, strict=True)) / len(labels)
    assert abs(model.loss(output, torch.tensor(labels)).item() - loss) < EXACT


@classes
@pytest.mark.parametrize("layer_norm", [True, False])
def test_ilra(num_classes: int, layer_norm: bool) -> None:
    model, parts = built("ilra", num_classes, layer_norm=layer_norm), bags(1)
    if not layer_norm:  # without norms the stream grows with every sum, and rounding with it
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.7)
    w = weights(model)
    compare(model, parts, [ilra(w, part.numpy(), 2, 3) for part in parts])


def test_ilra_of_one_latent_and_three_layers() -> None:
    model, parts = built("ilra", 2, num_latents=1, num_layers=3), bags(2)
    w = weights(model)
    compare(model, parts, [ilra(w, part.numpy(), 3, 3) for part in parts])


@classes
@pytest.mark.parametrize("scores", ["inner", "released"])
def test_wikg(num_classes: int, scores: str) -> None:
    model, parts = built("wikg", num_classes, scores=scores), bags(3)
    w = weights(model)
    compare(model, parts, [wikg(w, part.numpy(), 4, released=scores == "released") for part in parts])


@pytest.mark.parametrize("readout", ["mean", "max"])
def test_wikg_readouts_without_attention(readout: str) -> None:
    model, parts = built("wikg", 2, readout=readout), bags(4)
    w = weights(model)
    compare(model, parts, [wikg(w, part.numpy(), 4, readout=readout) for part in parts])
