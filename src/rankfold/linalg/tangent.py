"""Steps on the manifold of matrices of low rank: bases that a gradient extends, truncation, and what goes along.

A matrix is W = U S V with U (m, r) of orthonormal columns, S (r, r) and V (r, n) of orthonormal rows. Of a gradient g
of W three thin products are enough: gVᵀ (m, r), Uᵀg (r, n) and UᵀgVᵀ (r, r). Nothing here inverts S, so that singular
values may be as small as they like, or zero; nothing of size m × n is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.linalg.errors import NonFiniteError

_NEGLIGIBLE = {torch.float64: 1e-12}  # of the largest direction; 1e-6 in float32 and below it


@dataclass(frozen=True)
class Triple:
    """U (m, r), S (r, r), V (r, n) of W = U S V."""

    left: Tensor
    core: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.core.shape[0]

    @property
    def product(self) -> Tensor:
        """W itself, (m, n)."""
        return self.left @ self.core @ self.right


@dataclass(frozen=True)
class Turn:
    """How coordinates change with the bases: a core C becomes Aᵀ C B, with ``left`` A (r, q) and ``right`` B (r, q)."""

    left: Tensor
    right: Tensor

    def linear(self, moment: Tensor) -> Tensor:
        """A mean of gradients of the core: it turns as the core does."""
        return self.left.mT @ moment @ self.right

    def squared(self, moment: Tensor) -> Tensor:
        """A mean of squared gradients, entry by entry, as if the entries were uncorrelated; never negative."""
        return self.left.square().mT @ moment @ self.right.square()


def starting(weight: Tensor, rank: int) -> Triple:
    """The leading ``rank`` singular triples of a matrix, by its SVD. Raises ``NonFiniteError``."""
    if not bool(weight.isfinite().all()):
        raise NonFiniteError(f"a weight of shape {tuple(weight.shape)} holds NaN or infinity")
    left, values, right = torch.linalg.svd(wide(weight), full_matrices=False)
    return Triple(left[:, :rank], torch.diag(values[:rank]), right[:rank])


def new_directions(basis: Tensor, candidates: Tensor) -> Tensor:
    """Orthonormal directions (m, q) of ``candidates`` (m, k) that lie outside ``basis`` (m, r); q ≤ min(k, m − r).

    What is negligible beside the largest candidate is left out: a QR of both together would return arbitrary
    directions for candidates that lie in the basis. Projected twice, and once more at unit length. Cost O(m(r + k)²).
    """
    outside = candidates - basis @ (basis.mT @ candidates)
    outside = outside - basis @ (basis.mT @ outside)
    size = float(candidates.norm())
    if size == 0 or basis.shape[0] == basis.shape[1]:
        return candidates[:, :0]
    found, values, _ = torch.linalg.svd(outside, full_matrices=False)
    count = int((values > _NEGLIGIBLE.get(candidates.dtype, 1e-6) * size).sum())
    found = found[:, : min(count, basis.shape[0] - basis.shape[1])]
    found = found - basis @ (basis.mT @ found)
    return orthonormal(found)[0]


def orthonormal(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Q, R of ``columns`` with a positive diagonal of R, so that columns that are orthonormal already stay."""
    q, r = torch.linalg.qr(columns)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(r)
    return q * signs, signs.unsqueeze(1) * r


def augmented(
    now: Triple, left_gradient: Tensor, right_gradient: Tensor, most: int | None = None
) -> tuple[Triple, Turn]:
    """The same W in bases that also hold the gradient's directions, [U, U₁] and [V; V₁], with a core padded by zeros.

    With ``most`` only so many directions, the gradient's largest.

    ``left_gradient`` gVᵀ (m, r), ``right_gradient`` Uᵀg (r, n). The ranks of both sides grow together, by the smaller
    number of new directions, so that the core stays square. (Rank-adaptive BUG, Ceruti, Kusch, Lubich 2022.)
    """
    below = new_directions(now.left, left_gradient)
    beside = new_directions(now.right.mT, right_gradient.mT)
    extra = min(below.shape[1], beside.shape[1], now.rank if most is None else most)
    left = torch.cat([now.left, below[:, :extra]], 1)
    right = torch.cat([now.right, beside[:, :extra].mT])
    turn = torch.eye(now.rank, now.rank + extra, dtype=now.core.dtype, device=now.core.device)
    return Triple(left, turn.mT @ now.core @ turn, right), Turn(turn, turn)


