"""Comparisons that, where they fail, say what was compared and both values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qgmil.errors import ContractError

#: Allowed difference in float64, relative to the largest value: rounding, and nothing else.
EXACT = 1e-10


def expect(condition: object, message: str) -> None:
    """Raise `ContractError` with the message unless the condition holds."""
    if not condition:
        raise ContractError(message)


def expect_shape(tensor: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Raise `ContractError` naming both shapes unless they are the same."""
    expect(tuple(tensor.shape) == shape, f"{what}: shape is {tuple(tensor.shape)} but must be {shape}")


def expect_close(got: Tensor, want: Tensor, what: str, tolerance: float = EXACT) -> None:
    """Raise `ContractError` unless two tensors agree; the message names the place of the largest difference.

    Args:
        got, want: tensors of one shape, any dtype and device.
        what: which values of which input.
        tolerance: allowed difference, relative to the largest wanted value where that is above 1.
    """
    expect_shape(got, tuple(want.shape), what)
    a, b = got.detach().cpu().double(), want.detach().cpu().double()
    if a.numel() == 0 or bool((a == b).all()):
        return
    differences = (a - b).abs().nan_to_num(nan=torch.inf)
    worst = int(differences.argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(worst), a.shape)]
    allowed = tolerance * max(1.0, float(b.abs().max().nan_to_num(nan=0.0, posinf=0.0)))
    value, wanted = a.flatten()[worst].item(), b.flatten()[worst].item()
    expect(
        differences.flatten()[worst] <= allowed,
        f"{what}: entry {place} is {value:.9g} but must be {wanted:.9g} (allowed difference {allowed:.2g})",
    )


def expect_equal(got: Tensor, want: Tensor, what: str) -> None:
    """As `expect_close`, to the last bit."""
    expect_close(got, want, what, 0.0)


def expect_finite(tensor: Tensor, what: str) -> None:
    """Raise `ContractError` naming the first entry that is NaN or infinite."""
    bad = (~tensor.detach().isfinite()).nonzero()
    if len(bad):
        place = [int(i) for i in bad[0]]
        value = tensor.detach()[tuple(place)].item() if place else tensor.item()
        raise ContractError(f"{what}: entry {place} is {value} but must be finite ({len(bad)} entries are not)")


def expect_finite_gradients(model: nn.Module, what: str) -> None:
    """Raise `ContractError` naming the first parameter with a gradient that is NaN or infinite."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            expect_finite(parameter.grad, f"gradient of {name} {what}")
