"""Models on disk, in state dictionaries, and on the move between dtypes and devices."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from qgmil.models.base import Aggregator, load_strict
from qgmil.models.output import BagOutput
from qgmil.models.persistence import WEIGHTS, load_model, save_model
from qgmil.models.registry import create_model
from qgmil.testing.expect import expect, expect_close, expect_equal, expect_finite, expect_finite_gradients
from qgmil.testing.subject import Subject, labels_for


def _same_outputs(found: BagOutput, expected: BagOutput, what: str) -> None:
    for name in ("logits", "embedding", "attention"):
        expect((found[name] is None) == (expected[name] is None), f"{name} {what}: only one of the two has any")
        if expected[name] is not None:
            expect_equal(found[name], expected[name], f"{name} {what}")


def check_save_and_load(subject: Subject) -> None:
    """Saved and loaded, the model says the same to the last bit; its configuration builds it again."""
    model, bags = subject.build(), subject.bags(7, 1, 4)
    expected = model(bags, return_attention=True)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder)
        if subject.registered is None:  # no name that load_model could build
            loaded = subject.build(seed=1)
            load_strict(loaded, load_file(Path(folder) / WEIGHTS), "the saved model")
        else:
            loaded = load_model(folder)
            expect(
                type(loaded) is type(model), f"a saved {type(model).__name__} is loaded as a {type(loaded).__name__}"
            )
            expect(
                loaded.config == model.config,
                f"configuration of the loaded model is {loaded.config} but must be {model.config}",
            )
    _same_outputs(loaded(bags, return_attention=True), expected, "of the saved and loaded model (against before)")


def check_state_dict(subject: Subject) -> None:
    """Names, shapes and dtypes do not depend on the seed, and a fresh model takes the weights, strictly."""
    bags = subject.bags(7, 1, 4)
    for classes in subject.num_classes:
        first, second = (subject.build(classes, seed=seed, randomised=False) for seed in (0, 1))
        first.loss(first.train()(bags), labels_for(3, classes)).backward()  # use must not change it either
        seen, fresh = (
            {key: (tuple(value.shape), value.dtype) for key, value in model.state_dict().items()}
            for model in (first, second)
        )
        for key in (*seen, *fresh):
            expect(
                seen.get(key) == fresh.get(key),
                f"state dict under seeds 0 (used) and 1 (fresh), num_classes={classes}: {key} is {seen.get(key)} "
                f"and {fresh.get(key)}",
            )
        load_strict(second, first.state_dict(), "the state under another seed")
        what = f"of a fresh model with the weights of another, num_classes={classes}"
        expected = first.eval()(bags, return_attention=True)
        _same_outputs(second(bags, return_attention=True), expected, what)
        if subject.registered is not None:
            config = first.config
            again = create_model(config["name"], in_dim=subject.in_dim, num_classes=classes, **config["options"])
            load_strict(again, first.state_dict(), f"the configuration {config}")
            what = f"of create_model with the configuration {config}"
            _same_outputs(again.eval()(bags, return_attention=True), expected, what)


def check_dtypes(subject: Subject) -> None:
    """Features of any precision are computed in that of the weights, and `double()` moves the whole model."""
    model, x = subject.build(), subject.bag(9)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        stored = x.to(dtype)
        found = model(stored).logits
        expect(
            found.dtype == torch.float32,
            f"logits of {dtype} features from a float32 model: dtype is {found.dtype} but must be float32",
        )
        expect_equal(found, model(stored.float()).logits, f"logits of {dtype} features (against the same in float32)")
    single = model(x).logits
    double = model.double()(x, return_attention=True)
    for name, value in (("logits", double.logits), ("embedding", double.embedding), ("attention", double.attention)):
        if value is not None:
            expect(
                value.dtype == torch.float64, f"{name} of a model after double(): dtype is {value.dtype}, not float64"
            )
    expect_close(single, double.logits, "logits in float32 of a bag of 9 instances (against float64)", 1e-3)


def check_bfloat16(subject: Subject) -> None:
    """As a bfloat16 model and under autocast: logits close to float64's, float32 loss, finite gradients."""
    sizes = (40, 40, 7)
    bags, labels = subject.bags(*sizes), labels_for(len(sizes), subject.classes)
    exact = subject.build().double()(bags).logits
    for how in ("bfloat16()", "autocast to bfloat16"):
        what = f"of bags of {sizes} instances under {how}"
        model = subject.build().train()
        if how == "bfloat16()":
            output = model.bfloat16()(bags)
        else:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = model(bags)
            expect(output.logits.dtype == torch.float32, f"logits {what}: {output.logits.dtype} instead of float32")
        expect_finite(output.logits, f"logits {what}")
        expect_close(output.logits, exact, f"logits {what} (against float64)", 0.05)
        loss = model.loss(output, labels)
        expect(loss.dtype == torch.float32, f"loss {what}: dtype is {loss.dtype} but must be float32")
        loss.backward()
        expect_finite_gradients(model, what)


def check_devices(subject: Subject) -> None:
    """Every tensor of the model is a parameter or a buffer, so that it moves along; CUDA says what the CPU says."""
    model, bags = subject.build(), subject.bags(7, 1, 4)
    expected = model(bags, return_attention=True)
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            where = f"{name}.{attribute}".lstrip(".")
            expect(
                not isinstance(value, Tensor),
                f"{where} is a tensor but neither a parameter nor a buffer: it stays behind when the model moves; "
                "use register_buffer",
            )
    if not torch.cuda.is_available():
        return
    moved, labels = subject.build().cuda(), labels_for(3, subject.classes)
    output = moved(bags.to("cuda"), return_attention=True)
    for key in ("logits", "embedding", "attention"):
        if expected[key] is not None:
            expect_close(output[key], expected[key], f"{key} of bags of {bags.sizes} instances on CUDA", 1e-3)
    moved.loss(output, labels.cuda()).backward()
    expect_finite_gradients(moved, "on CUDA")
    back: Aggregator = moved.cpu()
    _same_outputs(back(bags, return_attention=True), expected, "of the model moved to CUDA and back")
