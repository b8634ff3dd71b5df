"""Two controls that see no feature: the size of the bag, and the class frequencies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from qgmil.bags.bag import Bag, PackedBags
from qgmil.models.linear_probe import LogisticControl
from qgmil.models.registry import register_model


@register_model("bag_size", "logistic regression on the logarithm of the bag size (control)")
class BagSize(LogisticControl):
    """``logits = w log(N) + b``: how far the number of instances alone gives the label away.

    A task on which this is good has classes that differ in the size of the tissue or in how it was cut. Bags that are
    all of one size leave the class frequencies.

    Args:
        c: inverse strength of the L2 penalty (scikit-learn's C).
    """

    def __init__(self, in_dim: int, num_classes: int, *, c: float = 1.0) -> None:
        super().__init__(in_dim, num_classes, 1, c)

    def describe(self, bags: PackedBags) -> Tensor:
        return torch.tensor(bags.sizes, dtype=torch.float64).log()[:, None].to(bags.features)


@register_model("majority", "class frequencies of the training bags (control)")
class Majority(LogisticControl):
    """The class frequencies of the training bags, as probabilities, for every bag.

    Its macro F1 is that of always saying the most frequent class; its calibration is honest. Class weights are
    ignored: with balanced ones there would be no majority.
    """

    def __init__(self, in_dim: int, num_classes: int) -> None:
        super().__init__(in_dim, num_classes, 1)

    def describe(self, bags: PackedBags) -> Tensor:
        return bags.features.new_ones(len(bags), 1)

    def fit_closed_form(
        self, bags: Iterable[Bag], classes: Sequence[str], *, class_weights: Tensor | None = None, seed: int = 0
    ) -> None:
        """Count the classes; see `LogisticControl.fit_closed_form`."""
        super().fit_closed_form(bags, classes, seed=seed)
