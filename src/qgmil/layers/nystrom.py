"""Nystrom attention (Xiong 2021, arXiv 2102.03902): attention through landmarks, memory linear in the sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qgmil.errors import ConfigError
from qgmil.layers.dropout import Dropout
from qgmil.layers.fused import attend, widened
from qgmil.layers.linear import Linear


class HeadConv(nn.Module):
    """Convolution along the sequence, one odd kernel a head shared by its channels; zeros beyond the ends; no bias."""

    def __init__(self, num_heads: int, kernel: int) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ConfigError(f"a kernel along the instances must be odd to have a middle, got {kernel}")
        self.weight = nn.Parameter(torch.empty(num_heads, 1, kernel, 1))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    @property
    def reach(self) -> int:
        """Positions on each side that count."""
        return self.weight.shape[2] // 2

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, n, d) -> (B, H, n, d)``, in at least float32."""
        x = widened(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x, self.weight.to(x.dtype), padding=(self.reach, 0), groups=x.shape[1])


def iterative_pinv(a: Tensor, scale: Tensor, iterations: int) -> Tensor:
    """Moore-Penrose pseudo-inverse by iteration (equation 11 of the paper).

    ``Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4`` from ``Z = A^T / scale``.

    Args:
        a: matrices ``(H, m, m)``.
        scale: the largest row sum times the largest column sum, of absolute values.
        iterations: six give a close inverse.
    """
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    z = a.transpose(-1, -2) / scale
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z


