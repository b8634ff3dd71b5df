"""Gradients, chance, the loss, and whether the model can learn at all."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from qgmil.bags.bag import Bag, PackedBags
from qgmil.models.base import Aggregator, ClosedForm
from qgmil.testing.expect import expect, expect_close, expect_equal, expect_finite
from qgmil.testing.subject import Subject, features, labels_for

#: Steps that a model has to overfit, and the cross-entropy of the logits it must reach: all bags right, and sure.
STEPS, LEARNT = 300, 0.1


def check_gradients(subject: Subject) -> None:
    """Every parameter gets a finite gradient through `loss` that is not all zero, but for `without_gradient`."""
    for classes in subject.num_classes:
        model = subject.build(classes).train()
        labels = labels_for(max(3, classes), classes)  # at least one bag of each class
        sizes = tuple(range(7, 7 + len(labels)))
        what = f"by the loss of bags of {sizes} instances, num_classes={classes}"
        model.loss(model(subject.bags(*sizes)), labels).backward()
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            dead = name.endswith(subject.cls.without_gradient)
            expect(
                dead or parameter.grad is not None, f"{name} gets no gradient {what}: the loss does not depend on it"
            )
            if parameter.grad is not None:
                expect_finite(parameter.grad, f"gradient of {name} {what}")
                expect(dead or parameter.grad.any(), f"gradient of {name} {what} is zero everywhere")


def check_noiseless_training(subject: Subject) -> None:
    """Without chance (the options in `noiseless`), training mode predicts as evaluation mode does."""
    model, bags = subject.build().double(), subject.bags(5, 1, 9, dtype=torch.float64)
    expected = model(bags)
    found = model.train()(bags)
    what = f"of bags of (5, 1, 9) instances in training mode with {subject.noiseless} (against evaluation mode)"
    expect_close(found.logits, expected.logits, f"logits {what}")
    expect_close(found.embedding, expected.embedding, f"embedding {what}")


def check_evaluation(subject: Subject) -> None:
    """In evaluation mode nothing is random, no random number is drawn, and neither weights nor features change."""
    model, bags = subject.build(noiseless=False), subject.bags(5, 1, 9)
    before, state = bags.features.clone(), {k: v.clone() for k, v in model.state_dict().items()}
    chance = torch.random.get_rng_state()
    first = model(bags, return_attention=True)
    drawn = not torch.equal(chance, torch.random.get_rng_state())
    expect_equal(bags.features, before, "features of the bags after the forward pass (against before it)")
    for key, value in model.state_dict().items():
        expect_equal(value, state[key], f"{key} after a forward pass in evaluation mode (against before it)")
    torch.manual_seed(1)
    second = model(bags, return_attention=True)
    for name in ("logits", "embedding", "attention"):
        if first[name] is not None:
            expect_equal(second[name], first[name], f"{name} of the same bags a second time in evaluation mode")
    expect(not drawn, "evaluation mode draws random numbers: how many bags are evaluated would change the training")


def check_chance(subject: Subject) -> None:
    """Each option in `noiseless` that is not at its noiseless value makes training mode depend on the seed."""
    bags = subject.bags(12, 15)
    for option, off in subject.noiseless.items():
        on = 0.5 if option.endswith("dropout") else {**subject.defaults, **subject.options}[option]
        if on == off:
            continue
        changed: dict[str, Any] = {option: on}
        model = subject.build(**changed).train()
        runs = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            output = model(bags)
            runs.append([output.logits, output.embedding, model.loss(output, labels_for(2, subject.classes))])
        same = all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
        expect(not same, f"{option}={on} changes nothing in training mode: logits under two seeds are {runs[0][0]}")


def check_seeds(subject: Subject) -> None:
    """The same seed gives the same weights and the same training step; another seed other weights."""
    bags, labels = subject.bags(8, 11), labels_for(2, subject.classes)

    def step(seed: int) -> dict[str, Tensor]:
        model = subject.build(seed=seed, noiseless=False, randomised=False)
        values = {f"initial {key}": value.clone() for key, value in model.state_dict().items()}
        loss = model.loss(model.train()(bags), labels)
        loss.backward()
        gradients = {f"gradient of {k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
        return {**values, "loss": loss.detach(), **gradients}

    first, again, other = step(3), step(3), step(4)
    for name, value in first.items():
        expect_equal(again[name], value, f"{name} under seed 3 a second time (against the first)")
    if not subject.closed_form:
        moved = any(not torch.equal(value, other[name]) for name, value in first.items() if name.startswith("initial"))
        expect(moved, "initial weights under seeds 3 and 4 are the same: do not seed inside the model")


def check_overfits(subject: Subject) -> None:
    """A few AdamW steps (or the closed-form fit) get four separable bags right."""
    for classes in {1 if 1 in subject.num_classes else subject.classes, subject.classes}:
        bags, labels = _separable(subject, classes)
        model = subject.build(classes, randomised=False)
        if subject.closed_form:
            _fits(subject, model, bags, labels)
            continue
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        first = cross_entropy = float("nan")
        for _ in range(STEPS):
            output = model.train()(bags)
            cross_entropy = float(Aggregator.loss(model, output, labels).detach())
            first = cross_entropy if first != first else first
            if cross_entropy < LEARNT:
                break
            optimizer.zero_grad()
            model.loss(output, labels).backward()
            optimizer.step()
        what = f"after {STEPS} AdamW steps (lr 5e-3) on {len(labels)} separable bags, num_classes={classes}"
        expect(
            cross_entropy < LEARNT,
            f"cross-entropy {what}: {cross_entropy:.4g} (from {first:.4g}) but must be below {LEARNT}",
        )
        _all_right(model.eval()(bags).logits, labels, what)


def _separable(subject: Subject, classes: int) -> tuple[PackedBags, Tensor]:
    """Bags that a linear function of the mean tells apart, one direction a class."""
    labels = labels_for(max(4, classes), classes)
    centres = 3.0 * features(int(labels.max()) + 1, subject.in_dim, seed=5)
    sizes = tuple(6 + i % 3 for i in range(len(labels)))
    noise = 0.3 * features(sum(sizes), subject.in_dim, seed=6)
    return PackedBags(noise + centres[labels].repeat_interleave(torch.tensor(sizes), dim=0), sizes, labels), labels


def _fits(subject: Subject, model: Aggregator, bags: PackedBags, labels: Tensor) -> None:
    names = [f"class {i}" for i in range(int(labels.max()) + 1)]
    listed = [Bag(x, label=names[y]) for x, y in zip(bags.unpack(bags.features), labels.tolist(), strict=True)]
    cast(ClosedForm, model).fit_closed_form(iter(listed), names, seed=0)
    logits = model.eval()(bags).logits
    what = f"after the closed-form fit of {len(labels)} separable bags, num_classes={model.num_classes}"
    expect_finite(logits, f"logits {what}")
    shares = torch.bincount(labels).double() / len(labels)
    nothing = float(-(shares * shares.log()).sum())  # that of the class frequencies
    found = float(Aggregator.loss(model, model(bags), labels).detach())
    expect(
        found <= nothing + 1e-4,
        f"cross-entropy {what}: {found:.6g} but must be at most that of the class frequencies, {nothing:.6g}",
    )
    if not subject.cls.is_control:
        _all_right(logits, labels, what)
    fitted = {k: v.clone() for k, v in model.state_dict().items()}
    cast(ClosedForm, model).fit_closed_form(iter(listed), names, seed=0)
    for key, value in model.state_dict().items():
        expect_equal(value, fitted[key], f"{key} fitted a second time on the same bags (against the first)")


def _all_right(logits: Tensor, labels: Tensor, what: str) -> None:
    said = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
    expect(torch.equal(said, labels), f"predictions {what} are {said.tolist()} but must be {labels.tolist()}")
