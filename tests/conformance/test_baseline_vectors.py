"""CLAM, DSMIL and ACMIL with the weights of their releases give the releases' numbers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from vector_files import TOLERANCE, VECTORS, Vector, largest_difference, read

import qgmil
from qgmil.errors import ConfigError
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput

MODELS = {
    "clam_sb": "clam_sb",
    "clam_sb_subtyping": "clam_sb",
    "clam_mb": "clam_mb",
    "clam_mb_subtyping": "clam_mb",
    "dsmil": "dsmil",
    "acmil_ga": "acmil",
}
#: A matrix of each release, and one that a checkpoint of another method would lack.
ESSENTIAL = {
    "clam_sb": "attention_net.3.attention_c.weight",
    "clam_mb": "attention_net.3.attention_c.weight",
    "dsmil": "b_classifier.q.2.weight",
    "acmil": "attention.attention_weights.weight",
}
every_file = pytest.mark.parametrize("stem", MODELS)
clam_files = pytest.mark.parametrize("stem", [s for s in MODELS if s.startswith("clam")])


def vector_of(stem: str) -> Vector:
    return read(VECTORS / "baselines" / f"{stem}.safetensors")


def run(stem: str) -> tuple[Vector, Aggregator, BagOutput]:
    vector = vector_of(stem)
    model = qgmil.load_released(MODELS[stem], vector.state, vector.config)
    return vector, model, model(vector.x, return_attention=True)


@every_file
def test_logits(stem: str) -> None:
    vector, model, output = run(stem)
    assert not model.training
    assert largest_difference(output.logits, vector.tensors["logits"]) <= TOLERANCE


@clam_files
def test_clam_attention(stem: str) -> None:
    """The files hold softmaxed weights, one row a branch."""
    vector, _, output = run(stem)
    expected = vector.tensors["attention"]
    if MODELS[stem] == "clam_mb":
        assert largest_difference(output["class_attention"], expected.T) <= TOLERANCE
        predicted = int(output.logits.argmax())
        assert largest_difference(output.attention, expected[predicted]) <= TOLERANCE
    else:
        assert largest_difference(output.attention, expected[0]) <= TOLERANCE


@clam_files
def test_clam_instance_loss(stem: str) -> None:
    vector, model, output = run(stem)
    assert (model.k_sample, model.subtyping) == (4, stem.endswith("subtyping"))
    found = model.instance_loss(output, vector.tensors["label"])
    assert largest_difference(found, vector.tensors["instance_loss"]) <= TOLERANCE


def test_dsmil_streams() -> None:
    vector, _, output = run("dsmil")
    assert largest_difference(output["class_attention"], vector.tensors["attention"]) <= TOLERANCE
    assert largest_difference(output["max_logits"], vector.tensors["max_logits"]) <= TOLERANCE
    assert largest_difference(output["instance_logits"], vector.tensors["instance_logits"]) <= TOLERANCE
    predicted = int(output.logits.argmax())
    assert largest_difference(output.attention, vector.tensors["attention"][:, predicted]) <= TOLERANCE


def test_acmil_branches() -> None:
    vector, _, output = run("acmil_ga")
    assert largest_difference(output["branch_attention"], vector.tensors["attention"][0].T) <= TOLERANCE
    assert largest_difference(output.attention[0], vector.tensors["attention"][0].mean(0)) <= TOLERANCE
    assert largest_difference(output["branch_logits"][0], vector.tensors["branch_logits"]) <= TOLERANCE
    assert largest_difference(output["diversity_loss"][0], vector.tensors["diversity_loss"]) <= TOLERANCE


def equal_states(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@every_file
def test_round_trip_is_bitwise(stem: str) -> None:
    vector, model, output = run(stem)
    exported = model.to_released()
    assert equal_states(exported, vector.state)
    again = qgmil.load_released(MODELS[stem], exported)  # all sizes are in the weights
    assert torch.equal(again(vector.x).logits, output.logits)
    options = model.config["options"]
    rebuilt = qgmil.create_model(model.name, in_dim=model.in_dim, num_classes=model.num_classes, **options).eval()
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(vector.x).logits, output.logits)


@pytest.mark.parametrize("stem", [s for s in MODELS if s != "acmil_ga"])
def test_standardisation_is_folded_into_the_export(stem: str) -> None:
    vector, released, _ = run(stem)
    model = qgmil.create_model(
        released.name, in_dim=20, num_classes=released.num_classes, standardize=True, **released.options
    )
    mean, std = torch.linspace(-1, 1, 20), torch.linspace(0.5, 2, 20)
    model.standardize.set_statistics(mean, std)
    model.load_state_dict(model.state_dict() | released.state_dict())
    expected = model.eval()(vector.x, return_attention=True)
    found = qgmil.load_released(released.name, model.to_released(), vector.config)(vector.x, return_attention=True)
    assert largest_difference(found.logits, expected.logits) <= TOLERANCE
    assert largest_difference(found.attention, expected.attention) <= TOLERANCE
    assert largest_difference(released((vector.x - mean) / std).logits, expected.logits) <= TOLERANCE


def test_acmil_with_standardisation_cannot_be_exported() -> None:
    model = qgmil.create_model("acmil", in_dim=4, num_classes=2, width=4, standardize=True)
    with pytest.raises(ConfigError, match=r"no bias.*scaling 'none'"):
        model.to_released()


@every_file
def test_another_configuration_is_an_error(stem: str) -> None:
    vector = vector_of(stem)
    with pytest.raises(ConfigError, match=r"in_dim = 21.*20"):
        qgmil.load_released(MODELS[stem], vector.state, {**vector.config, "in_dim": 21})
    with pytest.raises(ConfigError, match="surprise"):
        qgmil.load_released(MODELS[stem], vector.state, {**vector.config, "surprise": 1})


@every_file
def test_another_checkpoint_is_an_error(stem: str) -> None:
    vector, name = vector_of(stem), MODELS[stem]
    culprit = ESSENTIAL[name]
    with pytest.raises(ConfigError, match=f"lacks {culprit}"):
        qgmil.load_released(name, {k: v for k, v in vector.state.items() if k != culprit}, vector.config)
    with pytest.raises(ConfigError, match=culprit):
        qgmil.load_released(name, {**vector.state, culprit: torch.ones(3)}, vector.config)
    with pytest.raises(ConfigError, match=r"unexpected surplus\.weight"):
        qgmil.load_released(name, {**vector.state, "surplus.weight": torch.ones(3)}, vector.config)
    with pytest.raises(ConfigError):
        qgmil.load_released(name, {}, vector.config)


def test_the_two_clams_are_told_apart() -> None:
    with pytest.raises(ConfigError, match=r"clam_mb.*not of 'clam_sb'"):
        qgmil.load_released("clam_sb", vector_of("clam_mb").state)
    with pytest.raises(ConfigError, match=r"clam_sb.*not of 'clam_mb'"):
        qgmil.load_released("clam_mb", vector_of("clam_sb").state)


def test_buffers_of_the_smooth_svm_loss_are_passed_over() -> None:
    vector, _, output = run("clam_sb")
    state = {**vector.state, "instance_loss_fn.labels": torch.arange(2)}
    assert torch.equal(qgmil.load_released("clam_sb", state)(vector.x).logits, output.logits)
