"""Narrower bottlenecks: which directions of r activations to keep so that what is computed from them moves least.

A factored layer sends its r activations z through a second factor V. Kept are r' combinations U z, and V is fitted
anew: V' minimises E‖V z − V' U z‖² with a free bias. Statistics enter as *roots*, a triangle L with L Lᵀ = Cov z and a
matrix R with Rᵀ R = Vᵀ D V (D a metric of the outputs), never as their squares: in float32 too, singular values are
then known down to 1e-7 of the largest.

For plain activations the optimum follows from one singular value decomposition R L = A Σ Bᵀ: U = A₁ᵀ R,
V' = V L B₁ Σ₁⁻¹, and the squared error is the sum of the squared values left out (theorem 3.1 of "Theoretical
Guarantees for Low-Rank Compression of Deep Neural Networks" with the second factor as the weight). Where V is a 1×k
convolution, z is a patch of k positions and U acts on each of them alike: ``project_spatial`` finds U, and V' is a
linear least-squares problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rankfold.linalg.decompositions import checked, eigh, svd
from rankfold.linalg.on_data.projection import tails
from rankfold.linalg.on_data.spatial import SpatialProjection, project_spatial

# directions whose standard deviation is below this fraction of the largest are rounding
_NOISE = 1e-13


class Narrowing(Protocol):
    """Ways into a narrower bottleneck, at every rank 1 … r."""

    @property
    def errors(self) -> Tensor:
        """(r + 1,) float64: the error at rank 0 … r, over the groups together; never rising."""
        ...

    def maps(self, rank: int) -> tuple[Tensor, Tensor]:
        """``inwards`` (…, rank, r), which makes the new activations of the old, and ``outwards`` (…, q, rank·k).

        The new second factor is the old one, (…, m, q), times ``outwards``.
        """
        ...


@dataclass(frozen=True, eq=False)
class Ordered:
    """The bottleneck of plain activations, (…, r): nested, so that smaller ranks are leading parts of larger ones."""

    values: Tensor  # (…, r)
    _inwards: Tensor  # (…, r, r)
    _outwards: Tensor  # (…, r, r)

    @property
    def errors(self) -> Tensor:
        return tails(self.values if self.values.ndim == 1 else self.values.square().sum(0).sqrt())

    def maps(self, rank: int) -> tuple[Tensor, Tensor]:
        _check(rank, self.values.shape[-1])
        return self._inwards[..., :rank, :], self._outwards[..., :rank]


@dataclass(frozen=True, eq=False)
class OrderedPatches:
    """The bottleneck of patches, (r·k,) with the positions inside."""

    projection: SpatialProjection
    root: Tensor
    positions: int

    @property
    def errors(self) -> Tensor:
        return self.projection.errors

    def maps(self, rank: int) -> tuple[Tensor, Tensor]:
        _check(rank, len(self.projection.values))
        inwards = self.projection.factors(rank)[1]
        return inwards, _regression(spread(inwards, self.positions), self.root)


def narrow(weighting: Tensor, root: Tensor, positions: int = 1) -> Narrowing:
    """The best narrower bottlenecks, from R (…, p, q), Rᵀ R = Vᵀ D V, and a root L (…, q, q), L Lᵀ = Cov z.

    ``positions`` k > 1: z are patches of r channels at k places, channel by channel, q = r·k; no groups then.
    float64. Cost: one singular value decomposition of size q; for patches what ``project_spatial`` costs.
    Raises ``ValueError`` for shapes that do not fit, and as ``checked``.
    """
    weighting, root = checked(weighting), checked(root)
    q = root.shape[-1]
    if root.shape[-2] != q or weighting.shape[-1] != q or weighting.shape[:-2] != root.shape[:-2] or q % positions:
        raise ValueError(
            f"a root {tuple(root.shape)} does not fit weights {tuple(weighting.shape)} at {positions} positions"
        )
    if positions > 1:
        kernel = weighting.reshape(-1, q // positions, 1, positions)
        return OrderedPatches(project_spatial(kernel, root @ root.mT), root, positions)
    left, values, right = svd(_tall(weighting) @ root)
    scale = torch.where(values > _NOISE * values[..., :1], values, torch.inf)
    return Ordered(values, left.mT @ _tall(weighting), root @ right.mT / scale.unsqueeze(-2))


def _tall(weighting: Tensor) -> Tensor:
    """With at least as many rows as columns, so that there is one singular value for each activation."""
    missing = max(0, weighting.shape[-1] - weighting.shape[-2])
    return torch.nn.functional.pad(weighting, (0, 0, 0, missing))


def spread(inwards: Tensor, positions: int) -> Tensor:
    """The same map at every position of a patch: (…, r', r) → (…, r'·k, r·k), positions inside."""
    if positions == 1:
        return inwards
    return torch.kron(inwards, torch.eye(positions, dtype=inwards.dtype, device=inwards.device))


def _regression(inwards: Tensor, root: Tensor) -> Tensor:
    """(q, q'): the best linear guess of z from U z, from singular values, so that nothing is squared."""
    u, s, vh = svd(inwards @ root)
    inverse = torch.where(s > _NOISE * s[..., :1], 1 / s, 0.0)
    return root @ (vh.mT * inverse.unsqueeze(-2)) @ u.mT


def triangle(a: Tensor) -> Tensor:
    """The lower triangular L (…, n, n) with L Lᵀ = A Aᵀ, for A (…, n, s), s ≥ n, without squaring: by QR."""
    lower = torch.linalg.qr(checked(a).mT, mode="r").R.mT
    return lower * torch.where(lower.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)


def root_of(moment: Tensor) -> Tensor:
    """A lower triangular root L (…, n, n), L Lᵀ = ``moment``, of a positive semidefinite matrix, singular ones too."""
    moment = checked(moment)
    lower, failed = torch.linalg.cholesky_ex(moment)
    if not bool(failed.any()):
        return lower
    values, vectors = eigh(moment)
    return triangle(vectors * values.sqrt().unsqueeze(-2))


def _check(rank: int, largest: int) -> None:
    if not 1 <= rank <= largest:
        raise ValueError(f"rank must be from 1 to {largest}, got {rank}")
