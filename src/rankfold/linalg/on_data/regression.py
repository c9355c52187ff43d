"""Least squares of outputs on other inputs: the full-rank solution that `project` then makes low-rank.

A layer of a compressed network sees inputs x̃ that are not those of the original one, and is to give the original
outputs y. For every rank the best Z is the projection of the least-squares solution Ẑ, since
‖Y − X̃Zᵀ‖² = ‖Y − X̃Ẑᵀ‖² + ‖X̃(Ẑ − Z)ᵀ‖²: `project(Ẑ, inputs=G̃)`. This is theorem 3.1 of "Theoretical Guarantees for
Low-Rank Compression of Deep Neural Networks" (reduced-rank regression), and it projects onto the span of X̃ *before* it
truncates; the other order is not optimal.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.linalg.decompositions import checked, eigh, svd

# of the largest eigenvalue of a Gram matrix whose diagonal is scaled to 1: below this it is rounding
CUT = 1e-12


@dataclass(frozen=True, eq=False)
class GramInverse:
    """The pseudo-inverse of G (…, n, n) as `root` rootᵀ, `root` (…, n, k) with rootᵀ G root = I. Made by `invert`."""

    root: Tensor
    rank: int

    def __matmul__(self, a: Tensor) -> Tensor:
        return self.root @ (self.root.mT @ a)


def invert(gram: Tensor, cut: float = CUT) -> GramInverse:
    """The pseudo-inverse of a second moment G (…, n, n), once, for many right-hand sides.

    The diagonal is scaled to one first, so that a channel of another magnitude does not decide what counts as zero;
    eigenvalues below `cut` of the largest are then zero. `rank` is the largest of the batch. Cost O(n³), float64.
    Raises as `eigh`, and `ValueError` for a cut outside [0, 1).
    """
    if not 0 <= cut < 1:
        raise ValueError(f"cut, a share of the largest eigenvalue, must be at least 0 and below 1, got {cut:g}")
    gram = checked(gram)
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    scale = torch.where(scale > 0, 1 / scale, 0.0)
    values, vectors = eigh(scale.unsqueeze(-1) * gram * scale.unsqueeze(-2))
    kept = values > cut * values[..., :1]
    rank = int(kept.sum(-1).max()) if values.numel() else 0
    factors = torch.where(kept, values, 1.0).rsqrt() * kept
    root = scale.unsqueeze(-1) * vectors * factors.unsqueeze(-2)
    return GramInverse(root[..., :rank], rank)


def least_squares(
    gram: Tensor, cross: Tensor, *, anchor: Tensor | None = None, ridge: float = 0.0, cut: float = CUT
) -> Tensor:
    """The weight Z (…, m, n) that minimises ‖Y − X Zᵀ‖² + ridge ‖Z − anchor‖², float64.

    `gram`: XᵀX (…, n, n); `cross`: XᵀY (…, n, m); both centred for a free bias ȳ − Z x̄. `anchor`: a weight (…, m,
    n), 0 if None: where the data say nothing, Z does what the anchor does, also without a ridge. `ridge` is in the
    units of `gram`. Solved for the difference from the anchor, so that what already fits loses no digits. Singular
    statistics are handled by `cut`, see `invert`.

    `project(Z, inputs=gram + ridge I)` gives the optimum of every rank. Cost O(n³ + n² m).
    Raises `ValueError` (shapes, ridge below 0) and as `checked`.
    """
    gram, cross = checked(gram), checked(cross)
    n, m = cross.shape[-2:]
    if gram.shape != (*cross.shape[:-2], n, n):
        raise ValueError(
            f"a second moment of shape {tuple(gram.shape)} and a cross moment of shape {tuple(cross.shape)} do not "
            "fit together"
        )
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be at least 0 and finite, got {ridge}")
    start = cross.new_zeros(*cross.shape[:-2], m, n) if anchor is None else checked(anchor)
    if start.shape != (*cross.shape[:-2], m, n):
        raise ValueError(
            f"an anchor of shape {tuple(start.shape)} does not fit a cross moment of shape {tuple(cross.shape)}: "
            "both are outputs × inputs"
        )
    damped = gram + ridge * torch.eye(n, dtype=gram.dtype, device=gram.device) if ridge else gram
    return start + (invert(damped, cut) @ (cross - gram @ start.mT)).mT


def squared_error(weight: Tensor, gram: Tensor, cross: Tensor, energy: Tensor) -> Tensor:
    """‖Y − X Zᵀ‖² of any weight Z (…, m, n) from moments alone: `energy` = ‖Y‖² (…,), the others as `least_squares`.

    At least 0. Correct to 1e-15 of `energy`: of an error much smaller than that, fewer digits are right.
    """
    weight, gram, cross = checked(weight), checked(gram), checked(cross)
    fitted = (weight * (weight @ gram - 2 * cross.mT)).sum((-2, -1))
    return (checked(energy) + fitted).clamp_min(0.0)


@dataclass(frozen=True, eq=False)
class ColumnSpace:
    """Orthonormal columns `basis` (N, k) of rows X (N, n), and `back` (n, k) with X back = basis. See
    `column_space`."""

    basis: Tensor
    back: Tensor


def column_space(x: Tensor, cut: float = 1e-10) -> ColumnSpace:
    """An orthonormal basis of the column space of X (N, n), float64, by QR and SVD: no Gram matrix, no squared
    condition.

    Columns are scaled to norm one first; singular values below `cut` of the largest count as zero. Whatever is fitted
    to X depends on its column space alone, so nothing changes when X becomes X R, R invertible. Cost O(N n²).
    """
    x = checked(x)
    if x.ndim != 2:
        raise ValueError(f"rows of shape (N, n) were expected, got shape {tuple(x.shape)}")
    scale = x.norm(dim=0)
    scale = torch.where(scale > 0, 1 / scale, 0.0)
    q, r = torch.linalg.qr(x * scale)
    u, s, vh = svd(r)
    rank = int((s > cut * s[:1]).sum()) if s.numel() else 0
    return ColumnSpace(q @ u[:, :rank], scale.unsqueeze(-1) * vh[:rank].mT / s[:rank])
