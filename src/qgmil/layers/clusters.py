"""Attention to clusters of keys: cost linear in the instances of a bag, for the very largest bags.

A bag is a set without order: neighbours in the file mean nothing, likeness does. The instances of a bag are grouped by
k-means on the normalised stream that queries and keys are made from, and every query attends to the mean key and mean
value of each group, its logit raised by the logarithm of the group's size. Where all members of a group have one key
this is exact attention; in general it replaces the weights within a group by their mean (as in proportional attention
of merged tokens, Bolya 2023, 2210.09461).

Permutation of the instances changes nothing: groups start at quantiles of a projection on the bag's own main direction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 3
ROWS = 16384  # instances whose distances to all centres are held at once


def clustered_attention(
    q: Tensor, k: Tensor, v: Tensor, u: Tensor, sizes: Sequence[int], clusters: int, dropout: float = 0.0
) -> Tensor:
    """Attention of each instance to at most `clusters` keys of its bag.

    Args:
        q: queries ``(T, H, d)``.
        k, v: keys and values ``(T, G, d)``; G divides H.
        u: what instances are grouped by ``(T, dim)``.
        sizes: instances of each bag. Bags of at most `clusters` instances are attended exactly.
        clusters: most keys of a bag.
        dropout: probability of dropping the weight of a group.

    Returns:
        ``(T, H, d)``.
    """
    parts = []
    bags = zip(*(x.split(list(sizes)) for x in (q, k, v, u)), strict=True)
    for qi, ki, vi, ui in bags:
        bias = None
        if ui.shape[0] > clusters:
            members, counts = group(ui.detach(), clusters)
            ki, vi = (_means(x, members, counts) for x in (ki, vi))
            bias = counts.log().to(qi.dtype)
        parts.append(_attend(qi, ki, vi, bias, dropout))
    return torch.cat(parts)


@torch.no_grad()
def group(points: Tensor, clusters: int, iterations: int = ITERATIONS) -> tuple[Tensor, Tensor]:
    """k-means of ``(n, dim)`` points, the same whatever their order.

    Returns:
        The group of each point ``(n,)`` and the size of each group ``(clusters,)`` in float32, at least 1: groups that
        lose all their points are dropped, so there may be fewer.
    """
    points = points.float()
    order = (points @ _main_direction(points)).argsort(stable=True)
    members = torch.empty_like(order)
    members[order] = torch.arange(points.shape[0], device=points.device) * clusters // points.shape[0]
    for _ in range(iterations):
        counts = torch.bincount(members, minlength=clusters).clamp_(min=1).float()
        centres = _means(points, members, counts)
        members = torch.cat([_nearest(part, centres) for part in points.split(ROWS)])
    _, members, counts = members.unique(return_inverse=True, return_counts=True)
    return members, counts.float()


def _main_direction(points: Tensor) -> Tensor:
    """A unit vector near the first principal direction: of all rows the power method's, started from their spread."""
    centred = points - points.mean(dim=0)
    direction = centred.std(dim=0)
    for _ in range(4):
        direction = F.normalize(centred.T @ (centred @ direction), dim=0)
    return direction


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    return (centres.square().sum(dim=1) - 2 * (points @ centres.T)).argmin(dim=1)


def _means(x: Tensor, members: Tensor, counts: Tensor) -> Tensor:
    """Mean of the rows of each group ``(n, ...) -> (groups, ...)``, in the dtype of x."""
    sums = torch.zeros(
        (counts.shape[0], *x.shape[1:]), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device
    )
    sums = sums.index_add(0, members, x.to(sums.dtype))
    return (sums / counts.view(-1, *[1] * (x.ndim - 1))).to(x.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    per_group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(per_group, dim=1) for x in (k, v))
    qh, kh, vh = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    mask = None if bias is None else bias.expand(q.shape[0], -1)
    return F.scaled_dot_product_attention(qh, kh, vh, attn_mask=mask, dropout_p=dropout).squeeze(0).transpose(0, 1)
