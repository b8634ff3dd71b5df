"""Softmax attention of any number of queries to any number of keys, without the map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` by PyTorch's fused attention: memory linear in queries and keys.

    Computed in at least float32, whatever autocast says. On CUDA the fused kernels want heads of a multiple of 8
    channels, and what does not fit takes a quadratic path: such heads are padded with zeros, which change no product.

    Args:
        q: queries ``(B, H, n, d)``.
        k: keys ``(B, H, m, d)``.
        v: values ``(B, H, m, d)``.

    Returns:
        ``(B, H, n, d)``, float32 for inputs of half precision.
    """
    width = q.shape[-1]
    q, k, v = widened(q), widened(k), widened(v)
    if q.device.type == "cuda" and width % 8:
        q, k, v = (F.pad(x, (0, -width % 8)) for x in (q, k, v))
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q, k, v, scale=width**-0.5)[..., :width]


def widened(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
