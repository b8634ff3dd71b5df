"""A tape of one computation: every block of memory that tensors take and give back, and the arithmetic."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

#: Operations that PyTorch compiles for every shape in bfloat16 on CPUs, and the bytes that it keeps of each.
COMPILED, COMPILED_BYTES = {aten.mm, aten.addmm, aten.bmm}, 2**20

#: Key of a block and its bytes; -1 bytes: it is given back.
Event = tuple[int, int]
FREED = -1


class Tape(TorchDispatchMode):
    """Records operations beneath autograd, so the backward pass as well, on fake tensors or on real ones.

    Fake tensors (`torch._subclasses.fake_tensor`) have shapes, strides and storages of a size, but no memory: a step on
    100,000 instances is traced in a second. Where a result depends on values that fake tensors do not have, the largest
    one is assumed: a mask selects everything, an index is the first.

    Args:
        fake: the tensors are fake. Operations that write into their arguments are then not even dispatched.
        device: kind of device that the tensors are on.
        sizes: instances of each bag, which variable-length attention does not show in its arguments' shapes.
    """

    def __init__(self, *, fake: bool, device: str = "cpu", sizes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.fake, self.device, self.sizes = fake, device, sizes
        self.events: list[Event] = []
        self.operations = 0
        self.flops = self.attention_flops = 0
        self.compiled: set[tuple[Any, ...]] = set()
        self._live: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._blocks = 0

    def keep(self, tensor: Tensor) -> int:
        """Note a tensor's memory, if it is not known yet; returns the key of its block."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._live:
            return self._live[address][1]
        self._blocks += 1
        key = self._blocks

        def gone(_: object) -> None:
            del self._live[address]
            self.events.append((key, FREED))

        self._live[address] = (weakref.ref(storage, gone), key)
        self.events.append((key, storage.nbytes()))
        return key

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        formula = FLOPS.get(func._overloadpacket)
        if formula is None and _is_composite(func, self.device):
            with self:
                return func.decompose(*args, **kwargs)
        out = self._run(func, args, kwargs)
        if formula is not None:
            self._count(func, int(formula(*args, **kwargs, out_val=out)))
        elif "_varlen_attn" in str(func):
            self._count(func, self._varlen_flops(func, args))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.keep(leaf)
        self._beside(func._overloadpacket, [x for x in args if isinstance(x, Tensor)])
        return out

    def _beside(self, packet: Any, args: list[Tensor]) -> None:
        """Memory that an operation takes beside its result and that shows in no tensor."""
        if self.device != "cpu" or not args or args[-1].dtype != torch.bfloat16:
            return
        if packet in COMPILED:
            self.compiled.add((packet, *(x.shape for x in args)))
        elif packet is aten._scaled_dot_product_flash_attention_for_cpu:  # lays keys and values out anew
            self._blocks += 1
            nbytes = sum(x.numel() * x.element_size() for x in args[1:3])
            self.events += [(self._blocks, nbytes), (self._blocks, FREED)]

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.fake:
            written = _written(func, args, kwargs)
            if written is not None:
                return written
        self.operations += 1
        if self.fake and func._overloadpacket in LARGEST:
            found = LARGEST[func._overloadpacket](*args, **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)

    def _count(self, func: Any, flops: int) -> None:
        self.flops += flops
        if func._overloadpacket in BATCHED or "attention" in str(func) or "attn" in str(func):
            self.attention_flops += flops

    def _varlen_flops(self, func: Any, args: tuple[Any, ...]) -> int:
        backward = "backward" in str(func)
        q = args[1 if backward else 0]
        forward = 4 * sum(n * n for n in self.sizes) * q.shape[1] * q.shape[2]
        return int(forward * (2.5 if backward else 1))


@functools.cache
def _is_composite(func: Any, device: str) -> bool:
    """Whether an operation has no kernel on the device, only others that it is made of.

    Autograd takes most of them apart; in inference mode they arrive whole.
    """
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    kernel = any(has(func.name(), key) for key in (device.upper(), "CompositeExplicitAutograd"))
    return not kernel and has(func.name(), "CompositeImplicitAutograd")


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The result of an operation that only writes into one of its arguments; None for any other."""
    schema = func._schema
    if not schema.is_mutable or torch.Tag.inplace_view in func.tags or len(schema.returns) != 1:
        return None
    out = kwargs.get("out")
    if isinstance(out, Tensor):
        return out if out.numel() else None  # an empty one is resized to what comes out
    returned = schema.returns[0].alias_info
    if not args or returned is None or not returned.is_write or not isinstance(args[0], Tensor):
        return None
    first = schema.arguments[0].alias_info
    return args[0] if first is not None and first.is_write and func.__name__.split(".")[0].endswith("_") else None


def _attention_flops(q: Tensor, k: Tensor, v: Tensor, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    batch, heads, queries, d = q.shape
    return 2 * batch * heads * queries * k.shape[2] * (d + v.shape[3])


def _attention_backward_flops(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> int:
    return _attention_flops(q, k, v) * 5 // 2


FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
#: Products of batches of matrices: attention, where it is not fused, and hardly anything else.
BATCHED = {aten.bmm, aten.baddbmm}


def _every_nonzero(x: Tensor) -> Tensor:
    return x.new_empty((x.numel(), x.ndim), dtype=torch.long)


def _every_masked(x: Tensor, mask: Tensor) -> Tensor:
    return x.new_empty(torch.broadcast_shapes(x.shape, mask.shape).numel())


def _first(x: Tensor) -> bool | int | float:
    if x.dtype == torch.bool:
        return False
    return 1.0 if x.is_floating_point() else 0


def _index(x: Tensor, indices: list[Tensor | None]) -> Tensor | None:
    """Indexing with masks, each of which selects everything."""
    masks = (torch.bool, torch.uint8)
    if not any(i is not None and i.dtype in masks for i in indices):
        return None
    every: list[Tensor | None] = []
    for i in indices:
        if i is None or i.dtype not in masks:
            every.append(i)
        else:
            every += [i.new_empty(i.numel(), dtype=torch.long)] * i.ndim
    return aten.index.Tensor(x, every)


def _every_unique(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    counts = x.new_empty(x.numel(), dtype=torch.long)
    return x.new_empty(x.numel()), torch.empty_like(x, dtype=torch.long), counts


def _bins(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    return x.new_empty(max(1, minlength), dtype=torch.long if weights is None else weights.dtype)


#: What operations give at most whose results depend on values; None: they do not, with these arguments.
LARGEST: dict[Any, Callable[..., Any]] = {
    aten.nonzero: _every_nonzero,
    aten.masked_select: _every_masked,
    aten._local_scalar_dense: _first,
    aten.index: _index,
    aten._unique2: _every_unique,
    aten.bincount: _bins,
}
