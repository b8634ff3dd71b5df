"""The loss: a mean over bags that honours class weights and label smoothing."""

from __future__ import annotations

import torch
from torch import Tensor

from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput
from qgmil.testing.expect import expect, expect_close, expect_finite, expect_shape
from qgmil.testing.subject import Subject, labels_for


def check_loss(subject: Subject) -> None:
    """A finite number, the mean over bags, with any class weights and label smoothing; both count as they should."""
    sizes = (6, 1, 9, 4)
    for classes in subject.num_classes:
        model = subject.build(classes).double().train()
        bags, labels = subject.bags(*sizes, dtype=torch.float64), labels_for(len(sizes), classes)
        what = f"of bags of {sizes} instances, labels {labels.tolist()}, num_classes={classes}"
        output = model(bags)
        count = max(2, classes)
        plain = model.loss(output, labels)
        expect_close(
            model.loss(output, labels, class_weights=torch.ones(count)),
            plain,
            f"loss {what} with class weights of 1 (against none)",
        )
        if classes == 1:
            expect_close(model.loss(output, labels.double()), plain, f"loss {what} with float labels (against whole)")
        mean_over_bags(model, bags.unpack(bags.features), output, labels, what)
        options_count(model, bags.unpack(bags.features), labels)


def mean_over_bags(model: Aggregator, bags: tuple[Tensor, ...], output: BagOutput, labels: Tensor, what: str) -> None:
    """The loss of the batch is the mean of the bags' own, with and without weights and smoothing."""
    alone = [model(bag) for bag in bags]
    for smoothing in (0.0, 0.2):
        for weights in (None, 0.5 + torch.arange(max(2, model.num_classes))):
            said = None if weights is None else weights.tolist()
            given = f"loss {what} with class_weights={said}, label_smoothing={smoothing}"
            loss = model.loss(output, labels, class_weights=weights, label_smoothing=smoothing)
            expect_shape(loss, (), given)
            expect_finite(loss, given)
            singles = [
                model.loss(one, label, class_weights=weights, label_smoothing=smoothing)
                for one, label in zip(alone, labels.split(1), strict=True)
            ]
            expect_close(loss, torch.stack(singles).mean(), f"{given} (against the mean over the bags alone)")


def options_count(model: Aggregator, bags: tuple[Tensor, ...], labels: Tensor) -> None:
    """Smoothing changes a bag's loss; its bag term grows in proportion to the weight of its class and of no other."""
    count = max(2, model.num_classes)
    for bag, label in zip(bags, labels.split(1), strict=True):
        output, others = model(bag), torch.arange(count) != label
        what = f"loss of a bag of {len(bag)} instances of class {int(label)}, num_classes={model.num_classes}"

        def loss(weight: float, rest: float, *, output: BagOutput = output, others: Tensor = others,
                 label: Tensor = label, smoothing: float = 0.0) -> Tensor:  # fmt: skip
            weights = torch.where(others, rest, weight)
            return model.loss(output, label, class_weights=weights, label_smoothing=smoothing)

        one, two, three = (loss(weight, 1.0) for weight in (1.0, 2.0, 3.0))
        smoothed = model.loss(output, label, label_smoothing=0.2)
        expect(not torch.equal(one, smoothed), f"{what} is {one.item():.9g} with and without label_smoothing=0.2")
        expect(not torch.equal(one, two), f"{what} is {one.item():.9g} whether its class weighs 1 or 2")
        expect_close(three - two, two - one, f"growth of the {what} as its class's weight goes from 2 to 3 (1 to 2)")
        expect_close(loss(1.0, 5.0), one, f"{what} with the other classes weighing 5 (against 1)")
        expect_close(
            loss(1.0, 5.0, smoothing=0.2),
            smoothed,
            f"{what} with label_smoothing=0.2 and the other classes weighing 5 (against 1)",
        )
