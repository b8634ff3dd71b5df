"""Compiling what works row by row, for any number of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from qgmil.layers.linear import next_size

#: The mode of `torch.compile` that records CUDA graphs.
CUDA_GRAPHS = "reduce-overhead"


def compile_rows(function: Callable[[Tensor], Any], mode: str, **options: Any) -> Callable[[Tensor], Any]:
    """`torch.compile` of a function from rows ``(T, dim)`` to rows, or to several tensors of T rows.

    What is compiled serves any T. CUDA graphs do not: they are recorded anew for every T, which costs more than it
    saves where bags differ. With them the last row is repeated, up to one of few numbers (`next_size`).

    Args:
        function: works row by row, so that what it makes of the rows that are added can be dropped.
        mode: of `torch.compile`.
        options: others of `torch.compile`.
    """

    def rows_of(x: Tensor) -> Any:
        return function(x)

    # What was compiled is kept, up to a limit, for each code object: without this all functions would share one.
    rows_of.__code__ = rows_of.__code__.replace()
    compiled: Callable[[Tensor], Any] = torch.compile(rows_of, mode=mode, **options)

    def call(x: Tensor) -> Any:
        if torch.compiler.is_compiling():  # as part of something larger
            return function(x)
        rows = x.shape[0]
        extra = next_size(rows) - rows if mode == CUDA_GRAPHS else 0
        x = torch.cat((x, x[-1:].expand(extra, -1))) if extra else x.view_as(x)
        # Not `dynamic=True`: that makes every number dynamic, eps and p too, which would be read from CPU tensors.
        torch._dynamo.maybe_mark_dynamic(x, 0)
        made = compiled(x)
        return tree_map_only(Tensor, lambda y: y[:rows], made) if extra else made

    return call


def compile_module(module: nn.Module, mode: str, **options: Any) -> None:
    """`compile_rows` of a module's call; as `torch.nn.Module.compile`, it changes no weight's name."""
    module._compiled_call_impl = compile_rows(module._call_impl, mode, **options)
