"""Order, padding, layout and batch do not matter, whatever the bags: the contract's comparisons on drawn input."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import D, features, small_model
from torch import Tensor

import qgmil
from qgmil.models.base import Aggregator
from qgmil.models.registry import find_entry, model_options
from qgmil.testing.invariance import batch_is_its_bags, layouts_agree, order_does_not_matter, padding_is_ignored
from qgmil.testing.outputs import attention_is_a_distribution

every_model = pytest.mark.parametrize("name", qgmil.list_models())
sizes_of_bags = st.lists(st.integers(1, 12), min_size=1, max_size=4)
seeds = st.integers(0, 2**16)
quick = settings(max_examples=12)


@functools.cache
def double_model(name: str) -> Aggregator:
    """In evaluation mode, and without chance in training."""
    known = model_options(name)
    off = {option: value for option, value in find_entry(name).cls.noiseless.items() if option in known}
    return small_model(name, **off).double()


def bag(size: int, seed: int) -> Tensor:
    return features(size, D, seed=seed, dtype=torch.float64)


@pytest.mark.parametrize("name", [n for n in qgmil.list_models() if find_entry(n).cls.permutation_invariant])
@quick
@given(size=st.integers(1, 30), seed=seeds)
def test_order_of_instances_does_not_matter(name: str, size: int, seed: int) -> None:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    order_does_not_matter(double_model(name), bag(size, seed), order)


@every_model
@quick
@given(data=st.data(), seed=seeds, junk=st.sampled_from([float("nan"), float("inf"), -1e300, 1e6]))
def test_padding_changes_nothing(name: str, data: st.DataObject, seed: int, junk: float) -> None:
    """Valid instances may be anywhere in the row, not only at its start."""
    length = data.draw(st.integers(1, 10))
    rows = st.lists(st.booleans(), min_size=length, max_size=length).filter(any)
    mask = torch.tensor(data.draw(st.lists(rows, min_size=1, max_size=3)))
    padding_is_ignored(double_model(name), features(*mask.shape, D, seed=seed, dtype=torch.float64), mask, junk)


@every_model
@quick
@given(sizes=sizes_of_bags, seed=seeds, training=st.booleans())
def test_a_batch_gives_what_its_bags_give(name: str, sizes: list[int], seed: int, training: bool) -> None:
    """Outputs, and the gradients of inputs and weights."""
    model = double_model(name).train(training)
    batch_is_its_bags(model, bag(sum(sizes), seed), sizes, torch.arange(len(sizes)) % model.num_classes)
    model.eval()


@every_model
@quick
@given(sizes=sizes_of_bags, seed=seeds)
def test_all_layouts_agree(name: str, sizes: list[int], seed: int) -> None:
    layouts_agree(double_model(name), bag(sum(sizes), seed), sizes)


@every_model
@quick
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3), seed=seeds)
def test_attention_is_a_distribution_over_each_bag(name: str, sizes: list[int], seed: int) -> None:
    attention_is_a_distribution(double_model(name), bag(sum(sizes), seed), tuple(sizes))


def test_output_is_also_a_mapping() -> None:
    output = small_model()(features(2, 5, D), return_attention=True)
    assert output["logits"] is output.logits
    assert output["embedding"] is output.embedding
    assert output["attention"] is output.attention
    with pytest.raises(KeyError, match="nothing"):
        output["nothing"]
