"""A matrix as a product of several, of equal weight, and back."""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from rankfold.linalg.decompositions import checked, svd


def balanced_factors(
    matrix: Tensor, count: int = 2, inner: Sequence[int] | None = None, powers: Sequence[float] | None = None
) -> tuple[Tensor, ...]:
    """Factors R_1 (m, d_1), R_2 (d_1, d_2), …, R_count (d_{count−1}, n) whose product is `matrix` (m, n);
    batches likewise.

    They minimise p Σ‖R_i‖_{p_i}^{p_i}/p_i over all factorisations, 1/p = Σ 1/p_i, and attain ‖matrix‖_p^p
    (Schatten quasi-norms; LoRITa, Proposition 4.2): R_1 = U Σ^{p/p_1}, R_i = Σ^{p/p_i}, R_count =
    Σ^{p/p_count} Vᵀ.

    `powers`: the p_i > 0 (default all 2, the Frobenius norm: then p = 2/count and the shares are equal).
    `inner`: the d_i; larger than min(m, n) is padded with zeros, smaller keeps the best approximation of that
    rank.
    Returned in the dtype of `matrix`, of whole numbers in float64. Cost: one SVD. Raises as `svd`, and `ValueError`
    for sizes that do not fit.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    dtype = matrix.dtype if matrix.is_floating_point() else torch.float64
    matrix = checked(matrix)
    m, n = matrix.shape[-2:]
    sizes = [min(m, n)] * (count - 1) if inner is None else list(inner)
    powers = [2.0] * count if powers is None else list(powers)
    if len(sizes) != count - 1 or any(size < 0 for size in sizes):
        raise ValueError(f"{count} factors have {count - 1} inner sizes of at least 0, got {sizes}")
    if len(powers) != count or any(not 0 < power < math.inf for power in powers):
        raise ValueError(f"{count} factors need {count} positive powers, got {powers}")
    if count == 1:
        return (matrix.to(dtype, copy=True),)
    u, s, vh = svd(matrix)
    rank = min([s.shape[-1], *sizes])
    u, s, vh = u[..., :rank], s[..., :rank], vh[..., :rank, :]
    total = 1.0 / sum(1.0 / power for power in powers)
    shares = [s.pow(total / power) for power in powers]
    factors = [
        _padded(u * shares[0].unsqueeze(-2), m, sizes[0]),
        *(
            _padded(torch.diag_embed(share), rows, columns)
            for share, rows, columns in zip(shares[1:-1], sizes[:-1], sizes[1:])
        ),
        _padded(shares[-1].unsqueeze(-1) * vh, sizes[-1], n),
    ]
    return tuple(factor.to(dtype) for factor in factors)


def free_factors(matrix: Tensor, sizes: Sequence[int], generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
    """`balanced_factors` of `sizes` (m, d_1, …, n); of a matrix of zeros, each of a batch by itself, a zero R_1 and
    (semi-)orthogonal others, drawn from `generator`, on the CPU: no gradient would reach any of several zeros.
    """
    first, *rest = balanced_factors(matrix, len(sizes) - 1, sizes[1:-1])
    empty = ~matrix.flatten(-2).any(-1)[..., None, None]
    if bool(empty.any()):
        drawn = [orthogonal(factor.shape, generator).to(factor) for factor in rest]
        rest = [torch.where(empty, new, factor) for new, factor in zip(drawn, rest, strict=True)]
    return first, *rest


def orthogonal(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """Columns or rows orthonormal, whichever are fewer, of the distribution that no rotation changes; float64."""
    tall = torch.randn(*shape, generator=generator, dtype=torch.float64)
    wide = shape[-2] < shape[-1]
    q, r = torch.linalg.qr(tall.mT if wide else tall)
    q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return q.mT if wide else q


def _padded(a: Tensor, rows: int, columns: int) -> Tensor:
    out = a.new_zeros(*a.shape[:-2], rows, columns)
    out[..., : a.shape[-2], : a.shape[-1]] = a
    return out


def product(factors: Sequence[Tensor]) -> Tensor:
    """R_1 R_2 … R_N: the inverse of `balanced_factors`. Differentiable; multiplied from the left."""
    if not factors:
        raise ValueError("a product needs at least one factor")
    return reduce(torch.matmul, factors)
