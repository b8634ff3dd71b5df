"""SwiGLU in pieces of rows, with a backward pass that recomputes the hidden product instead of keeping it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Rows of a piece: enough for a matrix product to run at its full rate, few enough that the hidden activations of a
#: piece stay in a CPU's cache, or are small beside a GPU's memory.
ROWS = {"cpu": 2048}
ROWS_ELSEWHERE = 32768


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """``W_down(silu(W_gate x) * W_up x)`` (Shazeer 2020, 2002.05202).

    For the backward pass two hidden tensors are kept, where the plain formula keeps four. Without gradients none is,
    and hidden memory does not grow with the rows.

    Args:
        x: ``(T, dim)`` in the dtype to compute in.
        gate, up: ``(hidden, dim)``, converted to the dtype of x; their gradients keep the weights' own dtype.
        down: ``(dim, hidden)``.
    """
    if not torch.is_grad_enabled():
        return _without_gradients(x, *(w.to(x.dtype) for w in (gate, up, down)))
    out: Tensor = _SwiGLU.apply(x, gate, up, down)
    return out


def _without_gradients(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        out = x.new_empty((x.shape[0], down.shape[0]))
        for rows in _pieces(x):
            part = x[rows]
            torch.mm(F.silu(part @ gate.T).mul_(part @ up.T), down.T, out=out[rows])
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        ctx.dtypes = tuple(w.dtype for w in (gate, up, down))
        gate, up, down = (w.to(x.dtype) for w in (gate, up, down))
        g, u = (x.new_empty((x.shape[0], gate.shape[0])) for _ in range(2))
        out = x.new_empty((x.shape[0], down.shape[0]))
        with torch.autocast(x.device.type, enabled=False):
            for rows in _pieces(x):
                torch.mm(x[rows], gate.T, out=g[rows])
                torch.mm(x[rows], up.T, out=u[rows])
                torch.mm(F.silu(g[rows]).mul_(u[rows]), down.T, out=out[rows])
        ctx.save_for_backward(x, gate, up, down, g, u)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, gate, up, down, g, u = ctx.saved_tensors
        dx = torch.empty_like(x)
        weights = tuple(_Sum(w) for w in (gate, up, down))
        for rows in _pieces(x):
            gp, upart, dout = g[rows], u[rows], grad[rows]
            dhidden = dout @ down
            active = F.silu(gp)
            weights[2].add(dout, active * upart)
            dg = torch.ops.aten.silu_backward(dhidden * upart, gp)
            du = dhidden.mul_(active)
            weights[0].add(dg, x[rows])
            weights[1].add(du, x[rows])
            torch.mm(dg, gate, out=dx[rows])
            dx[rows].addmm_(du, up)
        dw = [total.value.to(dtype) for total, dtype in zip(weights, ctx.dtypes, strict=True)]
        return dx, dw[0], dw[1], dw[2]


class _Sum:
    """A weight's gradient over the pieces, in at least float32 where there are several."""

    def __init__(self, weight: Tensor) -> None:
        self.wide = torch.promote_types(weight.dtype, torch.float32)
        self.value: Tensor = weight.new_zeros(0)

    def add(self, grad: Tensor, x: Tensor) -> None:
        """Add ``grad^T x``."""
        if not self.value.numel():
            self.value = grad.T @ x
        elif self.wide == grad.dtype:
            self.value.addmm_(grad.T, x)
        else:
            self.value = self.value.to(self.wide).add_(grad.T @ x)


def _pieces(x: Tensor) -> Iterator[slice]:
    step = ROWS.get(x.device.type, ROWS_ELSEWHERE)
    for start in range(0, x.shape[0], step):
        yield slice(start, start + step)
