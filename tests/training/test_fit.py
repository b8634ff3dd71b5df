"""Fitting: what is learnt, the recipe's arithmetic, determinism, and errors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cohort import SMALL, make_cohort
from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.errors import BagError, ConfigError
from qgmil.training import fit
from qgmil.training.config import TrainConfig
from qgmil.training.fit import fit_model
from qgmil.training.module import MILModule, balanced_weights
from qgmil.training.optimizers import warmup_cosine
from qgmil.training.predict import predict
from qgmil.training.sampler import EpochSampler, epoch_seed, train_loader
from qgmil.training.scaling import fit_standardizer

CLASSES = ("benign", "tumour")


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> BagDataset:
    return open_bags(make_cohort(tmp_path_factory.mktemp("cohort")), in_memory=True)


def halves(bags: BagDataset) -> tuple[BagDataset, BagDataset]:
    return bags.subset(range(24)), bags.subset(range(24, 40))


@pytest.mark.parametrize("model", ["qgmil", "abmil_gated", "linear_probe"])
def test_learns_the_cohort(bags: BagDataset, model: str) -> None:
    options = SMALL["options"] if model == "qgmil" else {}
    config = TrainConfig.build({**SMALL, "model": model, "options": options})
    train, val = halves(bags)
    result = fit_model(train, val, CLASSES, config, seed=1)
    said = predict(result.model, val, device="cpu")
    right = said.probabilities().argmax(axis=1) == np.array([CLASSES.index(str(y)) for y in val.labels])
    assert right.mean() >= 0.9


def test_same_seed_same_bits_other_seed_other_bits(bags: BagDataset) -> None:
    config = TrainConfig.build({**SMALL, "epochs": 3, "sample": 6})
    train, val = halves(bags)
    a, b, c = (fit_model(train, val, CLASSES, config, seed=s).model.state_dict() for s in (3, 3, 4))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["input_proj.0.weight"], c["input_proj.0.weight"])


def test_new_tensors_are_not_filled_while_training_and_settings_come_back(
    bags: BagDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = halves(bags)
    settings = torch.utils.deterministic
    seen: list[bool] = []
    hook = lambda *_: seen.append(settings.fill_uninitialized_memory)  # noqa: E731
    fit_model(train, val, CLASSES, TrainConfig.build({**SMALL, "epochs": 2}), on_epoch=hook)
    assert seen == [False, False] and settings.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(fit, "_trainer", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        fit_model(train, val, CLASSES, TrainConfig.build({**SMALL, "epochs": 2}))
    assert settings.fill_uninitialized_memory


def test_cuda_graphs_need_cuda(bags: BagDataset) -> None:
    train, val = halves(bags)
    config = TrainConfig.build({**SMALL, "compile": "reduce-overhead", "device": "cpu"})
    with pytest.raises(ConfigError, match="--compile reduce-overhead records CUDA graphs, and this trains on cpu: use"):
        fit_model(train, val, CLASSES, config)


def test_loader_workers_change_nothing(bags: BagDataset) -> None:
    train, val = halves(bags)
    results = []
    for workers in (0, 2):
        config = TrainConfig.build({**SMALL, "epochs": 2, "sample": 6, "workers": workers})
        results.append(fit_model(train, val, CLASSES, config, seed=3).model.state_dict())
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])


def test_the_best_epoch_is_kept_not_the_last(bags: BagDataset) -> None:
    config = TrainConfig.build({**SMALL, "epochs": 12, "lr": 3e-2, "patience": 12})
    train, val = halves(bags)
    result = fit_model(train, val, CLASSES, config, seed=0)
    losses = [row["val_loss"] for row in result.history]
    assert result.best_epoch == int(np.argmin(losses))
    module = MILModule(result.model, CLASSES, config, seed=0, total_steps=1)
    for batch in train_loader(val, CLASSES, batch_size=len(val), seed=0):
        module.validation_step(batch, 0)
    loss = float(module._val[0][0].detach()) / len(val)
    assert loss == pytest.approx(min(losses), abs=1e-5)


def test_early_stopping_counts_epochs_without_improvement(bags: BagDataset) -> None:
    config = TrainConfig.build({**SMALL, "epochs": 40, "lr": 3e-2, "patience": 3})
    train, val = halves(bags)
    result = fit_model(train, val, CLASSES, config, seed=0)
    assert len(result.history) == result.best_epoch + 4 < 40


def test_no_epoch_before_min_epochs_is_chosen(bags: BagDataset) -> None:
    """The validation labels are turned round, so that learning only makes the validation loss worse."""
    train, val = halves(bags)
    wrong = [replace(val[i], label=CLASSES[val[i].label == "benign"]) for i in range(len(val))]
    config = TrainConfig.build({**SMALL, "epochs": 12, "min_epochs": 5, "patience": 3})
    result = fit_model(train, BagDataset.from_bags(wrong), CLASSES, config, seed=0)
    losses = [row["val_loss"] for row in result.history]
    assert int(np.argmin(losses)) < 4 <= result.best_epoch == 4 + int(np.argmin(losses[4:]))
    assert len(losses) == result.best_epoch + 4


def test_without_validation_all_epochs_run_and_the_last_is_kept(bags: BagDataset) -> None:
    result = fit_model(bags, None, CLASSES, TrainConfig.build({**SMALL, "epochs": 3}), seed=0)
    assert (len(result.history), result.best_epoch) == (3, 2)


def test_history_has_a_row_an_epoch_on_disk(bags: BagDataset, tmp_path: Path) -> None:
    train, val = halves(bags)
    result = fit_model(train, val, CLASSES, TrainConfig.build({**SMALL, "epochs": 3}), folder=tmp_path)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0] == "epoch,train_loss,val_loss,val_macro_f1,val_auroc,val_balanced_accuracy,lr"
    assert len(lines) == 1 + len(result.history) == 4


def test_tensorboard_gets_what_the_csv_gets(bags: BagDataset, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    train, val = halves(bags)
    result = fit_model(train, val, CLASSES, TrainConfig.build({**SMALL, "epochs": 2}), folder=tmp_path)
    log = events.EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    for name in ("train_loss", "val_loss", "val_macro_f1", "lr"):
        assert [e.value for e in log.Scalars(name)] == pytest.approx([row[name] for row in result.history])


def test_warmup_and_cosine_values() -> None:
    factors = [warmup_cosine(s, 4, 20) for s in range(21)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[12] == pytest.approx(0.5)
    assert factors[20] == pytest.approx(0.0)
    assert factors[8] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_balanced_weights_values() -> None:
    assert balanced_weights([0, 0, 0, 1], 2).tolist() == pytest.approx([4 / 6, 2.0])


def test_weight_decay_spares_norms_biases_and_the_class_token(bags: BagDataset) -> None:
    from qgmil.models.registry import create_model

    model = create_model("qgmil", in_dim=12, num_classes=2, width=16, num_heads=2, ffn_dim=16, pooling="cls")
    module = MILModule(model, CLASSES, TrainConfig(), seed=0, total_steps=10)
    decayed, spared = module.configure_optimizers()["optimizer"].param_groups
    assert {p.ndim for p in decayed["params"]} == {2} and decayed["weight_decay"] == TrainConfig().weight_decay
    assert 2 not in {p.ndim for p in spared["params"]} and spared["weight_decay"] == 0
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(10, seed)
        sampler.set_epoch(epoch)
        return [i for _, i in sampler]

    assert order(0, 1) == order(0, 1)
    assert sorted(order(0, 1)) == list(range(10))
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9
    assert len({epoch_seed(s, e) for s in range(50) for e in range(200)}) == 10_000


def test_sampling_draws_anew_every_epoch_and_only_in_training(bags: BagDataset) -> None:
    loader: Any = train_loader(bags, CLASSES, batch_size=40, seed=0, sample=3)
    epochs = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        batch = next(iter(loader))
        assert max(batch.sizes) == 3
        epochs.append({b: x.sum().item() for b, x in zip(batch.bag_ids, batch.unpack(batch.features), strict=True)})
    assert epochs[0] == epochs[2] and epochs[0] != epochs[1]
    result = fit_model(bags, None, CLASSES, TrainConfig.build({**SMALL, "epochs": 1, "sample": 2}))
    assert predict(result.model, bags, device="cpu").sizes == tuple(len(bags[i]) for i in range(len(bags)))


def test_standardisation_uses_all_training_instances_and_no_others(bags: BagDataset) -> None:
    from qgmil.layers.standardize import Standardize

    train, _ = halves(bags)
    standardize = Standardize(12)
    fit_standardizer(standardize, train)
    x = np.concatenate([train[i].features.numpy() for i in range(len(train))]).astype(np.float64)
    assert standardize.mean.numpy() == pytest.approx(x.mean(axis=0), abs=1e-6)
    assert standardize.std.numpy() == pytest.approx(x.std(axis=0), rel=1e-6)


def test_a_constant_feature_is_centred_not_divided_by_zero() -> None:
    from qgmil.layers.standardize import Standardize

    x = torch.randn(30, 3)
    x[:, 1] = 7.0
    standardize = Standardize(3)
    fit_standardizer(standardize, BagDataset.from_bags([Bag(x[:10], "a", "1"), Bag(x[10:], "b", "2")]))
    out = standardize(x)
    assert torch.isfinite(out).all() and out[:, 1].abs().max() == 0
    assert out[:, 0].std(correction=0) == pytest.approx(1.0, abs=1e-5)


def test_the_model_takes_raw_features_and_the_release_gets_them_folded_in(bags: BagDataset) -> None:
    import qgmil

    train, val = halves(bags)
    model = fit_model(train, val, CLASSES, TrainConfig.build({**SMALL, "epochs": 2})).model
    released = qgmil.load_released("qgmil", model.to_released(), model.released_config())
    assert released.standardize is None
    x = val[0].features
    with torch.no_grad():
        assert released(x).logits == pytest.approx(model(x).logits, abs=1e-5)


def test_one_class_only_is_refused(bags: BagDataset) -> None:
    benign = bags.subset([i for i, y in enumerate(bags.labels) if y == "benign"])
    with pytest.raises(ConfigError, match=r"one class only \(benign\)"):
        fit_model(benign, None, CLASSES, TrainConfig.build(SMALL))


def test_a_label_that_is_no_class_is_named(bags: BagDataset) -> None:
    with pytest.raises(BagError, match=r"bag 'p01_0' has label 'tumour'.*benign, malignant"):
        fit_model(bags, None, ("benign", "malignant"), TrainConfig.build(SMALL))


def test_a_monitor_that_validation_cannot_define_is_refused_before_training(bags: BagDataset) -> None:
    train, val = halves(bags)
    benign = val.subset([i for i, y in enumerate(val.labels) if y == "benign"])
    with pytest.raises(ConfigError, match=r"val_macro_f1 is undefined.*'tumour'.*val_loss"):
        fit_model(train, benign, CLASSES, TrainConfig.build({**SMALL, "monitor": "val_macro_f1"}))


def test_divergence_is_said(bags: BagDataset) -> None:
    train, val = halves(bags)
    with pytest.raises(ConfigError, match=r"diverged.*lr="):
        fit_model(
            train, val, CLASSES, TrainConfig.build({**SMALL, "lr": 1e30, "clip": 0, "warmup": 0, "scaling": "none"})
        )


def test_nan_features_name_bag_and_position(bags: BagDataset) -> None:
    x = torch.randn(5, 12)
    x[2, 4] = math.nan
    data = BagDataset.from_bags([*(bags[i] for i in range(4)), Bag(x, "benign", "broken")])
    with pytest.raises(BagError, match=r"bag 'broken': feature 4 of instance 2 is nan"):
        fit_model(data, None, CLASSES, TrainConfig.build(SMALL))


def test_an_unavailable_device_is_refused(bags: BagDataset) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ConfigError, match=r"'cuda' is not available"):
        fit_model(bags, None, CLASSES, TrainConfig.build({**SMALL, "device": "cuda"}))


def test_bfloat16_training_gives_distinct_float32_logits(bags: BagDataset) -> None:
    train, val = halves(bags)
    result = fit_model(train, val, CLASSES, TrainConfig.build({**SMALL, "precision": "bf16"}))
    said = predict(result.model, val, device="cpu", precision="bf16")
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    rounded = torch.tensor(said.logits).bfloat16().double().numpy()
    assert not np.array_equal(rounded, said.logits)  # heads are not computed in bfloat16
    right = said.probabilities().argmax(axis=1) == np.array([CLASSES.index(str(y)) for y in val.labels])
    assert right.mean() >= 0.8


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_reads_as_everywhere_else(tmp_path: Path, workers: int) -> None:
    manifest = make_cohort(tmp_path / "data", patients=8)
    np.save(tmp_path / "data" / "features" / "p07_1.npy", np.full((3, 12), np.inf, dtype=np.float32))
    data = open_bags(manifest)
    config = TrainConfig.build({**SMALL, "workers": workers, "scaling": "none"})
    with pytest.raises(BagError, match=r"bag 'p07_1'.*inf") as error:
        fit_model(data, None, CLASSES, config)
    assert "Traceback" not in str(error.value)


def test_ctrl_c_is_not_an_exception_that_a_search_swallows() -> None:
    from qgmil.training.fit import Interrupted

    assert issubclass(Interrupted, KeyboardInterrupt) and not issubclass(Interrupted, Exception)


def test_class_weights_count_in_batches_of_one_bag() -> None:
    import qgmil

    model = qgmil.create_model("abmil", in_dim=4, num_classes=2)
    out = model(torch.randn(5, 4))
    weights = torch.tensor([0.1, 10.0])
    plain, weighted = (model.loss(out, torch.tensor([1]), class_weights=w) for w in (None, weights))
    assert weighted.item() == pytest.approx(10 * plain.item(), rel=1e-5)


def test_the_probe_weighs_classes_too(bags: BagDataset) -> None:
    tumour = [i for i, y in enumerate(bags.labels) if y == "tumour"]
    few = bags.subset([*(i for i, y in enumerate(bags.labels) if y == "benign"), *tumour[:3]])
    said = []
    for weights in ("none", "balanced"):
        config = TrainConfig.build({"model": "linear_probe", "class_weights": weights})
        model = fit_model(few, None, CLASSES, config).model
        said.append(predict(model, bags, device="cpu").probabilities()[:, 1].mean())
    assert said[1] > said[0] + 0.05


def test_a_diverged_model_without_validation_is_not_returned(bags: BagDataset) -> None:
    options = {"lr": 1e30, "clip": 0, "warmup": 0, "scaling": "none", "epochs": 3}
    with pytest.raises(ConfigError, match="diverged"):
        fit_model(bags, None, CLASSES, TrainConfig.build({**SMALL, **options}))


def test_abmil_exports_its_standardisation_inside_the_first_layer(bags: BagDataset) -> None:
    import qgmil

    config = TrainConfig.build({"model": "abmil_gated", "epochs": 1, "device": "cpu", "precision": "32"})
    model = fit_model(bags, None, CLASSES, config).model
    released = qgmil.load_released("abmil_gated", model.to_released())
    x = bags[0].features
    with torch.no_grad():
        assert released(x).logits == pytest.approx(model(x).logits, abs=1e-5)
    with pytest.raises(ConfigError, match=r"of 'abmil_gated', not of 'abmil'"):
        qgmil.load_released("abmil", model.to_released())
