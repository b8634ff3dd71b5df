"""DSMIL's two streams and its loss against their definition in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small import D, difference, features, small_model

from qgmil import create_model
from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.models.base import Aggregator
from qgmil.models.dsmil import DSMIL

SIZES, LABELS = (9, 1, 4), (2, 0, 1)


def reference(model: DSMIL, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bag logits, critical instances' logits and attention of one bag, in float64."""
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    scores = x @ w["instance_head.weight"].T + w["instance_head.bias"]
    hidden = np.maximum(x @ w["query.0.weight"].T + w["query.0.bias"], 0)
    q = np.tanh(hidden @ w["query.2.weight"].T + w["query.2.bias"])
    logits, attention = w["head.bias"].copy(), np.empty_like(scores)
    kernel = w["head.weight"].reshape(model.num_classes, model.num_classes, -1)  # of the convolution over classes
    for c in range(model.num_classes):
        likeness = q @ q[scores[:, c].argmax()] / np.sqrt(q.shape[1])
        e = np.exp(likeness - likeness.max())
        attention[:, c] = e / e.sum()
        logits += kernel[:, c] @ (attention[:, c] @ x)
    return logits, scores.max(axis=0), attention


def one_against_rest(z: np.ndarray, label: int, smoothing: float = 0.0) -> float:
    """Binary cross-entropy of each class; one logit is that of class 1."""
    classes = max(2, len(z))
    target = np.full(classes, smoothing / classes)
    target[label] += 1 - smoothing
    target = target if len(z) > 1 else target[1:]
    p = 1 / (1 + np.exp(-z))
    return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).mean())


def model_and_bags(**options: Any) -> tuple[DSMIL, PackedBags, torch.Tensor]:
    model = small_model("dsmil", **options).double().train()
    assert isinstance(model, DSMIL)
    x = features(sum(SIZES), D, dtype=torch.float64)
    return model, PackedBags(x, SIZES), torch.tensor(LABELS) % max(2, model.num_classes)


@pytest.mark.parametrize("num_classes", [1, 2, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_streams_and_loss_are_those_of_the_definition(num_classes: int, smoothing: float) -> None:
    model, bags, labels = model_and_bags(num_classes=num_classes)
    expected = [reference(model, part.numpy()) for part in bags.unpack(bags.features)]
    output = model(bags, return_attention=True)
    assert difference(output.logits, torch.tensor(np.stack([e[0] for e in expected]))) < 1e-12
    assert difference(output["max_logits"], torch.tensor(np.stack([e[1] for e in expected]))) < 1e-12
    assert difference(output["class_attention"], torch.tensor(np.concatenate([e[2] for e in expected]))) < 1e-12
    pairs = list(zip(expected, labels.tolist(), strict=True))
    bag = np.mean([one_against_rest(e[0], y, smoothing) for e, y in pairs])
    top = np.mean([one_against_rest(e[1], y, smoothing) for e, y in pairs])
    for mode in (model.train(), model.eval()):  # the release validates what it trains
        found = mode.loss(output, labels, label_smoothing=smoothing)
        assert float(found.detach()) == pytest.approx(0.5 * bag + 0.5 * top, rel=1e-12)


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_class_weights_multiply_the_loss_of_their_bags(num_classes: int, kind: str) -> None:
    model, bags, labels = model_and_bags(num_classes=num_classes, loss_kind=kind)
    weights = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)[: max(2, num_classes)]
    parts = [model.loss(model(x), y) for x, y in zip(bags.unpack(bags.features), labels.split(1), strict=True)]
    expected = torch.stack([weights[y] * loss for y, loss in zip(labels, parts, strict=True)]).mean()
    assert difference(model.loss(model(bags), labels, class_weights=weights), expected) < 1e-14


def test_cross_entropy_is_the_choice_of_both_streams() -> None:
    model, bags, labels = model_and_bags(loss_kind="ce")
    output = model(bags)
    expected = Aggregator.loss(model, output, labels, label_smoothing=0.1)
    output.logits, kept = output["max_logits"], output.logits
    expected = 0.5 * (expected + Aggregator.loss(model, output, labels, label_smoothing=0.1))
    output.logits = kept
    assert difference(model.loss(output, labels, label_smoothing=0.1), expected) < 1e-14


def test_one_logit_trains_alike_under_both_losses() -> None:
    (a, bags, labels), (b, _, _) = model_and_bags(num_classes=1), model_and_bags(num_classes=1, loss_kind="ce")
    assert torch.equal(a.loss(a(bags), labels), b.loss(b(bags), labels))


def test_of_equal_instances_the_first_is_critical() -> None:
    model, _, _ = model_and_bags()
    with torch.no_grad():  # all instances have the same logits but not the same queries
        model.instance_head.weight.zero_()
    x = features(5, D, dtype=torch.float64).requires_grad_()
    output = model(x, return_attention=True)
    q = model.query(x)
    expected = (q @ q[0] / q.shape[1] ** 0.5).softmax(0)
    for c in range(model.num_classes):
        assert difference(output["class_attention"][:, c], expected) < 1e-12


def test_only_the_critical_instance_carries_the_gradient_of_the_first_stream() -> None:
    model, _, _ = model_and_bags()
    x = torch.cat([features(4, D, dtype=torch.float64)] * 2).requires_grad_()  # every instance twice: all tie
    output = model(x)
    (gradient,) = torch.autograd.grad(output["max_logits"].sum(), x)
    critical = set(output["instance_logits"].argmax(0).tolist())
    assert {i for i, row in enumerate(gradient) if row.any()} == critical
    assert max(critical) < 4


def test_scores_are_not_rounded_under_autocast() -> None:
    """Scores reach 11: in bfloat16 they would be off by 0.03, and the attention by as many percents."""
    queries = (2 * features(40, 128)).tanh().bfloat16()
    bags, rows = PackedBags(features(40, D), (40,)), torch.tensor([3, 17])
    exact = queries.double() @ queries[rows].double().T / 128**0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = DSMIL._scores(bags, queries, [rows])
    assert float(exact.max()) > 4
    assert difference(scores, exact) < 1e-5


def test_sizes_of_the_release() -> None:
    """Features of 512, two classes: i_classifier, two layers of queries, convolution."""
    count = create_model("dsmil", in_dim=512, num_classes=2).num_parameters()
    assert count == 2 * 513 + 128 * 513 + 128 * 129 + (2 * 2 * 512 + 2)


def test_an_unknown_loss_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"loss_kind.*bce, ce.*'hinge'"):
        create_model("dsmil", in_dim=4, num_classes=2, loss_kind="hinge")
