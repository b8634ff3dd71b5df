"""Statistics of the training instances for the model's standardisation."""

from __future__ import annotations

import random

import torch

from qgmil.bags.dataset import BagDataset
from qgmil.layers.standardize import Standardize

#: More bags than this are sampled: the statistics of hundreds of bags are known well enough.
MOST_BAGS = 256


def fit_standardizer(standardize: Standardize, bags: BagDataset, *, seed: int = 0) -> None:
    """Set mean and standard deviation over the instances of (at most 256, drawn by seed) training bags.

    Accumulated in float64 by merging each bag's moments (Chan 1983), so that memory is one bag's.
    """
    indices = list(range(len(bags)))
    if len(indices) > MOST_BAGS:
        indices = sorted(random.Random(seed).sample(indices, MOST_BAGS))
    count, mean, squares = 0, torch.zeros(0), torch.zeros(0)
    for index in indices:
        x = bags[index].features.double()
        m, n = x.mean(dim=0), x.shape[0]
        s = (x - m).square().sum(dim=0)
        if count == 0:
            count, mean, squares = n, m, s
            continue
        total, delta = count + n, m - mean
        mean = mean + delta * (n / total)
        squares = squares + s + delta.square() * (count * n / total)
        count = total
    standardize.set_statistics(mean.float(), (squares / count).sqrt().float())