class NystromAttention(nn.Module):
    """Self-attention of one bag as ``F1 pinv(A) F3 V`` plus a convolution of the values along the sequence.

    The sequence is padded with zeros *at its front* to a multiple of the landmarks; a landmark is the mean of a run of
    queries or keys. With landmarks ``Q'`` and ``K'``: ``F1 = softmax(Q K'^T)``, ``A = softmax(Q' K'^T)``,
    ``F3 = softmax(Q' K^T)``, all over ``sqrt(d)`` and in at least float32. As in the implementation that TransMIL uses,
    padding is not masked: a zero key takes the weight of a score of 0. The pseudo-inverse starts from the largest row
    and column sums over all heads of the bag.

    Landmarks that consist of padding alone are all alike. They are kept once, with their number P as a multiplicity:
    on vectors that differ between them ``A`` is zero, so that ``A = U B U^T`` with orthonormal columns U, the iteration
    stays in the span of U and is exactly that of the small matrix B. A bag of 40 instances needs 41 x 41 entries
    instead of 256 x 256.

    Args:
        dim: width of the stream.
        num_heads: heads; must divide dim.
        num_landmarks: landmarks m.
        iterations: of the pseudo-inverse.
        kernel: of the values' convolution.
        dropout: on the output.

    Raises:
        ConfigError: heads that do not divide the width.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_landmarks: int,
        *,
        iterations: int = 6,
        kernel: int = 33,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"num_heads={num_heads} must divide width={dim}")
        self.num_heads, self.num_landmarks, self.iterations = num_heads, num_landmarks, iterations
        self.to_qkv = Linear(dim, 3 * dim, bias=False)
        self.res_conv = HeadConv(num_heads, kernel)
        self.to_out = nn.Sequential(Linear(dim, dim), Dropout(dropout))

    def forward(self, u: Tensor, rows: int | None = None) -> Tensor:
        """``(n, dim) -> (n, dim)``; with `rows` only the results of that many first positions."""
        rows = u.shape[0] if rows is None else rows
        q, k, v = self._project(u)
        pad = q.shape[1] - u.shape[0]
        with torch.autocast(u.device.type, enabled=False):
            landmarks = _Landmarks(q, k, pad, self.num_landmarks, self.iterations)
            out = landmarks.values(q[:, pad : pad + rows], k, v) + self._local(v, pad, rows)
        return self.to_out(out.transpose(0, 1).flatten(1).to(u.dtype))

    def row(self, u: Tensor, index: int) -> Tensor:
        """Weights ``(n,)`` of position `index` on all positions, mean over heads, those on the zero padding left out.

        A row of ``F1 pinv(A) F3``: it may be negative in places and, without the padding, does not sum to 1. The
        convolution of the values is no part of it.
        """
        q, k, _ = self._project(u)
        pad = q.shape[1] - u.shape[0]
        with torch.autocast(u.device.type, enabled=False):
            landmarks = _Landmarks(q, k, pad, self.num_landmarks, self.iterations)
            return landmarks.row(q[:, pad + index], k)[pad:]

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v ``(H, n', d)`` in at least float32, with zeros in front; without biases zeros stay zeros."""
        n, dim = u.shape
        qkv = widened(self.to_qkv(u)).view(n, 3, self.num_heads, dim // self.num_heads).permute(1, 2, 0, 3)
        q, k, v = F.pad(qkv, (0, 0, -n % self.num_landmarks, 0)).unbind(0)
        return q, k, v

    def _local(self, v: Tensor, start: int, rows: int) -> Tensor:
        """The convolution of the values at `rows` positions from `start` on, from what it reaches there alone."""
        first = max(0, start - self.res_conv.reach)
        near = v[:, first : start + rows + self.res_conv.reach]
        return self.res_conv(near.unsqueeze(0)).squeeze(0)[:, start - first : start - first + rows]


class _Landmarks:
    """Landmarks of one padded bag and the pseudo-inverse between them; those of mere padding are kept as one.

    With multiplicities t (``times``): the softmax over all landmarks that are not kept is that over the kept ones with
    ``log t`` added to their scores, ``U`` has the columns ``1 / sqrt(t)``, and ``B = U^T A U``.

    Args:
        q, k: queries and keys ``(H, n', d)``, zeros in front.
        pad: number of those.
        count: landmarks, which divide n'.
        iterations: of the pseudo-inverse.
    """

    def __init__(self, q: Tensor, k: Tensor, pad: int, count: int, iterations: int) -> None:
        heads, n, d = q.shape
        run = n // count
        self.alike = max(1, pad // run)
        self.scale = d**-0.5
        self.q, self.k = (x.reshape(heads, count, run, d).mean(dim=2)[:, self.alike - 1 :] for x in (q, k))
        times = torch.ones(count - self.alike + 1, dtype=q.dtype, device=q.device)
        times[0] = self.alike
        self.log_times, self.root = times.log(), times.sqrt()
        a = self._to_landmarks(self.q)  # weights on all landmarks of a kind together
        columns = times @ a / times  # sums over the rows of A, kept or not
        self.inverse = iterative_pinv(
            self.root[:, None] * a / self.root, a.sum(dim=-1).max() * columns.max(), iterations
        )

    def _to_landmarks(self, q: Tensor) -> Tensor:
        """Softmax ``(H, rows, kept)`` of queries over all landmarks, added up over those that are alike."""
        return (q @ self.k.transpose(1, 2) * self.scale + self.log_times).softmax(dim=-1)

    def values(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``F1 pinv(A) F3 V`` for queries ``(H, rows, d)``."""
        root = self.root[:, None]
        seen = attend(self.q[None], k[None], v[None])[0]
        held = self.inverse @ (root * seen) / root
        every = [torch.cat([x[:, :1].expand(-1, self.alike, -1), x[:, 1:]], dim=1)[None] for x in (self.k, held)]
        return attend(q[None], *every)[0]

    def row(self, q: Tensor, k: Tensor) -> Tensor:
        """``F1 pinv(A) F3`` of one query ``(H, d)``: its weights ``(n',)`` on all keys, mean over heads."""
        through = (self._to_landmarks(q[:, None]) / self.root) @ self.inverse * self.root
        total = k.new_zeros(k.shape[1])
        for head, keys in enumerate(k):  # one head at a time: landmarks x n entries, not H times as many
            seen = (self.q[head] @ keys.T * self.scale).softmax(dim=-1)
            total = total + (through[head] @ seen)[0]
        return total / k.shape[0]