def tangent_core(wide: Triple, left_gradient: Tensor, right_gradient: Tensor, core_gradient: Tensor) -> Tensor:
    """The gradient of the core of ``augmented`` as far as the three products know it: its block U₁ᵀgV₁ᵀ is zero.

    A step S − η·this is W − η P(g) exactly, with P the projection onto the tangent space at W: the parallel integrator
    (Schotthöfer et al., GeoLoRA).
    """
    rank = core_gradient.shape[0]
    found = torch.zeros_like(wide.core)
    found[:rank, :rank] = core_gradient
    found[rank:, :rank] = wide.left[:, rank:].mT @ left_gradient
    found[:rank, rank:] = right_gradient @ wide.right[rank:].mT
    return found


def moved(now: Triple, left_gradient: Tensor, right_gradient: Tensor, rate: float) -> tuple[Triple, Turn]:
    """W projected onto the bases of K = US − ηgVᵀ and L = SV − ηUᵀg, at the same rank.

    The fixed-rank step ("unconventional" integrator, Ceruti and Lubich 2022) before its core is updated. The projection
    itself can raise a loss: it is no descent method.
    """
    left, _ = orthonormal(now.left @ now.core - rate * left_gradient)
    right, _ = orthonormal((now.core @ now.right - rate * right_gradient).mT)
    turn = Turn(now.left.mT @ left, now.right @ right)
    return Triple(left, turn.linear(now.core), right.mT), turn


def truncated(now: Triple, rank: int) -> tuple[Triple, Turn]:
    """The best approximation of ``now`` at ``rank``: its leading singular directions, orthonormal to rounding again."""
    p, values, q = _svd(now.core)
    left, r_left = orthonormal(now.left @ p[:, :rank])
    right, r_right = orthonormal(now.right.mT @ q[:rank].mT)
    core = r_left @ torch.diag(values[:rank]) @ r_right.mT
    return Triple(left, core, right.mT), Turn(p[:, :rank], q[:rank].mT)


def rank_within(values: Tensor, tolerance: float, most: int | None = None) -> int:
    """The smallest rank whose tail (Σ_{i>r} σᵢ²)^½ is at most ``tolerance`` of ‖σ‖; at least 1, at most ``most``."""
    squares = values.double().square()
    tails = squares.flip(0).cumsum(0).flip(0)
    rank = int((tails > tolerance**2 * tails[:1]).sum())
    return max(1, min(rank, len(values) if most is None else most))


def ranks_within(spectra: Sequence[Tensor], prices: Sequence[int], budget: int) -> list[int]:
    """Ranks of several matrices whose directions compete for ``budget``: as much of each one's energy for its price as
    can be had, each at least 1. ``prices``: numbers that one direction of each takes, m + n.

    Within a matrix directions go in order of their values, so that the best energy for the price taken first is the
    optimum up to the one direction that no longer fits; smaller ones that do still fit are taken after it.
    """
    ranks = [1] * len(spectra)
    left = budget - sum(prices)
    offers = []
    for index, (values, price) in enumerate(zip(spectra, prices, strict=True)):
        share = values.double().square()
        share = share / share.sum().clamp_min(1e-300)
        offers += [(-float(gain) / price, index) for gain in share[1:] if gain > 0]
    full: set[int] = set()
    for _, index in sorted(offers):
        if index in full:
            continue
        if prices[index] > left:
            full.add(index)
            continue
        ranks[index] += 1
        left -= prices[index]
    return ranks


def clamped(core: Tensor, condition: float) -> Tensor:
    """The core with singular values drawn into [μ(1 − e), μ(1 + e)], μ their mean and e = (τ − 1)/(τ + 1): the
    condition number is at most τ = ``condition`` then (CondLR, Savostianova et al. 2023)."""
    p, values, q = _svd(core)
    mean, share = values.mean(), (condition - 1) / (condition + 1)
    return (p * values.clamp(mean * (1 - share), mean * (1 + share))) @ q


def spread(core: Tensor) -> tuple[Tensor, Tensor]:
    """R(S) = ‖SᵀS − α²I‖, α² = ‖S‖²/r, and its gradient 2S(SᵀS − α²I)/R: zero where all singular values are equal.

    κ(S) ≤ (1 + √2 R/σ_r²)^½ (RobustDLRT, Schotthöfer et al. 2025).
    """
    away = core.mT @ core
    away = away - torch.eye(len(core), dtype=core.dtype, device=core.device) * (core.square().sum() / len(core))
    size = away.norm()
    return size, torch.where(size > 0, 2 * core @ away / size.clamp_min(torch.finfo(core.dtype).tiny), 0.0)


def singular_values(core: Tensor) -> Tensor:
    """Those of W, which are those of its core: O(r³). Raises ``NonFiniteError``."""
    return _svd(core)[1]


def _svd(core: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not bool(core.isfinite().all()):
        raise NonFiniteError(f"a core of shape {tuple(core.shape)} holds NaN or infinity")
    return torch.linalg.svd(core, full_matrices=False)


def wide(x: Tensor) -> Tensor:
    """In at least float32: there is no linear algebra in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
