"""The controls that see no feature: what they are fitted to, and what they then say."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

import qgmil
from qgmil.bags.bag import Bag
from qgmil.errors import BagError, ConfigError
from qgmil.models.base import Aggregator, ClosedForm
from qgmil.models.registry import find_entry
from qgmil.training.config import TrainConfig
from qgmil.training.run import train_run
from qgmil.training.runfolder import cell_folders

D = 4


def bags_of(sizes: list[int], labels: list[str]) -> list[Bag]:
    generator = torch.Generator().manual_seed(0)
    return [Bag(torch.randn(n, D, generator=generator), label=y) for n, y in zip(sizes, labels, strict=True)]


def fitted(name: str, bags: list[Bag], classes: list[str], *, num_classes: int | None = None, **options) -> Aggregator:
    model = qgmil.create_model(name, in_dim=D, num_classes=num_classes or len(classes))
    assert isinstance(model, ClosedForm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit_closed_form(iter(bags), classes, **options)
    return model.eval()


def probabilities(model: Aggregator, bags: list[Bag]) -> np.ndarray:
    logits = model(bags).logits.detach().double()
    both = torch.nn.functional.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits
    return both.softmax(dim=1).numpy()


def sized(classes: int, n: int = 60) -> tuple[list[Bag], list[str], np.ndarray]:
    """Bags whose classes differ in size, with overlap."""
    rng = np.random.default_rng(1)
    labels = [f"c{i % classes}" for i in range(n)]
    sizes = [max(1, int(rng.lognormal(1.5 + 0.7 * (i % classes), 0.6))) for i in range(n)]
    return bags_of(sizes, labels), labels, np.log(np.array(sizes, dtype=float))[:, None]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.5]])
def test_bag_size_is_scikit_learns_logistic_regression_on_the_log_size(
    classes: int, weights: list[float] | None
) -> None:
    bags, labels, x = sized(classes)
    given = None if weights is None else torch.tensor(weights[:classes])
    model = fitted("bag_size", bags, [f"c{i}" for i in range(classes)], class_weights=given)
    scaled = StandardScaler().fit_transform(x)
    each = None if weights is None else np.array([weights[int(y[1])] for y in labels])
    expected = LogisticRegression(max_iter=5000).fit(scaled, labels, sample_weight=each).predict_proba(scaled)
    assert probabilities(model, bags) == pytest.approx(expected, abs=1e-5)


def test_bag_size_with_one_logit_says_the_same() -> None:
    bags, _, _ = sized(2)
    one = fitted("bag_size", bags, ["c0", "c1"], num_classes=1)
    assert probabilities(one, bags) == pytest.approx(
        probabilities(fitted("bag_size", bags, ["c0", "c1"]), bags), abs=1e-5
    )


def test_bag_size_sees_the_size_and_nothing_else() -> None:
    bags, _, _ = sized(2)
    model = fitted("bag_size", bags, ["c0", "c1"])
    said = model([torch.zeros(5, D), 1e4 * torch.randn(5, D), torch.zeros(50, D)]).logits
    assert torch.equal(said[0], said[1])
    assert said[2, 1] - said[2, 0] > said[0, 1] - said[0, 0]  # larger bags are of class c1


@pytest.mark.parametrize("name", ["bag_size", "majority"])
def test_bags_of_one_size_leave_the_class_frequencies(name: str) -> None:
    labels = ["a"] * 6 + ["b"] * 3 + ["c"]
    model = fitted(name, bags_of([7] * 10, labels), ["a", "b", "c", "never"])
    expected = np.tile([0.6, 0.3, 0.1, 0.0], (2, 1))
    assert probabilities(model, bags_of([7, 7], ["a", "a"])) == pytest.approx(expected, abs=1e-6)


def test_the_fallback_of_bag_size_weighs_classes_and_majority_does_not() -> None:
    bags = bags_of([7] * 8, ["a"] * 6 + ["b"] * 2)
    balanced = torch.tensor([8 / 12, 8 / 4])
    weighed = fitted("bag_size", bags, ["a", "b"], class_weights=balanced)
    assert probabilities(weighed, bags[:1]) == pytest.approx(np.array([[0.5, 0.5]]), abs=1e-6)
    majority = fitted("majority", bags, ["a", "b"], class_weights=balanced)
    assert probabilities(majority, bags[:1]) == pytest.approx(np.array([[0.75, 0.25]]), abs=1e-6)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_majority_has_the_macro_f1_of_the_majority_class_and_is_calibrated(num_classes: int) -> None:
    labels = ["a"] * 3 + ["b"] * 9
    bags = bags_of([*range(1, 13)], labels)
    model = fitted("majority", bags, ["a", "b"], num_classes=num_classes)
    p = probabilities(model, bags)
    assert p == pytest.approx(np.tile([0.25, 0.75], (12, 1)), abs=1e-6)
    truth = [0] * 3 + [1] * 9
    # F1 of b is 2 * 0.75 * 1 / 1.75 and of a is 0: macro F1 is 3/7.
    assert f1_score(truth, p.argmax(axis=1), average="macro", zero_division=0) == pytest.approx(3 / 7)
    loss = float(model.loss(model(bags), torch.tensor(truth)).detach())
    assert loss == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)), abs=1e-6)


def test_bags_of_no_known_class_or_of_one_only_are_refused() -> None:
    for name in ("bag_size", "majority", "linear_probe"):
        with pytest.raises(BagError, match=r"has label 'z', which is none of a, b"):
            fitted(name, bags_of([1, 2], ["a", "z"]), ["a", "b"])
        with pytest.raises(ConfigError, match=f"{name} needs training bags of at least two classes"):
            fitted(name, bags_of([1, 2], ["a", "a"]), ["a", "b"])
    for c in (0, -1.0, "1"):
        with pytest.raises(ConfigError, match="c must be a finite number above 0"):
            qgmil.create_model("bag_size", in_dim=D, num_classes=2, c=c)


def test_controls_are_marked_as_such() -> None:
    controls = {name for name in qgmil.list_models() if find_entry(name).cls.is_control}
    assert controls == {"linear_probe", "bag_size", "majority"}
    assert not Aggregator.is_control


def test_controls_train_like_every_aggregator(tmp_path: Path) -> None:
    """Through a run: fitted, saved, loaded, evaluated. The size tells these classes apart; the frequencies do not."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(30):
        label = "large" if i % 3 == 0 else "small"
        size = int(rng.integers(20, 30) if label == "large" else rng.integers(2, 9))
        np.save(tmp_path / f"{i}.npy", rng.normal(size=(size, D)).astype(np.float32))
        rows.append(f"b{i},p{i},{label},{i}.npy")
    manifest = tmp_path / "bags.csv"
    manifest.write_text("bag_id,patient_id,label,features\n" + "\n".join(rows) + "\n")
    found = {}
    for name in ("bag_size", "majority"):
        config = TrainConfig.build({"model": name, "folds": 3, "device": "cpu"})
        run = train_run(manifest, tmp_path / name, config)
        cells = cell_folders(run)
        found[name] = [json.loads((cell / "metrics.json").read_text())["test"]["macro_f1"] for cell in cells]
        assert qgmil.load_model(cells[0]).name == name
        tables = [pl.read_csv(cell / "predictions.csv").filter(pl.col("part") == "test") for cell in cells]
    small = [float((table["label"] == "small").mean()) for table in tables]  # type: ignore[arg-type]
    assert found["bag_size"] == [1.0] * 3
    assert found["majority"] == pytest.approx([p / (1 + p) for p in small])  # F1 of small is 2 p / (1 + p), the other 0
