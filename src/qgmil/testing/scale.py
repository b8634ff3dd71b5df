"""Bags of every size and features of every scale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qgmil.models.base import Aggregator
from qgmil.testing.expect import expect, expect_finite, expect_finite_gradients
from qgmil.testing.subject import Subject, labels_for

#: Instances of the large bag, and of the one that its memory is compared with.
LARGE, SMALLER = 5_000, 1_000


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor that an operation gives, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.culprit = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.numel() > self.elements:
                self.elements, self.culprit = leaf.numel(), f"{func} of shape {tuple(leaf.shape)}"
        return result


def learns_finitely(model: Aggregator, x: Tensor, what: str) -> None:
    """Outputs, loss and gradients of one bag ``(N, D)`` are finite."""
    model.zero_grad()
    output = model(x, return_attention=True)
    for name in ("logits", "embedding", "attention"):
        if output[name] is not None:
            expect_finite(output[name], f"{name} {what}")
    loss = model.loss(output, labels_for(1, model.num_classes).to(x.device))
    expect_finite(loss, f"loss {what}")
    loss.backward()
    expect_finite_gradients(model, what)


def check_bag_sizes(subject: Subject) -> None:
    """Bags of 1, 2 and 7 instances, for every number of classes, with chance, in evaluation and in training."""
    for classes in subject.num_classes:
        model = subject.build(classes, noiseless=False)
        for training in (False, True):
            mode = "training" if training else "evaluation"
            for size in (1, 2, 7):
                what = f"of a bag of {size} instances in {mode} mode, num_classes={classes}"
                learns_finitely(model.train(training), subject.bag(size), what)


def check_feature_scales(subject: Subject) -> None:
    """Constant, zero and huge (1e4) features give finite outputs, losses and gradients."""
    model, x = subject.build(noiseless=False), subject.bag(9)
    inputs = {"constant": torch.ones_like(x), "zero": torch.zeros_like(x), "huge (1e4)": 1e4 * x}
    for training in (False, True):
        for kind, value in inputs.items():
            mode = "training" if training else "evaluation"
            learns_finitely(model.train(training), value, f"of a bag of 9 {kind} instances in {mode} mode")


def check_large_bag(subject: Subject) -> None:
    """A bag of 5,000 instances: finite forward and backward, and memory that grows with N, not with its square."""
    model = subject.build(noiseless=False).train()
    kept = {}
    for size in (SMALLER, LARGE):
        what = f"of a bag of {size} instances in training mode"
        with LargestTensor() as largest, kept_for_backward() as storages:
            learns_finitely(model, subject.bag(size), what)
        kept[size] = sum(storages.values())
    expect(
        largest.elements < LARGE**2,
        f"largest tensor {what}: {largest.elements} elements ({largest.culprit}) but must be fewer than "
        f"{LARGE}^2 = {LARGE**2}: memory must be linear in the bag",
    )
    growth, most = kept[LARGE] / max(kept[SMALLER], 1), 2 * LARGE // SMALLER
    expect(
        growth <= most,
        f"bytes kept for the backward pass {what}: {kept[LARGE]}, {growth:.1f} times those for {SMALLER}, but must be "
        f"at most {most} times: memory must be linear in the bag",
    )


@contextmanager
def kept_for_backward() -> Iterator[dict[int, int]]:
    """Bytes of each storage that is kept for the backward pass within, by its address."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield storages
