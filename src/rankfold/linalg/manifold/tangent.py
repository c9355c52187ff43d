"""Steps on the manifold of matrices of low rank: bases that a gradient extends, truncation, and what goes along.

A matrix is W = U S V with U (m, r) of orthonormal columns, S (r, r) and V (r, n) of orthonormal rows. Where one side
has no more directions the other goes on alone, and S is (p, q) until it is truncated. Of a gradient g
of W three thin products are enough: gVᵀ (m, r), Uᵀg (r, n) and UᵀgVᵀ (r, r). Nothing here inverts S, so that singular
values may be as small as they like, or zero; nothing of size m × n is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import torch
from torch import Tensor

from rankfold.linalg.errors import NonFiniteError

_NEGLIGIBLE = {torch.float64: 1e-12}  # of the largest direction; 1e-6 in float32 and below it


@dataclass(frozen=True)
class Triple:
    """U (m, p), S (p, q), V (q, n) of W = U S V, at rank r = min(p, q); p = q but between growth and truncation."""

    left: Tensor
    core: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return min(self.core.shape)

    @property
    def product(self) -> Tensor:
        """W itself, (m, n)."""
        return self.left @ self.core @ self.right

    @property
    def spectrum(self) -> Tensor:
        """The singular values of W, which are those of its core: O(r³). Raises ``NonFiniteError``."""
        return singular_values(self.core)

    def straightened(self) -> Triple:
        """The same W in orthonormal bases, where these are none."""
        left, r_left = orthonormal(self.left)
        right, r_right = orthonormal(self.right.mT)
        return Triple(left, r_left @ self.core @ r_right.mT, right.mT)

    def augmented(self, left_gradient: Tensor, right_gradient: Tensor, most: int | None = None) -> tuple[Triple, Turn]:
        """The same W in bases with the gradient's directions too, [U, U₁] and [V; V₁], and a core padded by zeros.

        With ``most`` only so many directions on either side, the gradient's largest.

        ``left_gradient`` gVᵀ (m, r), ``right_gradient`` Uᵀg (r, n). Each side grows by its own directions: a basis that
        is complete does not hold the other one back. (Rank-adaptive BUG, Ceruti, Kusch, Lubich 2022.)
        """
        most = self.rank if most is None else most
        below = new_directions(self.left, left_gradient)[:, :most]
        beside = new_directions(self.right.mT, right_gradient.mT)[:, :most]
        turn = Turn(*(torch.eye(n, n + new.shape[1]).to(self.core) for n, new in zip(self.core.shape, (below, beside))))
        left, right = torch.cat([self.left, below], 1), torch.cat([self.right, beside.mT])
        return Triple(left, turn.linear(self.core), right), turn

    def tangent_core(self, left_gradient: Tensor, right_gradient: Tensor, core_gradient: Tensor) -> Tensor:
        """The gradient of the core of ``augmented`` as far as the three products know it: its block U₁ᵀgV₁ᵀ is zero.

        A step S − η·this is W − η P(g) exactly, with P the projection onto the tangent space at W: the parallel
        integrator (Schotthöfer et al., GeoLoRA).
        """
        p, q = core_gradient.shape
        found = torch.zeros_like(self.core)
        found[:p, :q] = core_gradient
        found[p:, :q] = self.left[:, p:].mT @ left_gradient
        found[:p, q:] = right_gradient @ self.right[q:].mT
        return found

    def moved(self, left_gradient: Tensor, right_gradient: Tensor, rate: float) -> tuple[Triple, Turn]:
        """W projected onto the bases of K = US − ηgVᵀ and L = SV − ηUᵀg, at the same rank.

        The fixed-rank step ("unconventional" integrator, Ceruti and Lubich 2022) before its core is updated. The
        projection itself can raise a loss: it is no descent method.
        """
        left, _ = orthonormal(self.left @ self.core - rate * left_gradient)
        right, _ = orthonormal((self.core @ self.right - rate * right_gradient).mT)
        turn = Turn(self.left.mT @ left, self.right @ right)
        return Triple(left, turn.linear(self.core), right.mT), turn

    def truncated(self, rank: int) -> tuple[Triple, Turn]:
        """The best approximation of W at ``rank``: its leading singular directions, orthonormal to rounding again."""
        p, values, q = _svd(self.core)
        left, r_left = orthonormal(self.left @ p[:, :rank])
        right, r_right = orthonormal(self.right.mT @ q[:rank].mT)
        core = r_left @ torch.diag(values[:rank]) @ r_right.mT
        return Triple(left, core, right.mT), Turn(p[:, :rank], q[:rank].mT)


@dataclass(frozen=True)
class Turn:
    """How coordinates change with the bases: a core C becomes Aᵀ C B, with ``left`` A (r, q) and ``right`` B (r, q).

    Of a core with axes behind its first two, C (r, s, …), likewise along those two."""

    left: Tensor
    right: Tensor

    def linear(self, moment: Tensor) -> Tensor:
        """A mean of gradients of the core: it turns as the core does."""
        return torch.einsum("pa,pq...,qb->ab...", self.left, moment, self.right)

    def squared(self, moment: Tensor) -> Tensor:
        """A mean of squared gradients, entry by entry, as if the entries were uncorrelated; never negative."""
        return torch.einsum("pa,pq...,qb->ab...", self.left.square(), moment, self.right.square())


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


def rank_within(values: Tensor, tolerance: float, most: int | None = None) -> int:
    """The smallest rank whose tail (Σ_{i>r} σᵢ²)^½ is at most ``tolerance`` of ‖σ‖; at least 1, at most ``most``."""
    squares = values.double().square()
    tails = squares.flip(0).cumsum(0).flip(0)
    rank = int((tails > tolerance**2 * tails[:1]).sum())
    return max(1, min(rank, len(values) if most is None else most))


def ranks_within(worth: Sequence[Tensor], numbers: Sequence[Callable[[int], int]], budget: int) -> list[int]:
    """Ranks of several layers whose directions compete for ``budget``: as much of what they are worth for their price
    as can be had, each layer at least 1.

    ``worth`` of each layer: what its first direction, its second, … add, in one unit for all layers, as shares of a
    layer's energy or squares of what the loss would change by. ``numbers`` of each: how many it takes at a rank;
    r(m + n) for a matrix.

    Directions come in their order, as many at once as give most for what they take together. The best for its price is
    taken first, and after what no longer fits the best that still does: what is missed is worth at most as much as the
    one such bundle of directions. Cost O(Σ r²).
    """
    ranks = [1] * len(worth)
    left = budget - sum(price(1) for price in numbers)
    sums = [values.double().cumsum(0) for values in worth]
    costs = [
        torch.tensor([price(rank) for rank in range(1, len(values) + 1)], dtype=torch.float64)
        for values, price in zip(worth, numbers, strict=True)
    ]

    def offer(index: int) -> tuple[float, int, int] | None:
        """(−worth for its price, layer, the rank that it leads to), of what fits"""
        now = ranks[index]
        extra = costs[index][now:] - costs[index][now - 1]
        gains = torch.where(extra <= left, (sums[index][now:] - sums[index][now - 1]) / extra, 0.0)
        if not bool((gains > 0).any()):
            return None
        best = int(gains.argmax())
        return -float(gains[best]), index, now + best + 1

    waiting = [found for index in range(len(worth)) if (found := offer(index)) is not None]
    heapify(waiting)
    while waiting:
        _, index, rank = heappop(waiting)
        extra = numbers[index](rank) - numbers[index](ranks[index])
        if extra <= left:
            ranks[index], left = rank, left - extra
        if (found := offer(index)) is not None:  # another one, also where this no longer fits
            heappush(waiting, found)
    return ranks


def shares(values: Tensor) -> Tensor:
    """Of each direction's energy in all of a layer: σ²/Σσ²."""
    energy = values.double().square()
    return energy / energy.sum().clamp_min(1e-300)


def clamped(core: Tensor, condition: float) -> Tensor:
    """The core with singular values drawn into [μ(1 − e), μ(1 + e)], μ their mean and e = (τ − 1)/(τ + 1): the
    condition number is at most τ = ``condition`` then (CondLR, Savostianova et al. 2023)."""
    p, values, q = _svd(core)
    mean, share = values.mean(), (condition - 1) / (condition + 1)
    return (p * values.clamp(mean * (1 - share), mean * (1 + share))) @ q


def spread(core: Tensor) -> tuple[Tensor, Tensor]:
    """R(S) = ‖SᵀS − α²I‖, α² = ‖S‖²/r, of S (·, r), of Sᵀ where that has the fewer columns, and its gradient
    2S(SᵀS − α²I)/R: zero where all singular values are equal. κ(S) ≤ (1 + √2 R/σ_r²)^½ (RobustDLRT, Schotthöfer et al.
    2025).
    """
    if core.shape[1] > core.shape[0]:
        size, gradient = spread(core.mT)
        return size, gradient.mT
    away, rank = core.mT @ core, core.shape[1]
    away = away - torch.eye(rank, dtype=core.dtype, device=core.device) * (core.square().sum() / rank)
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
