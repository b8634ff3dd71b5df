"""Instance scores: what the model says, an independent gradient, and refused by name where there are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qgmil import create_model, list_models
from qgmil.attention.scores import (
    InstanceScores,
    available_scores,
    gradient_x_input,
    instance_scores,
    mean_scores,
)
from qgmil.bags.bag import Bag
from qgmil.errors import ConfigError, MetricError

QGMIL = {"width": 16, "num_heads": 2, "ffn_dim": 16}


def bag(n: int = 9, dim: int = 6) -> Bag:
    return Bag(torch.randn(n, dim, generator=torch.Generator().manual_seed(0)), bag_id="b")


def make(name: str = "qgmil", classes: int = 2, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model(name, in_dim=6, num_classes=classes, **{**(QGMIL if name == "qgmil" else {}), **options}).eval()


def test_attention_is_the_models_own() -> None:
    model = make()
    with torch.inference_mode():
        own = model(bag(), return_attention=True).attention.numpy()
    found = instance_scores(model, bag())
    np.testing.assert_allclose(found.values, own / own.sum(), rtol=1e-6)
    assert found.is_mass
    assert found.name == "attention"


@pytest.mark.parametrize("classes", [1, 3])
def test_gradient_times_input_is_a_derivative(classes: int) -> None:
    """Against a finite difference of the logit along each instance's features, in float64."""
    model = make(classes=classes).double()
    x = bag().features.double()
    values, target = gradient_x_input(model, Bag(x, bag_id="b"), target=0)
    assert target == 0
    sign = -1 if classes == 1 else 1  # one logit is that of class 1
    for i in range(len(x)):
        logits = []
        for step in (1e-5, -1e-5):
            moved = x.clone()
            moved[i] *= 1 + step
            with torch.inference_mode():
                logits.append(float(model(moved).logits[0, 0]))
        assert values[i] == pytest.approx(sign * (logits[0] - logits[1]) / 2e-5, abs=1e-8)


def test_a_linear_model_is_explained_completely() -> None:
    """Of the mean of a linear map, gradient x input sums to the logit without its bias."""
    model = make("linear_probe")
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    with torch.inference_mode():
        logits = model(bag()).logits[0]
        none = model(torch.zeros(1, 6)).logits[0]
    values, target = gradient_x_input(model, bag())
    assert target == int(logits.argmax())
    assert values.sum() == pytest.approx(float(logits[target] - none[target]), rel=1e-4)


def test_gradient_is_of_standardised_features_and_works_in_inference_mode() -> None:
    model = create_model("abmil", in_dim=6, num_classes=2, standardize=True).eval()
    with torch.no_grad():
        model.standardize.mean.fill_(3.0)
        model.standardize.std.fill_(2.0)
    at_mean = Bag(torch.full((4, 6), 3.0), bag_id="b")
    with torch.inference_mode():
        values, _ = gradient_x_input(model, at_mean)
    np.testing.assert_array_equal(values, 0)


@pytest.mark.parametrize("name", ["clam_mb", "dsmil"])
def test_class_attention_by_name_and_number(name: str) -> None:
    model = make(name, classes=3)
    classes = ("a", "b", "2")
    with torch.inference_mode():
        own = model(bag(), return_attention=True).auxiliary["class_attention"].numpy()
    found = instance_scores(model, bag(), "class:b", classes=classes)
    np.testing.assert_allclose(found.values, own[:, 1], rtol=1e-5)
    np.testing.assert_allclose(instance_scores(model, bag(), "class:0", classes=classes).values, own[:, 0], rtol=1e-5)
    assert found.is_mass
    assert "class b" in found.description
    with pytest.raises(ConfigError, match=r"no class 'tumour'.*there are a, b, 2"):
        instance_scores(model, bag(), "class:tumour", classes=classes)


