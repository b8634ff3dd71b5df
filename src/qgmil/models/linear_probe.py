"""The linear probe: logistic regression on mean features, the control that every table shows."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgmil.bags.bag import Bag, PackedBags
from qgmil.errors import BagError, ConfigError
from qgmil.layers.linear import Linear
from qgmil.layers.pooling import segment_mean
from qgmil.models.base import Aggregator, apply_head
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model

#: Logit of a class without training bags: it never wins.
NEVER = -30.0


class LogisticControl(Aggregator):
    """``logits = W describe(bag) + b``, fitted in one go by scikit-learn on standardised descriptions of the bags.

    It is an aggregator like the others, so that it is trained, saved, evaluated and compared by the same code; its
    closed-form fit replaces gradient descent. A subclass says what it sees of a bag.

    Args:
        width: length E of the description.
        c: inverse strength of the L2 penalty (scikit-learn's C).
    """

    has_attention = False
    is_control: ClassVar[bool] = True

    def __init__(self, in_dim: int, num_classes: int, width: int, c: float = 1.0) -> None:
        super().__init__(in_dim, num_classes)
        if not isinstance(c, int | float) or isinstance(c, bool) or not 0 < c < math.inf:
            raise ConfigError(f"c must be a finite number above 0, got {c!r}")
        self.c = c
        self.head = Linear(width, num_classes)

    @abstractmethod
    def describe(self, bags: PackedBags) -> Tensor:
        """What is known of each bag ``(B, E)``, in the features' precision."""

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        embedding = self.describe(bags)
        return BagOutput(apply_head(self.head, embedding), embedding)

    @torch.no_grad()
    def fit_closed_form(
        self, bags: Iterable[Bag], classes: Sequence[str], *, class_weights: Tensor | None = None, seed: int = 0
    ) -> None:
        """Fit on labelled bags; a class without bags gets a logit that never wins.

        Where all bags have the same description there is nothing to regress on: the class frequencies are the fit.

        Args:
            bags: training bags.
            classes: class names in the order of the logits.
            class_weights: ``(C,)`` weights of the bags of each class.
            seed: of the solver.

        Raises:
            BagError: a label that is none of the classes.
            ConfigError: bags of one class only.
        """
        rows, labels = [], []
        for bag in bags:
            if bag.label not in classes:
                raise BagError(f"bag {bag.bag_id!r} has label {bag.label!r}, which is none of {', '.join(classes)}")
            packed = self.prepare(PackedBags.from_bags([bag]))
            rows.append(self.describe(packed.with_features(packed.features.double()))[0].cpu().numpy())
            labels.append(classes.index(bag.label))
        if len(set(labels)) < 2:
            raise ConfigError(f"{self.name} needs training bags of at least two classes")
        x, y = np.stack(rows), np.array(labels)
        weights = np.ones(len(y)) if class_weights is None else class_weights.cpu().double().numpy()[y]
        weight, bias = self._regress(x, y, weights, seed) if np.ptp(x, axis=0).any() else self._frequencies(y, weights)
        self.head.weight.copy_(torch.as_tensor(weight))
        self.head.bias.copy_(torch.as_tensor(bias))

    def _regress(self, x: NDArray, y: NDArray, weights: NDArray, seed: int) -> tuple[NDArray, NDArray]:
        """Rows and biases of the head, standardisation undone."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        fit = make_pipeline(StandardScaler(), LogisticRegression(C=self.c, max_iter=5000, random_state=seed))
        fit.fit(x, y, logisticregression__sample_weight=weights)
        scaler, regression = fit[0], fit[1]
        found = regression.coef_ / scaler.scale_
        shift = regression.intercept_ - found @ scaler.mean_
        if self.num_classes == 1:
            return found, shift
        if len(regression.classes_) == 2:  # one decision value z is the two logits [0, z]
            found, shift = np.stack([0 * found[0], found[0]]), np.array([0.0, shift[0]])
        weight, bias = np.zeros((self.num_classes, x.shape[1])), np.full(self.num_classes, NEVER)
        weight[regression.classes_], bias[regression.classes_] = found, shift
        return weight, bias

    def _frequencies(self, y: NDArray, weights: NDArray) -> tuple[NDArray, NDArray]:
        """A head whose probabilities are the (weighted) shares of the classes, whatever the bag."""
        totals = np.bincount(y, weights, minlength=max(2, self.num_classes))
        seen = totals > 0
        bias = np.where(seen, np.log(np.where(seen, totals / totals.sum(), 1.0)), NEVER)
        if self.num_classes == 1:
            bias = bias[1:] - bias[:1]
        return np.zeros(tuple(self.head.weight.shape)), bias


@register_model("linear_probe", "logistic regression on mean features (control)")
class LinearProbe(LogisticControl):
    """``logits = W mean(x) + b``, fitted in one go by scikit-learn on standardised mean features.

    Args:
        c: inverse strength of the L2 penalty (scikit-learn's C).
    """

    def __init__(self, in_dim: int, num_classes: int, *, c: float = 1.0) -> None:
        super().__init__(in_dim, num_classes, in_dim, c)

    def describe(self, bags: PackedBags) -> Tensor:
        return segment_mean(bags.features, bags.sizes)
