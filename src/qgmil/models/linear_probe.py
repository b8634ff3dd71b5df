"""The linear probe: logistic regression on mean features, the control that every table shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from qgmil.bags.bag import Bag, PackedBags
from qgmil.errors import ConfigError
from qgmil.layers.pooling import segment_mean
from qgmil.models.base import Aggregator, apply_head
from qgmil.models.output import BagOutput
from qgmil.models.registry import register_model


@register_model("linear_probe", "logistic regression on mean features (control)")
class LinearProbe(Aggregator):
    """``logits = W mean(x) + b``, fitted in one go by scikit-learn on standardised mean features.

    It is an aggregator like the others, so that it is trained, saved, evaluated and compared by the same code; its
    closed-form fit replaces gradient descent.

    Args:
        c: inverse strength of the L2 penalty (scikit-learn's C).
    """

    has_attention = False

    def __init__(self, in_dim: int, num_classes: int, *, c: float = 1.0) -> None:
        super().__init__(in_dim, num_classes)
        if not isinstance(c, int | float) or not c > 0:
            raise ConfigError(f"c must be a number above 0, got {c!r}")
        self.c = c
        self.head = nn.Linear(in_dim, num_classes)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        embedding = segment_mean(bags.features, bags.sizes)
        return BagOutput(apply_head(self.head, embedding), embedding)

    @torch.no_grad()
    def fit_closed_form(
        self, bags: Iterable[Bag], classes: Sequence[str], *, class_weights: Tensor | None = None, seed: int = 0
    ) -> None:
        """Fit on labelled bags; a class without bags gets a logit that never wins.

        Args:
            bags: training bags.
            classes: class names in the order of the logits.
            class_weights: ``(C,)`` weights of the bags of each class.
            seed: of the solver.

        Raises:
            ConfigError: bags of one class only.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        means, labels = [], []
        for bag in bags:
            features = self.prepare(PackedBags.from_bags([bag])).features
            means.append(features.double().mean(dim=0).numpy())
            labels.append(classes.index(str(bag.label)))
        if len(set(labels)) < 2:
            raise ConfigError("the linear probe needs training bags of at least two classes")
        fit = make_pipeline(StandardScaler(), LogisticRegression(C=self.c, max_iter=5000, random_state=seed))
        weights = None if class_weights is None else class_weights.numpy()[labels]
        fit.fit(np.stack(means), labels, logisticregression__sample_weight=weights)
        scaler, regression = fit[0], fit[1]
        weight = regression.coef_ / scaler.scale_
        bias = regression.intercept_ - weight @ scaler.mean_
        rows = torch.as_tensor(regression.classes_)
        if self.num_classes == 1:
            rows = torch.tensor([0])
        elif len(rows) == 2:  # one decision value z is the two logits [0, z]
            weight, bias = np.stack([0 * weight[0], weight[0]]), np.array([0.0, bias[0]])
        self.head.weight.zero_()
        self.head.bias.fill_(-30.0)
        self.head.weight[rows] = torch.as_tensor(weight, dtype=self.head.weight.dtype)
        self.head.bias[rows] = torch.as_tensor(bias, dtype=self.head.bias.dtype)
