"""CLAM's losses against their definition in NumPy, and the ends of the attention that they look at."""

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
from qgmil.models.clam import CLAM

TRAINING: dict[str, Any] = {"dropout": 0.0}
both = pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
SIZES, LABELS = (9, 3, 1, 6), (2, 0, 1, 2)


def softmax(z: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def linear(state: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def reference(model: CLAM, x: np.ndarray, label: int) -> tuple[np.ndarray, float, float]:
    """Logits, bag loss and instance loss of one bag, written from the method's definition, in float64."""
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    h = np.maximum(linear(w, "embed.0", x), 0)
    gate = 1 / (1 + np.exp(-linear(w, "scores.attention_U.0", h)))
    a = softmax(linear(w, "scores.attention_weights", np.tanh(linear(w, "scores.attention_V.0", h)) * gate), axis=0)
    if model.multi_branch:
        logits = np.array([linear(w, f"heads.{c}", a[:, c] @ h)[0] for c in range(model.num_classes)])
    else:
        logits = linear(w, "heads.0", a[:, 0] @ h)
    two = logits if model.num_classes > 1 else np.array([0.0, logits[0]])
    bag_loss = -np.log(softmax(two, axis=0)[label])
    classes, k = max(2, model.num_classes), min(model.k_sample, len(x))
    total = 0.0
    for c in range(classes):
        order = np.argsort(a[:, c if a.shape[1] > 1 else 0], kind="stable")
        top, bottom = h[order[::-1][:k]], h[order[:k]]
        if c == label:
            rows, targets = np.concatenate([top, bottom]), [1] * k + [0] * k
        elif model.subtyping:
            rows, targets = top, [0] * k
        else:
            continue
        p = softmax(linear(w, f"instance_classifiers.{c}", rows), axis=1)
        total += -np.log(p[np.arange(len(rows)), targets]).mean()
    return logits, bag_loss, total / classes if model.subtyping else total


def model_and_bags(name: str, **options: Any) -> tuple[CLAM, PackedBags, torch.Tensor]:
    model = small_model(name, **{**TRAINING, "k_sample": 4, **options}).double().train()
    bags = PackedBags(features(sum(SIZES), D, dtype=torch.float64), SIZES)
    assert isinstance(model, CLAM)
    return model, bags, torch.tensor(LABELS) % max(2, model.num_classes)


@both
@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_losses_are_those_of_the_definition(name: str, subtyping: bool, num_classes: int) -> None:
    """Bags larger than 2k, between k and 2k, smaller than k, and of one instance."""
    model, bags, labels = model_and_bags(name, subtyping=subtyping, num_classes=num_classes)
    parts = [part.numpy() for part in bags.unpack(bags.features)]
    expected = [reference(model, x, int(y)) for x, y in zip(parts, labels, strict=True)]
    output = model(bags)
    assert difference(output.logits, torch.tensor(np.stack([e[0] for e in expected]))) < 1e-12
    bag, instance = np.mean([e[1] for e in expected]), np.mean([e[2] for e in expected])
    assert float(model.instance_loss(output, labels).detach()) == pytest.approx(instance, rel=1e-12)
    assert float(model.loss(output, labels).detach()) == pytest.approx(0.7 * bag + 0.3 * instance, rel=1e-12)
    assert float(model.eval().loss(output, labels).detach()) == pytest.approx(bag, rel=1e-12)  # as released


@both
def test_weights_and_smoothing_act_on_the_bag_loss(name: str) -> None:
    model, bags, labels = model_and_bags(name, bag_weight=0.6)
    output, weights = model(bags), torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    bag = Aggregator.loss(model, output, labels, class_weights=weights, label_smoothing=0.2)
    expected = 0.6 * bag + 0.4 * model.instance_loss(output, labels)
    assert difference(model.loss(output, labels, class_weights=weights, label_smoothing=0.2), expected) < 1e-14
    assert difference(bag, Aggregator.loss(model, output, labels)) > 1e-3


@both
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_bag_weight_may_be_all_or_nothing(name: str, weight: float) -> None:
    model, bags, labels = model_and_bags(name, bag_weight=weight)
    output = model(bags)
    alone = Aggregator.loss(model, output, labels) if weight else model.instance_loss(output, labels)
    assert difference(model.loss(output, labels), alone) < 1e-14


@both
def test_instance_loss_trains_the_embedding_and_not_the_attention(name: str) -> None:
    """The choice of instances has no gradient: the attention learns from the bag loss."""
    model, bags, labels = model_and_bags(name)
    model.instance_loss(model(bags), labels).backward()
    touched = {key for key, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    expected = {"embed.0.weight", "embed.0.bias"}
    expected |= {f"instance_classifiers.{c}.{kind}" for c in set(LABELS) for kind in ("weight", "bias")}
    assert touched == expected


def test_a_branch_a_class_looks_at_its_own_instances() -> None:
    model, bags, _ = model_and_bags("clam_mb", k_sample=1)
    output = model(bags, return_attention=True)
    start = 0
    for b, part in enumerate(bags.unpack(output["class_attention"].detach())):
        h = model.embed(bags.features[start : start + len(part)])
        for c, classifier in enumerate(model.instance_classifiers):
            top, bottom = h[part[:, c].argmax()], h[part[:, c].argmin()]
            costs = -classifier(top).log_softmax(0)[1] - classifier(bottom).log_softmax(0)[0]
            assert difference(output["instance_loss_in"][b, c], costs / 2) < 1e-12
        start += len(part)


def test_attention_of_several_branches_is_that_of_the_predicted_class() -> None:
    model, bags, _ = model_and_bags("clam_mb")
    output = model(bags, return_attention=True)
    assert len(set(output.logits.argmax(1).tolist())) > 1  # the bags must not all be of one class
    for part, weights, logits in zip(
        bags.unpack(output["class_attention"]), bags.unpack(output.attention), output.logits, strict=True
    ):
        assert torch.equal(weights, part[:, logits.argmax()])
    assert "class_attention" not in model(bags).auxiliary


def test_dropout_acts_on_the_attention_too() -> None:
    """Not on the embedding alone, as in the release."""
    model = small_model("clam_sb", dropout=0.5).train()
    h = features(50, 32)
    torch.manual_seed(0)
    first = model.scores(h)
    assert not torch.equal(first, model.scores(h))
    assert torch.equal(model.eval().scores(h), model.scores(h))


def test_sizes_of_the_release() -> None:
    """512-d embedding, attention of 256, two classes, features of 1,024: the 'small' CLAM-SB."""
    count = create_model("clam_sb", in_dim=1024, num_classes=2).num_parameters()
    assert count == 1024 * 512 + 512 + 2 * (512 * 256 + 256) + 257 + 2 * 513 + 2 * 2 * 513


@both
@pytest.mark.parametrize(
    "options",
    [{"k_sample": 0}, {"bag_weight": 1.5}, {"bag_weight": float("nan")}, {"subtyping": "yes"}, {"attention_dim": 0}],
    ids=str,
)
def test_options_out_of_range_are_errors(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        create_model(name, in_dim=4, num_classes=2, **options)
