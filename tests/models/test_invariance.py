"""What every aggregator promises, whatever its mathematics: run over all registered names."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import D, difference, features, small_model
from torch import Tensor

import qgmil
from qgmil.bags.bag import Bag, PackedBags
from qgmil.models.base import Aggregator
from qgmil.models.registry import model_options

every_model = pytest.mark.parametrize("name", qgmil.list_models())
sizes_of_bags = st.lists(st.integers(1, 12), min_size=1, max_size=4)
seeds = st.integers(0, 2**16)
quick = settings(max_examples=12)
EXACT = 1e-10  # float64


@functools.cache
def double_model(name: str) -> Aggregator:
    return small_model(name).double()


def bag(size: int, seed: int) -> Tensor:
    return features(size, D, seed=seed, dtype=torch.float64)


@every_model
@quick
@given(size=st.integers(1, 30), seed=seeds)
def test_order_of_instances_does_not_matter(name: str, size: int, seed: int) -> None:
    model = double_model(name)
    if not model.permutation_invariant:
        pytest.skip("the original depends on the order, and the class says so")
    x, order = bag(size, seed), torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    a, b = model(x, return_attention=True), model(x[order], return_attention=True)
    assert difference(a.logits, b.logits) < EXACT
    assert difference(a.embedding, b.embedding) < EXACT
    if a.attention is not None:
        assert difference(a.attention[order], b.attention) < EXACT


@every_model
@quick
@given(data=st.data(), seed=seeds, junk=st.sampled_from([float("nan"), float("inf"), -1e300, 1e6]))
def test_padding_changes_nothing(name: str, data: st.DataObject, seed: int, junk: float) -> None:
    """Valid instances may be anywhere in the row, not only at its start."""
    model = double_model(name)
    length = data.draw(st.integers(1, 10))
    rows = st.lists(st.booleans(), min_size=length, max_size=length).filter(any)
    mask = torch.tensor(data.draw(st.lists(rows, min_size=1, max_size=3)))
    x = features(*mask.shape, D, seed=seed, dtype=torch.float64)
    dirty = x.masked_fill(~mask[..., None], junk)
    output = model(dirty, mask, return_attention=True)
    for b, valid in enumerate(mask):
        alone = model(x[b, valid], return_attention=True)
        assert difference(output.logits[b], alone.logits[0]) < EXACT
        if output.attention is not None:
            assert difference(output.attention[b, valid], alone.attention) < EXACT
            assert not output.attention[b, ~valid].any()


@every_model
@quick
@given(sizes=sizes_of_bags, seed=seeds)
def test_a_batch_gives_what_its_bags_give(name: str, sizes: list[int], seed: int) -> None:
    """Outputs, and the gradients of inputs and weights."""
    model = double_model(name)
    labels = torch.arange(len(sizes)) % model.num_classes

    def run(x: Tensor, sizes: list[int], labels: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        x = x.clone().requires_grad_()
        output = model(PackedBags(x, tuple(sizes)), return_attention=True)
        loss = model.loss(output, labels) * len(sizes)
        weights = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, [x, *weights], allow_unused=True)
        kept = [g if g is not None else torch.zeros_like(w) for g, w in zip(grads, [x, *weights], strict=True)]
        attention = [] if output.attention is None else [output.attention]
        return [output.logits, output.embedding, *attention], kept[0], kept[1:]

    x = bag(sum(sizes), seed)
    together = run(x, sizes, labels)
    apart = [run(part, [len(part)], label) for part, label in zip(x.split(sizes), labels.split(1), strict=True)]
    for i, value in enumerate(together[0]):
        assert difference(value, torch.cat([one[0][i] for one in apart])) < EXACT
    assert difference(together[1], torch.cat([one[1] for one in apart])) < EXACT
    for i, gradient in enumerate(together[2]):
        expected = torch.stack([one[2][i] for one in apart]).sum(0)
        assert difference(gradient, expected) < EXACT * max(1.0, float(expected.abs().max()))


@every_model
@quick
@given(sizes=sizes_of_bags, seed=seeds)
def test_all_layouts_agree(name: str, sizes: list[int], seed: int) -> None:
    model = double_model(name)
    x = bag(sum(sizes), seed)
    parts = x.split(sizes)
    packed = model(PackedBags(x, tuple(sizes)), return_attention=True)
    length = max(sizes) + 2
    dense = torch.full((len(sizes), length, D), float("nan"), dtype=x.dtype)
    mask = torch.zeros(len(sizes), length)
    for b, part in enumerate(parts):
        dense[b, : len(part)], mask[b, : len(part)] = part, 1
    nested = torch.nested.nested_tensor(list(parts), layout=torch.jagged)
    others = {
        "dense": model(dense, mask, return_attention=True),
        "nested": model(nested, return_attention=True),
        "list of Bag": model([Bag(part) for part in parts], return_attention=True),
        "tuple of Bag": model(tuple(Bag(part) for part in parts), return_attention=True),
    }
    if len(sizes) == 1:
        others["Bag"] = model(Bag(x), return_attention=True)
        others["matrix"] = model(x, return_attention=True)
        others["batch of one"] = model(x[None], return_attention=True)
        others["matrix with mask"] = model(dense[0], mask[0], return_attention=True)
    for layout, output in others.items():
        assert difference(output.logits, packed.logits) < EXACT, layout
        assert difference(output.embedding, packed.embedding) < EXACT, layout
    if packed.attention is None:
        assert all(output.attention is None for output in others.values())
        return
    assert packed.attention.shape == (sum(sizes),)
    assert others["dense"].attention.shape == mask.shape
    assert difference(others["dense"].attention[mask > 0], packed.attention) < EXACT
    assert others["nested"].attention.is_nested
    assert difference(torch.cat(others["nested"].attention.unbind()), packed.attention) < EXACT
    assert difference(others["list of Bag"].attention, packed.attention) < EXACT
    if len(sizes) == 1:
        assert others["Bag"].attention.shape == others["matrix"].attention.shape == (sizes[0],)
        assert others["batch of one"].attention.shape == (1, sizes[0])


@every_model
@quick
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3), seed=seeds)
def test_attention_is_a_distribution_over_each_bag(name: str, sizes: list[int], seed: int) -> None:
    model = double_model(name)
    attention = model(PackedBags(bag(sum(sizes), seed), tuple(sizes)), return_attention=True).attention
    assert (attention is not None) == model.has_attention
    if attention is not None:
        assert float(attention.detach().min()) >= 0
        for part in attention.split(sizes):
            assert abs(float(part.detach().sum()) - 1) < 1e-12


@every_model
def test_asking_for_attention_changes_nothing_else(name: str) -> None:
    model, x = small_model(name), features(2, 5, D)
    without, having = model(x), model(x, return_attention=True)
    assert without.attention is None
    assert torch.equal(without.logits, having.logits)
    assert torch.equal(without.embedding, having.embedding)


@every_model
def test_output_is_also_a_mapping(name: str) -> None:
    output = small_model(name)(features(2, 5, D), return_attention=True)
    assert output.logits.shape == (2, 3)
    assert output.embedding.ndim == 2 and len(output.embedding) == 2
    assert output["logits"] is output.logits
    assert output["embedding"] is output.embedding
    assert output["attention"] is output.attention
    with pytest.raises(KeyError, match="nothing"):
        output["nothing"]


@every_model
def test_without_dropout_training_is_evaluation(name: str) -> None:
    off = {option: 0.0 for option in model_options(name) if option.endswith("dropout")}
    model, x = small_model(name, **off), features(2, 9, D)
    expected = model(x).logits
    assert difference(model.train()(x).logits, expected) < 1e-5


@every_model
def test_dropout_acts_in_training_only(name: str) -> None:
    if "dropout" not in model_options(name):
        pytest.skip("this aggregator has no dropout")
    model, x = small_model(name, dropout=0.5), features(1, 9, D)
    assert torch.equal(model(x).logits, model(x).logits)
    model.train()
    assert not torch.equal(model(x).logits, model(x).logits)


@every_model
def test_every_weight_gets_a_gradient(name: str) -> None:
    model = small_model(name)
    model(features(3, 9, D)).logits.square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A constant added to all scores of a softmax, or to all keys, changes nothing.
    assert all(key.endswith(("attention_weights.bias", "k_proj.bias")) for key in without)


@every_model
def test_the_wrong_width_names_both(name: str) -> None:
    with pytest.raises(qgmil.errors.BagError, match=rf"(?s)slide-1.*{D + 1}.*{D}"):
        small_model(name)(Bag(features(3, D + 1), bag_id="slide-1"))


@every_model
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_precision(name: str, dtype: torch.dtype) -> None:
    """Stores hold float16; the model computes in the precision of its weights."""
    model, x = small_model(name), features(2, 5, D, dtype=dtype)
    output = model(x)
    assert output.logits.dtype == torch.float32
    assert torch.equal(output.logits, model(x.float()).logits)
