"""ACMIL's branches, masking and loss against their definition in NumPy."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import D, difference, features, small_model

from qgmil import create_model
from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.models.acmil import ACMIL, mask_top, mean_cosine
from qgmil.models.base import Aggregator

SIZES, LABELS = (12, 1, 4), (2, 0, 1)


def softmax(z: np.ndarray, axis: int = 0) -> np.ndarray:
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def reference(model: ACMIL, x: np.ndarray, label: int) -> tuple[np.ndarray, list[float]]:
    """Logits and the three terms of the loss of one bag, without masking, in float64."""
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    h = np.maximum(x @ w["embed.0.weight"].T, 0)
    value = np.tanh(h @ w["scores.attention_V.0.weight"].T + w["scores.attention_V.0.bias"])
    gate = 1 / (1 + np.exp(-(h @ w["scores.attention_U.0.weight"].T + w["scores.attention_U.0.bias"])))
    a = softmax(value * gate @ w["scores.attention_weights.weight"].T + w["scores.attention_weights.bias"])

    def cost(z: np.ndarray) -> float:
        return float(-np.log(softmax(z if len(z) > 1 else np.array([0.0, z[0]]))[label]))

    logits = w["head.weight"] @ (a.mean(axis=1) @ h) + w["head.bias"]
    branches = [
        cost(w[f"branch_heads.{k}.weight"] @ (a[:, k] @ h) + w[f"branch_heads.{k}.bias"]) for k in range(a.shape[1])
    ]
    cosines = [
        a[:, i] @ a[:, j] / np.linalg.norm(a[:, i]) / np.linalg.norm(a[:, j])
        for i, j in combinations(range(a.shape[1]), 2)
    ]
    return logits, [cost(logits), float(np.mean(branches)), float(np.mean(cosines))]


def model_and_bags(**options: Any) -> tuple[ACMIL, PackedBags, torch.Tensor]:
    model = small_model("acmil", **{"mask_rate": 0.0, **options}).double().train()
    assert isinstance(model, ACMIL)
    x = features(sum(SIZES), D, dtype=torch.float64)
    return model, PackedBags(x, SIZES), torch.tensor(LABELS) % max(2, model.num_classes)


@pytest.mark.parametrize("num_classes", [1, 2, 3])
@pytest.mark.parametrize("n_branches", [2, 5])
def test_loss_is_that_of_the_definition(num_classes: int, n_branches: int) -> None:
    model, bags, labels = model_and_bags(num_classes=num_classes, n_branches=n_branches)
    parts = zip(bags.unpack(bags.features), labels.tolist(), strict=True)
    expected = [reference(model, x.numpy(), y) for x, y in parts]
    output = model(bags)
    assert difference(output.logits, torch.tensor(np.stack([e[0] for e in expected]))) < 1e-12
    slide, branch, cosine = np.mean([e[1] for e in expected], axis=0)
    assert float(model.loss(output, labels).detach()) == pytest.approx(slide + branch + cosine, rel=1e-12)
    assert float(model.eval().loss(output, labels).detach()) == pytest.approx(slide, rel=1e-12)  # as released


def test_weights_and_smoothing_act_on_both_cross_entropies() -> None:
    model, bags, labels = model_and_bags()
    output = model(bags)
    settings = {"class_weights": torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64), "label_smoothing": 0.2}
    terms = []
    for logits in (output.logits, *output["branch_logits"].unbind(1)):
        one = model(bags)
        one.logits = logits
        terms.append(Aggregator.loss(model, one, labels, **settings))
    expected = terms[0] + torch.stack(terms[1:]).mean() + output["diversity_loss"].mean()
    assert difference(model.loss(output, labels, **settings), expected) < 1e-13


def test_one_branch_has_the_loss_of_the_logits_alone() -> None:
    model, bags, labels = model_and_bags(n_branches=1)
    output = model(bags)
    assert not output["diversity_loss"].any()
    assert torch.equal(model.loss(output, labels), Aggregator.loss(model, output, labels))


@given(
    size=st.integers(1, 30),
    top=st.integers(1, 12),
    rate=st.sampled_from([0.1, 0.5, 0.6, 0.99]),
    seed=st.integers(0, 99),
)
def test_masking_takes_a_share_of_each_branchs_top(size: int, top: int, rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    scores = torch.stack([torch.randperm(size + 3).double() for _ in range(4)], dim=1)  # no ties
    sizes = (size, 3)
    masked = mask_top(scores, sizes, top, rate)
    for before, after in zip(scores.split(sizes), masked.split(sizes), strict=True):
        candidates = min(top, len(before))
        gone = after.isinf()
        assert gone.sum(0).tolist() == [int(rate * candidates)] * 4
        assert int(gone.sum(0).max()) < len(before)  # one instance at least stays
        least = before.sort(dim=0, descending=True).values[candidates - 1]
        assert bool((before >= least)[gone].all())
        assert torch.equal(after[~gone], before[~gone])


def test_masking_is_uniform_over_the_top() -> None:
    torch.manual_seed(0)
    scores = torch.arange(20.0).repeat(4000, 1).T  # 4,000 branches of one bag
    share = mask_top(scores, (20,), 10, 0.6).isinf().double().mean(1)
    assert not share[:10].any()
    assert difference(share[10:], torch.full((10,), 0.6)) < 0.03  # four standard deviations


def test_masking_is_for_training_and_follows_the_global_seed() -> None:
    model, bags, labels = model_and_bags(mask_rate=0.6)

    def step(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.loss(model(bags), labels)

    assert torch.equal(step(1), step(1))
    assert not torch.equal(step(1), step(2))
    plain, _, _ = model_and_bags()
    assert torch.equal(model.eval()(bags).logits, plain.eval()(bags).logits)


def test_what_is_masked_has_no_weight_and_no_gradient() -> None:
    model, _, labels = model_and_bags(mask_rate=0.9, n_masked=30, n_branches=2)
    x = features(30, D, dtype=torch.float64).requires_grad_()
    output = model(x, return_attention=True)
    branches = output["branch_attention"]
    assert (branches == 0).sum(0).tolist() == [27, 27]
    gone = (branches == 0).all(dim=1)
    assert bool(gone.any()) and not bool(gone.all())
    (gradient,) = torch.autograd.grad(model.loss(output, labels[:1]), x)
    assert bool(gradient.isfinite().all())
    assert [i for i, row in enumerate(gradient) if not row.any()] == gone.nonzero()[:, 0].tolist()


def test_attention_is_the_mean_of_the_branches_and_pools_to_the_embedding() -> None:
    model, bags, _ = model_and_bags()
    output = model(bags, return_attention=True)
    assert difference(output.attention, output["branch_attention"].mean(1)) == 0
    h = model.embed(bags.features)
    pooled = [a @ z for a, z in zip(bags.unpack(output.attention), bags.unpack(h), strict=True)]
    assert difference(output.embedding, torch.stack(pooled)) < 1e-12


def test_the_cosine_of_equal_and_of_disjoint_branches() -> None:
    equal = torch.tensor([0.2, 0.3, 0.5])[:, None].repeat(1, 4)
    disjoint = torch.eye(4)
    found = mean_cosine(torch.cat([equal, disjoint]), (3, 4))
    assert difference(found, torch.tensor([1.0, 0.0])) < 1e-6


def test_sizes_of_the_release() -> None:
    """Features of 384, embedding of 128, five branches, two classes."""
    count = create_model("acmil", in_dim=384, num_classes=2, width=128).num_parameters()
    assert count == 384 * 128 + 2 * (128 * 128 + 128) + 5 * 129 + 6 * 2 * 129


@pytest.mark.parametrize("options", [{"n_branches": 0}, {"n_masked": 0}, {"mask_rate": 1.0}, {"dropout": -1}], ids=str)
def test_options_out_of_range_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        create_model("acmil", in_dim=4, num_classes=2, **options)
