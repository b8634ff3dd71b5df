"""DTFD-MIL: the split, what pseudo-bags hand on, the two tiers' losses and their gradients."""

from __future__ import annotations

import pytest
import torch
from small import C, D, difference, features, small_model

import qgmil
from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError
from qgmil.models.dtfd import DTFD, pseudo_sizes

DISTILLATIONS = ("afs", "maxs", "maxmins", "mas")
DEVICE = torch.device("cpu")


def dtfd(**options: object) -> DTFD:
    model = small_model("dtfd", **options)
    assert isinstance(model, DTFD)
    return model


@pytest.mark.parametrize(("n", "count", "sizes"), [(1, 1, [1]), (7, 5, [2, 2, 1, 1, 1]), (10, 5, [2] * 5)])
def test_pseudo_bags_are_of_nearly_equal_size(n: int, count: int, sizes: list[int]) -> None:
    assert pseudo_sizes(n, count) == sizes


def test_the_split_of_evaluation_deals_instances_out_in_turn() -> None:
    order = dtfd(pseudo_bags=3).divide([7, 2], [3, 2], DEVICE)
    assert order.tolist() == [0, 3, 6, 1, 4, 2, 5, 7, 8]


def test_the_split_of_training_is_drawn_anew_within_each_bag() -> None:
    model = dtfd(pseudo_bags=3).train()
    torch.manual_seed(0)
    first, second = (model.divide([40, 20], [3, 3], DEVICE) for _ in range(2))
    for order in (first, second):
        assert order[:40].sort().values.tolist() == list(range(40))
        assert order[40:].sort().values.tolist() == list(range(40, 60))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(model.divide([40, 20], [3, 3], DEVICE), first)


def test_without_shuffling_training_is_evaluation() -> None:
    model, x = dtfd(shuffle=False), features(2, 11, D)
    expected = model(x).logits
    assert torch.equal(model.train()(x).logits, expected)
    shuffled = dtfd()
    assert torch.equal(shuffled(x).logits, expected)
    torch.manual_seed(0)
    assert not torch.equal(shuffled.train()(x).logits, expected)


def test_order_matters_only_through_the_split() -> None:
    """Instances that stay in their pseudo-bag may change places; others may not."""
    model, x = dtfd(pseudo_bags=2).double(), features(6, D, dtype=torch.float64)
    expected = model(x).logits
    assert difference(model(x[[4, 3, 0, 1, 2, 5]]).logits, expected) < 1e-12
    assert difference(model(x[[1, 2, 0, 3, 4, 5]]).logits, expected) > 1e-6


def test_small_bags_have_one_pseudo_bag_an_instance() -> None:
    output = dtfd(pseudo_bags=5)(PackedBags(features(10, D), (1, 3, 6)))
    assert output["pseudo_logits"].shape == (1 + 3 + 5, C)
    assert output["pseudo_bag"].tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert output["pseudo_share"].tolist() == pytest.approx([1.0] + [1 / 3] * 3 + [0.2] * 5)


@pytest.mark.parametrize("distillation", DISTILLATIONS)
@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_attention_is_where_the_bag_vector_comes_from(distillation: str, num_classes: int) -> None:
    """The bag vector is the attention's mean of the embedded instances, in training as well."""
    model = dtfd(distillation=distillation, num_classes=num_classes).double().train()
    x = features(40, D, dtype=torch.float64)
    output = model(PackedBags(x, (1, 2, 30, 7)), return_attention=True)
    h = model.embed(x)
    start = 0
    for b, n in enumerate((1, 2, 30, 7)):
        a = output.attention[start : start + n]
        assert difference(a @ h[start : start + n], output.embedding[b]) < 1e-12
        assert abs(float(a.detach().sum()) - 1) < 1e-12
        most = n if distillation == "afs" else min(n, 10 if distillation == "maxmins" else 5)
        assert int((a > 0).sum()) <= most
        start += n


