"""What a forward pass returns, and what it refuses."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from qgmil.bags.bag import Bag, PackedBags
from qgmil.errors import BagError
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput
from qgmil.testing.expect import expect, expect_close, expect_shape
from qgmil.testing.subject import Subject


def check_shapes(subject: Subject) -> None:
    """Shapes, types and names of the outputs, for every number of classes."""
    sizes = (4, 1, 6)
    bags = subject.bags(*sizes)
    for classes in subject.num_classes:
        what = f"of bags of {sizes} instances, num_classes={classes}"
        output = subject.build(classes)(bags, return_attention=True)
        expect(isinstance(output, BagOutput), f"output {what} is a {type(output).__name__} but must be a BagOutput")
        expect_shape(output.logits, (len(sizes), classes), f"logits {what}")
        embedding = tuple(output.embedding.shape)
        expect(
            len(embedding) == 2 and embedding[0] == len(sizes) and embedding[1] > 0,
            f"embedding {what}: shape is {embedding} but must be ({len(sizes)}, E)",
        )
        for name in ("logits", "embedding"):
            dtype = output[name].dtype
            expect(dtype == torch.float32, f"{name} {what} of a float32 model: dtype is {dtype} but must be float32")
        if output.attention is not None:
            expect_shape(output.attention, (sum(sizes),), f"attention {what}")
        for name, value in output.auxiliary.items():
            expect(isinstance(value, Tensor), f"auxiliary[{name!r}] {what} is a {type(value).__name__}, not a tensor")
            expect(output[name] is value, f"auxiliary[{name!r}] {what}: output[{name!r}] is another tensor")


def check_attention(subject: Subject) -> None:
    """Attention is there exactly if `has_attention`, is a distribution over each bag, and asking changes nothing."""
    for classes in subject.num_classes:
        model = subject.build(classes).double()
        for sizes in ((1,), (7, 1, 60)):
            attention_is_a_distribution(model, subject.bag(sum(sizes), seed=1, dtype=torch.float64), sizes)
    half = subject.build().bfloat16()(subject.bags(600), return_attention=True).attention
    if half is not None:
        # Added up in bfloat16, hundreds of weights would stop growing far from 1.
        what = "attention of 600 instances of a bfloat16 model"
        expect(half.dtype.itemsize >= 4, f"{what}: dtype is {half.dtype} but must be at least float32")
        expect_close(half.sum(), torch.tensor(1.0), f"sum of the {what}", 1e-4)


def attention_is_a_distribution(model: Aggregator, x: Tensor, sizes: tuple[int, ...]) -> None:
    """Attention over bags of the given sizes (instances ``(T, D)``, float64) sums to 1, and asking for it is free."""
    what = f"of bags of {sizes} instances, num_classes={model.num_classes}"
    bags = PackedBags(x, sizes)
    plain, asked = model(bags), model(bags, return_attention=True)
    expect(plain.attention is None, f"attention {what} is there although return_attention is False")
    expect("class_attention" not in plain.auxiliary, f"class_attention {what} is there although nobody asked")
    for name in ("logits", "embedding"):
        expect_close(asked[name], plain[name], f"{name} {what} with return_attention=True (against False)")
    has = asked.attention is not None
    expect(has == model.has_attention, f"attention {what}: has_attention is {model.has_attention} but there is {has=}")
    if asked.attention is None:
        return
    _distribution(asked.attention, sizes, f"attention {what}")
    by_class = asked.auxiliary.get("class_attention")
    if by_class is None:
        return
    expect(by_class.ndim == 2 and len(by_class) == sum(sizes), f"class_attention {what} has shape {by_class.shape}")
    for column in by_class.unbind(dim=1):
        _distribution(column, sizes, f"class_attention {what}")
    if by_class.shape[1] == model.num_classes:
        predicted = asked.logits.argmax(dim=1)
        parts = [part[:, c] for part, c in zip(by_class.split(sizes), predicted.tolist(), strict=True)]
        expect_close(asked.attention, torch.cat(parts), f"attention {what} (against that of the predicted class)")


def _distribution(attention: Tensor, sizes: tuple[int, ...], what: str) -> None:
    lowest = float(attention.detach().min())
    expect(lowest >= 0, f"{what}: the least weight is {lowest:.9g} but must be at least 0")
    sums = torch.stack([part.sum() for part in attention.split(sizes)])
    expect_close(sums, torch.ones_like(sums), f"sum over each bag of the {what}", 1e-9)


def check_errors(subject: Subject) -> None:
    """Features of the wrong width are a `BagError` that names both widths and the bag; so is an empty bag."""
    model, wrong = subject.build(), subject.in_dim + 1
    message = _refused(lambda: model(Bag(torch.ones(3, wrong), bag_id="slide-1")), f"features of width {wrong}")
    for part in ("slide-1", str(wrong), str(subject.in_dim)):
        expect(
            re.search(rf"(?<!\d){re.escape(part)}(?!\d)", message),
            f"the error for width {wrong} instead of {subject.in_dim} does not name {part}: {message!r}",
        )
    _refused(lambda: model(torch.ones(0, subject.in_dim)), "a bag of 0 instances")
    _refused(lambda: model(torch.ones(2, 3, subject.in_dim), torch.tensor([[1, 1, 0], [0, 0, 0]])), "an empty mask")


def _refused(call: object, what: str) -> str:
    assert callable(call)
    try:
        call()
    except BagError as error:
        return str(error)
    except Exception as error:
        expect(False, f"{what}: raised {type(error).__name__} ({error}) but must raise BagError")
    expect(False, f"{what}: accepted but must raise BagError")
    raise AssertionError
