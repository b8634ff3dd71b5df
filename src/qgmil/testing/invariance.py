"""Order, padding, layout and batch must not matter. The functions take any model and input; the checks, fixed ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qgmil.bags.bag import Bag, PackedBags
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput
from qgmil.testing.expect import expect, expect_close, expect_shape
from qgmil.testing.subject import Subject, features, labels_for


def order_does_not_matter(model: Aggregator, x: Tensor, order: Tensor) -> None:
    """Instances ``(N, D)`` permuted by `order` give the same bag, and attention permuted alike."""
    what = f"of a bag of {len(x)} instances in another order"
    a, b = model(x, return_attention=True), model(x[order], return_attention=True)
    expect_close(b.logits, a.logits, f"logits {what}")
    expect_close(b.embedding, a.embedding, f"embedding {what}")
    if a.attention is not None:
        expect_close(b.attention, a.attention[order], f"attention {what}")


def padding_is_ignored(model: Aggregator, x: Tensor, mask: Tensor, junk: float) -> None:
    """Dense ``(B, N, D)`` with `junk` wherever the mask is zero gives what the valid instances alone give."""
    valid = mask != 0
    output = model(x.masked_fill(~valid[..., None], junk), mask, return_attention=True)
    for b, rows in enumerate(valid):
        what = f"of bag {b} padded with {junk} to {len(rows)} instances (mask {rows.int().tolist()}, {mask.dtype})"
        alone = model(x[b, rows], return_attention=True)
        expect_close(output.logits[b], alone.logits[0], f"logits {what}")
        expect_close(output.embedding[b], alone.embedding[0], f"embedding {what}")
        if output.attention is not None:
            expect_close(output.attention[b, rows], alone.attention, f"attention {what}")
            padding = output.attention[b, ~rows]
            expect_close(padding, torch.zeros_like(padding), f"attention at the padding {what}")


def layouts_agree(model: Aggregator, x: Tensor, sizes: Sequence[int]) -> None:
    """Instances ``(T, D)`` of bags of the given sizes: packed, dense, nested and listed input give the same."""
    parts = x.split(list(sizes))
    packed = model(PackedBags(x, tuple(sizes)), return_attention=True)
    dense = x.new_full((len(sizes), max(sizes) + 2, x.shape[1]), float("nan"))
    mask = torch.zeros(dense.shape[:2], device=x.device)
    for b, part in enumerate(parts):
        dense[b, : len(part)], mask[b, : len(part)] = part, 1
    nested = torch.nested.nested_tensor(list(parts), layout=torch.jagged)
    # One output, and its attention brought back to packed.
    found = {
        "dense with a mask": (out := model(dense, mask, return_attention=True), _at(out, mask != 0)),
        "nested": (out := model(nested, return_attention=True), _unbound(out)),
        "a list of tensors": (out := model(list(parts), return_attention=True), out.attention),
        "a list of Bag": (out := model([Bag(part) for part in parts], return_attention=True), out.attention),
        "a tuple of Bag": (out := model(tuple(Bag(part) for part in parts), return_attention=True), out.attention),
    }
    if len(sizes) == 1:
        found |= {
            "one Bag": (out := model(Bag(x), return_attention=True), out.attention),
            "one matrix": (out := model(x, return_attention=True), out.attention),
            "a batch of one": (out := model(x[None], return_attention=True), _at(out, torch.ones(1, len(x)) != 0)),
            "one matrix with a mask": (out := model(dense[0], mask[0], return_attention=True), _at(out, mask[0] != 0)),
        }
    for layout, (output, attention) in found.items():
        what = f"of bags of {tuple(sizes)} instances given as {layout} (against packed)"
        expect_close(output.logits, packed.logits, f"logits {what}")
        expect_close(output.embedding, packed.embedding, f"embedding {what}")
        expect((attention is None) == (packed.attention is None), f"attention {what}: only one of the two has any")
        if packed.attention is not None:
            expect_close(attention, packed.attention, f"attention {what}")


def _at(output: BagOutput, valid: Tensor) -> Tensor | None:
    """Attention at the valid positions of dense input, whose shape it must have."""
    if output.attention is None:
        return None
    expect_shape(output.attention, tuple(valid.shape), "attention for dense input")
    return output.attention[valid]


def _unbound(output: BagOutput) -> Tensor | None:
    if output.attention is None:
        return None
    expect(output.attention.is_nested, "attention for a nested tensor is not nested")
    return torch.cat(output.attention.unbind())


def batch_is_its_bags(model: Aggregator, x: Tensor, sizes: Sequence[int], labels: Tensor) -> None:
    """Bags together and each alone: the same outputs, and the same gradients of inputs and weights.

    Args:
        model: without chance in its training.
        x: instances ``(T, D)``.
        sizes: of the bags.
        labels: ``(B,)`` class indices.
    """
    what = f"of a batch of bags of {tuple(sizes)} instances (against each bag alone)"
    names = ["the input", *(name for name, p in model.named_parameters() if p.requires_grad)]
    outputs, gradients = _outputs_and_gradients(model, x, sizes, labels)
    singles = [
        _outputs_and_gradients(model, part, [len(part)], label)
        for part, label in zip(x.split(list(sizes)), labels.split(1), strict=True)
    ]
    for i, (name, value) in enumerate(outputs.items()):
        expect_close(value, torch.cat([list(single[0].values())[i] for single in singles]), f"{name} {what}")
    for i, (name, gradient) in enumerate(zip(names, gradients, strict=True)):
        alone = [single[1][i] for single in singles]
        expected = torch.cat(alone) if i == 0 else torch.stack(alone).sum(0)
        expect_close(gradient, expected, f"gradient (of the sum of the losses) of {name} {what}")


def _outputs_and_gradients(
    model: Aggregator, x: Tensor, sizes: Sequence[int], labels: Tensor
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Outputs by name, and gradients of the summed loss: of the input first, then of the weights."""
    x = x.clone().requires_grad_()
    output = model(PackedBags(x, tuple(sizes)), return_attention=True)
    loss = model.loss(output, labels) * len(sizes)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    filled = [g if g is not None else torch.zeros_like(w) for g, w in zip(gradients, wanted, strict=True)]
    values = {"logits": output.logits, "embedding": output.embedding}
    if output.attention is not None:
        values["attention"] = output.attention
    return values, filled


