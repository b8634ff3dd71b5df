"""Every layout becomes the same packed bags, and per-instance values go back the way the bags came."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qgmil.bags.bag import Bag, PackedBags
from qgmil.bags.packing import pack
from qgmil.errors import BagError

NAN = float("nan")
ROWS = torch.arange(15.0).reshape(5, 3)  # two bags: rows 0-1 and 2-4
VALUES = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.5])


def restored(bags: object, mask: Tensor | None = None) -> Tensor:
    packed, layout = pack(bags, mask)  # type: ignore[arg-type]
    assert torch.equal(packed.features, ROWS) and packed.sizes == (2, 3)
    return layout.restore(VALUES)


def test_packed_bags_and_lists_stay_packed() -> None:
    given = PackedBags(ROWS, (2, 3))
    assert pack(given)[0] is given
    assert torch.equal(restored(given), VALUES)
    assert torch.equal(restored([Bag(ROWS[:2], bag_id="a"), Bag(ROWS[2:], bag_id="b")]), VALUES)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_dense_bags_with_a_mask(dtype: torch.dtype) -> None:
    dense = torch.full((2, 4, 3), NAN)
    dense[0, [1, 3]], dense[1, :3] = ROWS[:2], ROWS[2:]
    mask = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 0]]).to(dtype)
    expected = torch.tensor([[0, 0.1, 0, 0.9], [0.2, 0.3, 0.5, 0]])
    assert torch.equal(restored(dense, mask), expected)
    layout = pack(dense, mask)[1]
    assert torch.equal(layout.restore(torch.stack([VALUES, -VALUES], 1))[..., 1], -expected)


def test_any_mask_that_is_not_zero_is_valid() -> None:
    dense = torch.full((2, 3, 3), NAN)
    dense[0, 1:], dense[1] = ROWS[:2], ROWS[2:]
    mask = torch.tensor([[0, 0.25, 1], [0.25, 1e-6, -1]])
    assert torch.equal(restored(dense, mask), torch.tensor([[0, 0.1, 0.9], [0.2, 0.3, 0.5]]))


def test_one_bag_with_a_mask_comes_back_as_it_was() -> None:
    bag = torch.full((5, 3), NAN)
    bag[[1, 2, 4]] = ROWS[:3]
    packed, layout = pack(bag, torch.tensor([0, 0.25, 1, 0, 1]))
    assert torch.equal(packed.features, ROWS[:3]) and packed.sizes == (3,)
    assert torch.equal(layout.restore(VALUES[:3]), torch.tensor([0, 0.1, 0.9, 0, 0.2]))
    packed, layout = pack(ROWS)
    assert packed.sizes == (5,) and torch.equal(layout.restore(VALUES), VALUES)


def test_dense_bags_without_a_mask() -> None:
    packed, layout = pack(ROWS[:4].reshape(2, 2, 3))
    assert torch.equal(packed.features, ROWS[:4]) and packed.sizes == (2, 2)
    assert torch.equal(layout.restore(VALUES[:4]), VALUES[:4].reshape(2, 2))


def test_jagged_bags() -> None:
    nested = torch.nested.nested_tensor([ROWS[:2], ROWS[2:]], layout=torch.jagged)
    back = restored(nested)
    assert [part.tolist() for part in back.unbind()] == [VALUES[:2].tolist(), VALUES[2:].tolist()]
    weighted = nested * back.unsqueeze(-1)  # the same ragged dimension
    assert torch.equal(weighted.values(), ROWS * VALUES[:, None])


def test_jagged_bags_with_holes() -> None:
    padded = torch.full((2, 5, 3), NAN)
    padded[0, 1:3], padded[1, 2:] = ROWS[:2], ROWS[2:]
    starts, lengths = torch.tensor([1, 2]), torch.tensor([2, 3])
    nested = torch.nested.narrow(padded, 1, starts, lengths, layout=torch.jagged)
    assert nested.lengths() is not None
    back = restored(nested)
    assert [part.tolist() for part in back.unbind()] == [VALUES[:2].tolist(), VALUES[2:].tolist()]
    assert torch.equal(back.offsets(), nested.offsets()) and torch.equal(back.lengths(), lengths)
    with pytest.raises(BagError, match="bag '0' is empty"):
        pack(torch.nested.narrow(padded, 1, starts, torch.tensor([0, 3]), layout=torch.jagged))


def test_gradients_pass_through_holes() -> None:
    padded = torch.ones(2, 3, 3, requires_grad=True)
    nested = torch.nested.narrow(padded, 1, torch.tensor([1, 0]), torch.tensor([2, 1]), layout=torch.jagged)
    packed, layout = pack(nested)
    torch.cat(layout.restore(packed.features.sum(1)).unbind()).sum().backward()
    assert padded.grad is not None
    assert padded.grad[..., 0].tolist() == [[0, 1, 1], [1, 0, 0]]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_other_nested_tensors_are_refused() -> None:
    jagged = torch.nested.nested_tensor([ROWS[:2], ROWS[2:]], layout=torch.jagged)
    refused = (
        (torch.nested.nested_tensor([ROWS[:2], ROWS[2:]], layout=torch.strided), "must be jagged: make it with"),
        (jagged.transpose(1, 2), "jagged along the instances"),
        (torch.nested.nested_tensor([VALUES[:2], VALUES[2:]], layout=torch.jagged), "must be .B, instances, D."),
        (torch.nested.nested_tensor([ROWS.long()], layout=torch.jagged), "torch.int64; convert"),
    )
    for nested, said in refused:
        with pytest.raises(BagError, match=said):
            pack(nested)
    with pytest.raises(BagError, match=r"a mask belongs to dense input.*a nested tensor has none"):
        pack(jagged, torch.ones(2, 3))


def test_masks_that_do_not_fit() -> None:
    for bags, mask in ((ROWS, torch.ones(4)), (ROWS[None], torch.ones(5)), (ROWS[None], torch.ones(1, 4))):
        with pytest.raises(BagError, match="the mask has shape"):
            pack(bags, mask)
    for bags, mask in ((ROWS, torch.ones(1, 5)), (PackedBags(ROWS, (5,)), torch.ones(5))):
        with pytest.raises(BagError, match="a mask belongs to dense input"):
            pack(bags, mask)
    for bags, mask in ((ROWS, torch.zeros(5)), (ROWS[None], torch.zeros(1, 5))):
        with pytest.raises(BagError, match="bag 0 of the batch is empty"):
            pack(bags, mask)


def test_a_list_of_matrices_is_a_batch() -> None:
    packed, _ = pack([torch.ones(3, 2), torch.zeros(1, 2)])
    assert packed.sizes == (3, 1)
    assert packed.bag_ids == ("0", "1")
    assert torch.equal(packed.features, torch.tensor([[1.0, 1], [1, 1], [1, 1], [0, 0]]))
    with pytest.raises(BagError, match="bag '1' has 4 features an instance but bag '0' has 2"):
        pack([torch.ones(3, 2), torch.ones(3, 4)])
