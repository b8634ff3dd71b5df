"""Steps of aggregators on a pretended CUDA device, in a process of their own: ``pretend.py LIBRARY``, JSON out.

Tensors are fake: they have shapes, dtypes and devices and no memory, so every operation checks that its arguments are
on one device, and the code for CUDA is what runs. Values, and whether kernels take these shapes, are for a real device.
"""

from __future__ import annotations

import copy
import ctypes
import json
import sys
from typing import Any

ctypes.CDLL(sys.argv[1])  # before PyTorch looks for devices

import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode  # noqa: E402

import qgmil  # noqa: E402
from qgmil.models.base import Aggregator  # noqa: E402
from qgmil.planning.tape import Tape  # noqa: E402
from qgmil.planning.trace import _move  # noqa: E402

SIZES, CLASSES = (1, 199, 500), 3


class Names(Tape):
    """The operations that ran. What depends on values, which fake tensors do not have, is assumed as for planning."""

    def __init__(self) -> None:
        super().__init__(fake=True, device="cuda", sizes=SIZES)
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(str(func._overloadpacket))
        return super().__torch_dispatch__(func, types, args, kwargs)


def step(model: Aggregator, dtype: torch.dtype | None) -> dict[str, Any]:
    """A training step and a prediction with attention."""
    shapes, names = FakeTensorMode(), Names()
    with FakeCopyMode(shapes):
        model = copy.deepcopy(model)
    with shapes:
        _move(model, "cuda")
    with shapes, names:
        labels = torch.zeros(len(SIZES), dtype=torch.long, device="cuda")
        bags = qgmil.PackedBags(torch.zeros(sum(SIZES), model.in_dim, device="cuda"), SIZES, labels)
        autocast = torch.autocast("cuda", dtype=dtype or torch.bfloat16, enabled=dtype is not None)
        with autocast:
            loss = model.train().loss(model(bags), labels)
        if loss.requires_grad:
            loss.backward()
        with autocast, torch.inference_mode():
            output = model.eval()(bags, return_attention=True)
    made = [loss, output.logits, *(p.grad for p in model.parameters() if p.grad is not None)]
    made += [] if output.attention is None else [output.attention]
    return {"devices": sorted({x.device.type for x in made}), "operations": sorted(names.seen)}


def main() -> None:
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    found: dict[str, Any] = {}
    wanted = [(name, name, {}) for name in qgmil.list_models()] + [("qgmil, clusters", "qgmil", {"key_clusters": 64})]
    for label, name, options in wanted:
        for kind, dtype in (("32", None), ("bf16", torch.bfloat16)):
            model = qgmil.create_model(name, in_dim=64, num_classes=CLASSES, standardize=True, **options)
            try:
                found[f"{label} {kind}"] = step(model, dtype)
            except Exception as error:
                found[f"{label} {kind}"] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
