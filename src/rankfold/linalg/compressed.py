"""Compressed deep linear products W_L … W_1 of small inner width: how they begin.

"Efficient Compression of Overparameterized Deep Models through Low-Dimensional Learning Dynamics", Algorithm 1: the
outer factors span the leading singular subspaces of a matrix that knows something of the solution, the inner ones are
multiples of the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankfold.linalg.decompositions import svd


def compressed_factors(
    shape: tuple[int, int],
    rank: int,
    scales: Sequence[float],
    guide: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, ...]:
    """W_L (m, r) … W_1 (r, n), float64: ``scales``[0] U, ``scales``[i] I, ``scales``[−1] Vᵀ, in that order.

    U and V have orthonormal columns: the leading singular vectors of ``guide``, completed by random directions where it
    has fewer. ``guide``: (m, n); or (k, n) with k ≠ m, which knows of V alone; None for random subspaces.
    Raises ``ValueError`` for a rank that is not within 1 … min(m, n), and as ``svd``. Cost: one singular value
    decomposition of ``guide``.
    """
    m, n = shape
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"rank must be from 1 to {min(m, n)}, got {rank}")
    if len(scales) < 2:
        raise ValueError(f"a compressed product needs at least two factors, got {len(scales)}")
    left, right = torch.zeros(m, 0, dtype=torch.float64), torch.zeros(n, 0, dtype=torch.float64)
    if guide is not None:
        u, s, vh = svd(guide.cpu())
        sound = int((s > 1e-10 * s.max()).sum()) if s.numel() and bool(s.max() > 0) else 0
        known = min(rank, sound)
        right = vh[:known].mT
        left = u[:, :known] if len(u) == m else left
    outer = completed(left, rank, generator), completed(right, rank, generator).mT
    inner = [scale * torch.eye(rank, dtype=torch.float64) for scale in scales[1:-1]]
    return scales[0] * outer[0], *inner, scales[-1] * outer[1]


def completed(basis: Tensor, rank: int, generator: torch.Generator | None = None) -> Tensor:
    """``basis`` (d, k), orthonormal, with random orthonormal columns beside it: (d, rank), float64."""
    d, known = basis.shape
    more = torch.randn(d, rank - known, generator=generator, dtype=torch.float64)
    for _ in range(2):  # the second time for orthogonality to the last digit
        more = torch.linalg.qr(more - basis @ (basis.mT @ more)).Q
    return torch.cat([basis, more], -1)