def check_permutation(subject: Subject) -> None:
    """The order of instances does not matter, unless the class says `permutation_invariant = False`."""
    if not subject.cls.permutation_invariant:
        return
    model = subject.build().double()
    for order in ([1, 0], [4, 7, 0, 8, 2, 1, 6, 3, 5]):
        order_does_not_matter(model, subject.bag(len(order), dtype=torch.float64), torch.tensor(order))


def check_padding(subject: Subject) -> None:
    """What a mask excludes, even NaN, changes nothing; bool, int and float masks."""
    model = subject.build().double()
    rows = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]])
    x = features(*rows.shape, subject.in_dim, dtype=torch.float64)
    for junk, dtype in ((float("nan"), torch.bool), (float("inf"), torch.float32), (1e6, torch.int64)):
        padding_is_ignored(model, x, rows.to(dtype), junk)


def check_layouts(subject: Subject) -> None:
    """Packed, dense with a mask, nested, `Bag` and lists give the same, attention laid out as the input was."""
    model = subject.build().double()
    for sizes in ((3, 1, 5), (4,)):
        layouts_agree(model, subject.bag(sum(sizes), dtype=torch.float64), sizes)


def check_batch(subject: Subject) -> None:
    """A batch gives what its bags give alone: outputs and gradients, without chance and in training mode."""
    sizes = (4, 1, 7)
    for classes in subject.num_classes:
        model = subject.build(classes).double().train()
        x = subject.bag(sum(sizes), dtype=torch.float64)
        batch_is_its_bags(model, x, sizes, labels_for(len(sizes), classes))