def test_maxs_takes_the_most_probable_instance() -> None:
    """An instance that the first tier's head calls positive beyond doubt is chosen, and its opposite by the minimum."""
    model = small_model("dtfd", num_classes=2, distillation="maxmins", pseudo_bags=1).double()
    x = features(20, D, dtype=torch.float64)
    with torch.no_grad():
        model.pseudo_score.attention_weights.weight.zero_()  # uniform attention
        h = model.embed(x)
        odds = h @ (model.pseudo_head.weight[1] - model.pseudo_head.weight[0])
    attention = model(x, return_attention=True).attention.detach()
    assert set(attention.nonzero()[:, 0].tolist()) == {int(odds.argmax()), int(odds.argmin())}


def test_each_tier_learns_from_its_own_loss() -> None:
    x = features(2, 12, D)
    for joint in (False, True):
        model = dtfd(joint=joint).train()
        model(x).logits.square().sum().backward()
        assert model.score.attention_V[0].weight.grad.any()
        first = (model.embed[0].weight, model.pseudo_score.attention_V[0].weight)
        assert all((p.grad is not None and bool(p.grad.any())) == joint for p in first)
        model.zero_grad()
        model(x)["pseudo_logits"].square().sum().backward()
        assert all(bool(p.grad.any()) for p in (*first, model.pseudo_head.weight))
        assert model.head.weight.grad is None or not model.head.weight.grad.any()


def test_predictions_have_a_gradient_to_the_features() -> None:
    """For attribution, in evaluation, though the first tier does not learn through it."""
    model, x = dtfd().double(), features(12, D, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: model(v).logits, (x,))


def test_every_weight_learns() -> None:
    for distillation in DISTILLATIONS:
        model = dtfd(distillation=distillation).double().train()
        model.loss(model(features(3, 12, D, dtype=torch.float64)), torch.tensor([0, 1, 2])).backward()
        without = {key for key, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12}
        assert without == {"pseudo_score.attention_weights.bias", "score.attention_weights.bias"}


def test_the_loss_of_a_batch_is_the_mean_of_its_bags() -> None:
    """Though they have different numbers of pseudo-bags; with class weights and label smoothing."""
    model = dtfd().double()
    parts, labels = features(12, D, dtype=torch.float64).split([1, 3, 8]), torch.tensor([2, 0, 1])
    extra = {"class_weights": torch.tensor([1.0, 2.0, 5.0]), "label_smoothing": 0.1}
    for keywords in ({}, extra):
        together = model.loss(model(PackedBags(torch.cat(parts), (1, 3, 8))), labels, **keywords)
        apart = [model.loss(model(part), label, **keywords) for part, label in zip(parts, labels.split(1), strict=True)]
        assert difference(together, torch.stack(apart).mean()) < 1e-12
    plain = model.loss(model(parts[1]), labels[1:2])
    doubled = model.loss(model(parts[1]), labels[1:2], class_weights=torch.tensor([2.0, 1.0, 1.0]))
    assert difference(doubled, 2 * plain) < 1e-12


def test_one_logit_takes_labels_of_any_kind() -> None:
    model, x = dtfd(num_classes=1).double(), features(2, 7, D, dtype=torch.float64)
    output = model(x)
    bag, pseudo = output.logits[:, 0], output["pseudo_logits"][:, 0].reshape(2, 5)
    labels = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    log_p = torch.nn.functional.logsigmoid
    expected = -(labels * log_p(pseudo) + (1 - labels) * log_p(-pseudo)).mean()
    expected -= (labels[:, 0] * log_p(bag) + (1 - labels[:, 0]) * log_p(-bag)).mean()
    for kind in (torch.long, torch.float32):
        assert difference(model.loss(output, labels[:, 0].to(kind)), expected) < 1e-12


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown distillation 'min': choose one of afs, maxs, maxmins, mas"):
        qgmil.create_model("dtfd", in_dim=D, num_classes=2, distillation="min")
    with pytest.raises(ConfigError, match="pseudo_bags must be a whole number of at least 1, got 0"):
        qgmil.create_model("dtfd", in_dim=D, num_classes=2, pseudo_bags=0)
    with pytest.raises(ConfigError, match="shuffle must be true or false, got 'no'"):
        qgmil.create_model("dtfd", in_dim=D, num_classes=2, shuffle="no")
    assert dtfd(distillation="AFS").distillation == "afs"
