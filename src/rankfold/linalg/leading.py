"""The leading singular triplets of a matrix, and the error of every rank among them, without a full decomposition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.linalg.decompositions import checked, svd

OVERSAMPLED = 16  # directions beside those that are asked for
POWER = 3  # times that the directions are turned towards the leading ones
_SMALL = 256  # sides up to which float64 costs nothing worth saving
_ROWS = 1 << 22  # numbers of a residual that are formed at once


@dataclass(frozen=True)
class Leading:
    """``left`` (m, k), ``values`` (k,) descending and ``right`` (k, n), float64 values and factors in the dtype of the
    matrix; ``rest``: the squared norm of what lies outside of them, summed, not subtracted."""

    left: Tensor
    values: Tensor
    right: Tensor
    rest: float
    full: bool  # nothing lies outside but rounding: more directions would say no more

    @property
    def losses(self) -> Tensor:
        """Squared error of every rank 0 … k: (k + 1,), float64."""
        squares = self.values.square()
        tail = squares.flip(0).cumsum(0).flip(0)
        return torch.cat([tail, tail.new_zeros(1)]) + self.rest

    def pair(self, rank: int) -> tuple[Tensor, Tensor]:
        """A (rank, n) and B (m, rank) of equal weight: B A is the approximation of that rank."""
        half = self.values[:rank].sqrt().to(self.left.dtype)
        return half.unsqueeze(-1) * self.right[:rank], self.left[:, :rank] * half


def leading(matrix: Tensor, rank: int, *, generator: torch.Generator | None = None) -> Leading:
    """The leading ``rank`` singular triplets of ``matrix`` (m, n), and exactly what they leave.

    By random directions that are turned ``POWER`` times towards the leading ones, in float32 or float64 as the matrix
    is (Halko, Martinsson, Tropp 2011, algorithm 4.4); from a quarter of all directions on by a full decomposition. The
    errors in ``losses`` are those of the triplets that are given, not estimates: ‖A − QQᵀA‖² is summed. For a spectrum
    of any decay they lie within a percent of the best of the same rank. Cost O(m n (rank + OVERSAMPLED)). Raises as
    ``svd``.
    """
    a = checked(matrix, torch.float64 if matrix.dtype == torch.float64 else torch.float32)
    m, n = a.shape
    least = min(m, n)
    if rank < 0:
        raise ValueError(f"rank must be at least 0, got {rank}")
    if 4 * (rank + OVERSAMPLED) >= least:
        u, s, vh = svd(a.T if m < n else a, torch.float64 if least <= _SMALL else a.dtype)
        u, vh = u.to(a.dtype), vh.to(a.dtype)
        return Leading(vh.T, s.double(), u.T, 0.0, True) if m < n else Leading(u, s.double(), vh, 0.0, True)
    generator = generator or torch.Generator().manual_seed(0)
    drawn = torch.randn(n, rank + OVERSAMPLED, generator=generator, dtype=torch.float32).to(a)
    basis = torch.linalg.qr(a @ drawn)[0]
    for _ in range(POWER):
        basis = torch.linalg.qr(a @ torch.linalg.qr(a.T @ basis)[0])[0]
    across, upper = torch.linalg.qr(a.T @ basis)  # (n, k), (k, k): basisᵀ a = upperᵀ acrossᵀ
    u, s, vh = svd(upper.T)
    rest = _outside(a, basis, across @ upper)
    return Leading(basis @ u.to(a), s, vh.to(a) @ across.T, rest, rest <= 1e-12 * float(s.square().sum()))


def _outside(a: Tensor, basis: Tensor, coefficients: Tensor) -> float:
    """‖a − basis coefficientsᵀ‖², some rows at a time."""
    step = max(1, _ROWS // max(a.shape[1], 1))
    parts = (a[i : i + step] - basis[i : i + step] @ coefficients.T for i in range(0, len(a), step))
    return sum(float(part.square().sum(dtype=torch.float64)) for part in parts)


def leading_of_product(left: Tensor, right: Tensor) -> Leading:
    """All singular triplets of ``left`` (m, k) @ ``right`` (k, n), which is not formed; float64. Cost O((m + n) k²)."""
    first, core = torch.linalg.qr(checked(left))
    second, upper = torch.linalg.qr(checked(right).T)
    u, s, vh = svd(core @ upper.T)
    return Leading(first @ u, s, vh @ second.T, 0.0, True)
