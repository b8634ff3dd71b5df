"""RRT-MIL against a reference written independently from the equations, with full score maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_rrt import rrt

import qgmil
from qgmil.bags.bag import PackedBags

EXACT = 1e-10


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from([1, 2, 3]))
    return {
        "num_classes": draw(st.integers(1, 3)),
        "width": heads * draw(st.sampled_from([2, 3])),
        "num_heads": heads,
        "num_layers": draw(st.integers(1, 2)),
        "region_num": draw(st.sampled_from([1, 2, 3])),
        "min_instances": draw(st.sampled_from([1, 10, None])),
        "epeg_kernel": draw(st.sampled_from([1, 3, 15])),
        "representatives": draw(st.integers(1, 3)),
        "shortcut": draw(st.booleans()),
        "attention_dim": 4,
    }


BASE: dict[str, Any] = {"num_classes": 2, "width": 8, "num_heads": 2, "attention_dim": 4, "region_num": 2}


@settings(max_examples=20)
@given(options=options(), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3), seed=st.integers(0, 2**16))
@example(options=BASE, sizes=[1, 2, 7], seed=0)
@example(options=BASE | {"min_instances": 1}, sizes=[1, 16, 40], seed=1)
@example(options=BASE | {"region_num": 4, "shortcut": True}, sizes=[64, 63], seed=2)
def test_model_equals_reference(options: dict[str, Any], sizes: list[int], seed: int) -> None:
    model = qgmil.create_model("rrt", in_dim=5, **options).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            gain = 3.0 if "epeg" not in name else 0.5
            parameter.copy_(gain * noise / parameter.shape[-1] ** 0.5 if parameter.ndim >= 2 else 1 + 0.3 * noise)
    x = torch.randn(sum(sizes), 5, generator=generator, dtype=torch.float64)
    output = model(PackedBags(x, tuple(sizes)), return_attention=True)
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    least = options.get("min_instances")
    arguments = {
        "heads": options["num_heads"],
        "region_num": options["region_num"],
        "min_instances": 4 * options["region_num"] ** 2 if least is None else least,
        "shortcut": options.get("shortcut", False),
    }
    results = [rrt(state, part.numpy(), **arguments) for part in x.split(sizes)]
    ours = (output.logits, output.embedding, output.attention)
    theirs = (np.stack([r[0] for r in results]), np.stack([r[1] for r in results]), np.hstack([r[2] for r in results]))
    for a, b in zip(ours, theirs, strict=True):
        assert tuple(a.shape) == b.shape
        assert float(np.abs(a.detach().numpy() - b).max()) <= EXACT * max(1.0, float(np.abs(b).max()))
