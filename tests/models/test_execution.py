"""How a model is run changes what it costs, never what it says: checkpointing and compilation."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from qgmil import create_model
from qgmil.errors import ConfigError
from qgmil.planning.memory import estimate


def model_and_bags():
    torch.manual_seed(0)
    model = create_model("qgmil", in_dim=8, num_classes=2, width=16, num_heads=2, ffn_dim=32, num_layers=2)
    return model, [torch.randn(n, 8) for n in (5, 1, 30)]


def step(model, bags) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    out = model(bags)
    model.loss(out, torch.tensor([0, 1, 0])).backward()
    return [out.logits.detach(), *(p.grad.clone() for p in model.parameters())]


def test_checkpointing_changes_no_number() -> None:
    model, bags = model_and_bags()
    plain = step(model, bags)  # with dropout: the same random numbers are drawn again
    model.checkpointing = True
    for a, b in zip(plain, step(model, bags), strict=True):
        assert torch.equal(a, b)


def test_checkpointing_keeps_less() -> None:
    model = create_model("qgmil", in_dim=8, num_classes=2, width=32, num_heads=2, ffn_dim=128, num_layers=3)
    kept = {}
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            out = model(torch.randn(1000, 8))
        kept[checkpointing] = sum(sizes.values())
        del out
    assert kept[True] < 0.5 * kept[False]


def test_compiled_parts_agree_and_no_size_compiles_them_anew() -> None:
    model, bags = model_and_bags()
    model.eval()
    with torch.no_grad():
        plain = [model(torch.ones(n, 8)).logits for n in range(2, 40)]
        torch._dynamo.reset()
        model.compile_parts(backend="eager")  # traces and guards as every backend does; needs no C++ compiler
        model(torch.ones(40, 8))
        model(torch.ones(41, 8))
        counters.clear()
        again = [model(torch.ones(n, 8)).logits for n in range(2, 40)]
    assert counters["stats"]["unique_graphs"] == 0
    for a, b in zip(plain, again, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    model.train()
    compiled = step(model, bags)
    assert all(bool(torch.isfinite(g).all()) for g in compiled)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["qgmil", "transformer"])
def test_cuda_graphs_are_recorded_for_few_numbers_of_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, begun = [], []

    def backend(graph: torch.fx.GraphModule, example: list[Any], **options: Any) -> Any:
        def run(*args: Any) -> Any:
            rows.append(next(x.shape[0] for x in args if isinstance(x, torch.Tensor) and not x.requires_grad))
            return graph(*args)

        assert options["mode"] == "reduce-overhead"
        return run

    torch.manual_seed(0)
    model = create_model(name, in_dim=8, num_classes=2, width=16, num_heads=2, ffn_dim=32, num_layers=2).eval()
    sizes = range(129, 257)
    with torch.no_grad():
        plain = [model(torch.ones(n, 8)).logits for n in sizes]
        torch._dynamo.reset()
        model.compile_parts("reduce-overhead", backend=backend)
        monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(len(rows)))
        again = [model(torch.ones(n, 8)).logits for n in sizes]
    torch._dynamo.reset()
    for a, b in zip(plain, again, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert set(rows) <= {*range(144, 273, 16)}  # the class token of a transformer makes 256 instances 257 rows
    assert len(rows) == 5 * len(sizes) and begun == [*range(0, len(rows), 5)]  # once a pass, before its five parts


def test_a_compiled_model_can_be_compiled_again_and_as_part_of_something_larger() -> None:
    model, bags = model_and_bags()
    model.eval()
    with torch.no_grad():
        plain = model(bags).logits
        model.compile_parts(backend="eager")
        model.compile_parts(backend="aot_eager")
        assert torch.allclose(model(bags).logits, plain, atol=1e-6)
        assert torch.allclose(torch.compile(model, backend="eager")(bags).logits, plain, atol=1e-6)
    torch._dynamo.reset()


def test_rows_that_are_added_for_cuda_graphs_have_no_gradient() -> None:
    torch.manual_seed(0)
    model = create_model("qgmil", in_dim=8, num_classes=2, width=16, num_heads=2, ffn_dim=32, dropout=0.0, eps=0.0)
    x, found = torch.randn(33, 8), []
    for compiled in (False, True):
        if compiled:
            model.compile_parts("reduce-overhead", backend=lambda graph, example, **options: graph)
        model.zero_grad()
        model.loss(model(x), torch.tensor([1])).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    torch._dynamo.reset()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert not hasattr(x, "_dynamo_weak_dynamic_indices")  # it is the caller's


def test_copies_of_a_compiled_model_have_weights_of_their_own_and_are_planned_like_any() -> None:
    model, bags = model_and_bags()
    model.compile_parts(backend="eager")
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        with torch.no_grad():
            assert torch.allclose(copied.eval()(bags).logits, model.eval()(bags).logits, atol=1e-6)
            for weight in copied.parameters():
                weight.zero_()
            assert not copied(bags).embedding.any() and model(bags).embedding.any()
    assert estimate(model, (20_000,), training=True, precision="32-true", device="cpu").method == "traced"
    torch._dynamo.reset()


def test_what_cannot_be_compiled_says_so() -> None:
    with pytest.raises(ConfigError, match="mean has no parts to compile"):
        create_model("mean", in_dim=8, num_classes=2).compile_parts()