@pytest.mark.parametrize("name", [m for m in list_models() if m != "linear_probe"])
def test_every_score_that_is_offered_works(name: str) -> None:
    model = make(name)
    offered = available_scores(model, ("x", "y"))
    assert "gradient" in offered
    for score in offered:
        found = instance_scores(model, bag(), score, classes=("x", "y"))
        assert found.values.shape == (9,)
        assert np.isfinite(found.values).all()
        if found.is_mass:
            assert found.values.min() >= 0
            assert found.values.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "score", "message"),
    [
        ("mean", "attention", r"mean has no score 'attention': it has gradient\. It pools without weights: .*qgmil"),
        ("abmil", "rollout", r"abmil has no score 'rollout': it has attention, gradient"),
        ("qgmil", "class:tumour", r"qgmil has no score 'class:tumour': it has attention, rollout, gradient"),
        ("qgmil", "atention", r"no score 'atention'"),
    ],
)
def test_what_an_aggregator_lacks_is_refused_with_what_it_has(name: str, score: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        instance_scores(make(name), bag(), score)


@pytest.mark.parametrize("target", [2, -1, 0.5, True, "1"])
def test_a_class_that_is_not_there(target: object) -> None:
    with pytest.raises(ConfigError, match=rf"target class {target!r} is not one of the model's 2 classes, 0 to 1"):
        gradient_x_input(make(classes=1), bag(), target=target)


@pytest.mark.parametrize("name", ["clam_mb", "dsmil"])
def test_the_attention_of_one_logit_is_that_of_class_1(name: str) -> None:
    model = make(name, classes=1)
    assert available_scores(model, ("benign", "tumour")) == ("attention", "gradient", "class:tumour")
    assert available_scores(model) == ("attention", "gradient", "class:1")
    own = instance_scores(model, bag()).values
    for score in ("class:tumour", "class:1"):
        np.testing.assert_array_equal(instance_scores(model, bag(), score, classes=("benign", "tumour")).values, own)
    with pytest.raises(ConfigError, match=r"no class 'benign'.*there are tumour"):
        instance_scores(model, bag(), "class:benign", classes=("benign", "tumour"))


@pytest.mark.parametrize("score", ["attention", "rollout", "gradient"])
@pytest.mark.parametrize("where", ["features", "weights"])
def test_scores_that_are_not_numbers_are_refused_with_the_bag(score: str, where: str) -> None:
    model, one = make(), bag()
    if where == "features":
        one.features[3, 2] = float("nan")
    else:
        with torch.no_grad():
            next(model.parameters())[0, 0] = float("nan")
    with pytest.raises(MetricError, match=rf"bag 'b': its {score} is nan at instance \d \(\d of 9\)"):
        instance_scores(model, one, score)


@pytest.mark.parametrize("name", ["qgmil", "clam_mb", "dsmil", "acmil", "dtfd", "transmil"])
def test_scores_draw_nothing_and_repeat_themselves(name: str) -> None:
    model = make(name).train()
    before = torch.get_rng_state()
    for score in available_scores(model):
        first, again = (instance_scores(model, bag(), score).values for _ in range(2))
        np.testing.assert_array_equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_keeps_its_mode_and_its_gradients() -> None:
    model = make().train()
    instance_scores(model, bag(), "gradient")
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_means_are_of_one_kind() -> None:
    a = InstanceScores(np.array([0.2, 0.8]), "attention", "pooling attention", True)
    b = InstanceScores(np.array([0.6, 0.4]), "attention", "pooling attention", True)
    both = mean_scores([a, b])
    np.testing.assert_allclose(both.values, [0.4, 0.6])
    assert both.description == "pooling attention (mean of 2 models)"
    with pytest.raises(ConfigError, match="attention, gradient"):
        mean_scores([a, InstanceScores(np.zeros(2), "gradient", "g", False)])
    with pytest.raises(ConfigError, match="no scores"):
        mean_scores([])


def test_means_are_of_one_class_and_one_bag() -> None:
    of_a, of_b = (InstanceScores(np.zeros(2), "gradient", f"of the logit of {c}", False) for c in "ab")
    with pytest.raises(ConfigError, match=r"different meaning.*logit of a; of the logit of b.*one target class"):
        mean_scores([of_a, of_b])
    with pytest.raises(ConfigError, match="2 and 3 instances"):
        mean_scores([of_a, InstanceScores(np.zeros(3), "gradient", of_a.description, False)])
