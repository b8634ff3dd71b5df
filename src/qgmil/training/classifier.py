"""Bag classification with scikit-learn's conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset
from qgmil.bags.splits import holdout
from qgmil.errors import BagError, ConfigError
from qgmil.evaluation.calibration import fit_temperature
from qgmil.models.persistence import save_model
from qgmil.training.config import TrainConfig
from qgmil.training.fit import fit_model
from qgmil.training.predict import Predictions, predict
from qgmil.training.rows import labels_of

BagArrays = Sequence[Any]


class MILClassifier(ClassifierMixin, BaseEstimator):
    """Fit an aggregator on bags: ``MILClassifier(model="qgmil").fit(bags, y, groups=patients)``.

    A part of the patients is kept aside to choose the epoch and the temperature.

    Args:
        model: one of `qgmil.list_models()`.
        options: the model's own options.
        scaling: "standard" standardises features with the training instances' statistics, "none" does not.
        epochs, batch_size, lr, weight_decay, label_smoothing, patience, sample, class_weights, device, precision: as
            in `qgmil.training.config.FitConfig`.
        val: share of the bags to validate on; 0 trains all epochs on all bags and does not calibrate.
        calibrate: `predict_proba` gives temperature-scaled probabilities.
        random_state: seed of the split, the initial weights and the order; None draws one.

    Attributes:
        classes_: ``(C,)`` labels, sorted.
        n_features_in_: width of an instance.
        model_: the trained aggregator.
        history_: one dict an epoch.
        temperature_: of the calibration, 1.0 without it.
    """

    def __init__(
        self,
        model: str = "qgmil",
        *,
        options: Mapping[str, Any] | None = None,
        scaling: str = "standard",
        epochs: int = 20,
        batch_size: int = 4,
        lr: float = 1e-4,
        weight_decay: float = 1e-2,
        label_smoothing: float = 0.1,
        patience: int = 10,
        sample: int | None = None,
        class_weights: str = "none",
        val: float = 0.2,
        calibrate: bool = True,
        device: str = "auto",
        precision: str = "auto",
        random_state: int | None = 0,
    ) -> None:
        self.model = model
        self.options = options
        self.scaling = scaling
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.patience = patience
        self.sample = sample
        self.class_weights = class_weights
        self.val = val
        self.calibrate = calibrate
        self.device = device
        self.precision = precision
        self.random_state = random_state

    def fit(self, bags: BagArrays, y: ArrayLike, groups: Sequence[Any] | None = None) -> Self:
        """Train.

        Args:
            bags: one ``(N_i, D)`` array, tensor or `Bag` each; N_i may differ.
            y: ``(n,)`` labels of any sortable type.
            groups: ``(n,)`` patients; bags of one patient stay together, and None is a patient of its own. Without
                groups, the patients of `Bag`s count.

        Raises:
            BagError: an empty bag, NaN, different widths; numbers of bags, labels and groups that differ.
            ConfigError: options out of range, or one class only.
        """
        labels = np.asarray(y)
        groups = None if groups is None else list(groups)
        if labels.ndim != 1 or len(labels) != len(bags) or (groups is not None and len(groups) != len(bags)):
            count = "no" if groups is None else f"{len(groups)}"
            raise BagError(f"{len(bags)} bags, labels of shape {labels.shape} and {count} groups: one of each a bag")
        for i, label in enumerate(labels.tolist()):
            if label is None or label != label:  # NaN is not equal to itself
                raise BagError(f"bag {i} has no label: y is {label}")
        self.classes_ = np.unique(labels)
        names = tuple(str(i) for i in range(len(self.classes_)))
        codes = np.searchsorted(self.classes_, labels)
        data = _dataset(bags, [names[c] for c in codes], groups)
        self.n_features_in_ = data.width
        config = self._config()
        seed = int(np.random.default_rng().integers(2**31)) if self.random_state is None else int(self.random_state)
        if len(names) < 2:
            raise ConfigError(f"y has one class only ({self.classes_[0]!r}): a classifier needs at least two")
        train, val = data, None
        if self.val:
            split = holdout(data.bag_ids, data.labels, data.groups, val=self.val, test=0.0, seed=seed)
            train, val = data.subset(split.train), data.subset(split.val)
        result = fit_model(train, val, names, config, seed=seed)
        self.model_, self.history_, self.temperature_ = result.model, result.history, 1.0
        if val is not None and self.calibrate:
            self.temperature_ = fit_temperature(self._said(val).logits, labels_of(val, names))
        return self

    def predict_proba(self, bags: BagArrays) -> NDArray[np.float64]:
        """Probabilities ``(n, C)``, calibrated if asked for at construction.

        Raises:
            NotFittedError: before `fit`.
            BagError: bags that the model cannot take.
        """
        check_is_fitted(self, "model_")
        return self._said(_dataset(bags, None, None)).probabilities(self.temperature_)

    def predict(self, bags: BagArrays) -> NDArray[Any]:
        """The most probable label of each bag ``(n,)``; errors as `predict_proba`."""
        check_is_fitted(self, "model_")
        return self.classes_[self.predict_proba(bags).argmax(axis=1)]

    def attention(self, bags: BagArrays) -> list[NDArray[np.float32]]:
        """Instance weights of each bag, summing to 1.

        Raises:
            NotFittedError: before `fit`.
            ConfigError: an aggregator without attention.
        """
        check_is_fitted(self, "model_")
        weights = self._said(_dataset(bags, None, None)).attention
        if weights is None:
            raise ConfigError(f"model {self.model!r} has no attention over instances")
        return list(weights)

    def save(self, folder: str | Path) -> None:
        """Write model.safetensors and config.json, for `qgmil.load_model`."""
        check_is_fitted(self, "model_")
        classes = [str(c) for c in self.classes_]
        save_model(self.model_, folder, classes=classes, temperature=self.temperature_)

    def _said(self, data: BagDataset) -> Predictions:
        return predict(self.model_, data, batch_size=self.batch_size, device=self.device, precision=self.precision)

    def _config(self) -> TrainConfig:
        names = ("model", "scaling", "epochs", "batch_size", "lr", "weight_decay", "patience", "sample")
        values = {
            name: getattr(self, name) for name in (*names, "label_smoothing", "class_weights", "device", "precision")
        }
        return TrainConfig.build({**values, "options": dict(self.options or {})}, "MILClassifier")


def _dataset(bags: BagArrays, labels: Sequence[str] | None, groups: Sequence[Any] | None) -> BagDataset:
    """Arrays as a data set; bags are named by their position in messages."""
    if len(bags) == 0:
        raise BagError("there are no bags")
    made = []
    for i, bag in enumerate(bags):
        patient = groups[i] if groups is not None else bag.patient_id if isinstance(bag, Bag) else None
        label = None if labels is None else labels[i]
        made.append(Bag(_features(bag, i), label, str(i), None if patient is None else str(patient)))
    return BagDataset.from_bags(made)


def _features(bag: Any, position: int) -> torch.Tensor:
    if isinstance(bag, Bag):
        return bag.features
    try:
        features = bag if isinstance(bag, torch.Tensor) else torch.as_tensor(np.asarray(bag))
    except (TypeError, ValueError) as error:
        raise BagError(f"bag {position} is no matrix of numbers (instances, features): {error}") from None
    if not features.is_floating_point() or features.dtype == torch.float64:
        features = features.float()
    return features
