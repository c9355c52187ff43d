"""Least squares in the ball of the nuclear norm, exactly: one decomposition, its singular values shrunk.

minimise ‖Y − X Zᵀ‖ over weights Z with ‖X Zᵀ‖_* ≤ τ. Both norms see X Zᵀ alone, so the solution is the projection of
the least-squares fit onto a ball: the singular values that `project` finds, less one threshold. Truncation is the
same with no threshold; after `debias` nothing differs from it. The program of theorem 4.4 without its bound on single
entries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankfold.linalg.brief import brief
from rankfold.linalg.decompositions import checked
from rankfold.linalg.on_data.projection import Projection, project
from rankfold.linalg.on_data.regression import CUT, column_space, least_squares
from rankfold.linalg.programs.proximal import check_radius, threshold


@dataclass(frozen=True, eq=False)
class NuclearFit:
    """Z = left right, (m, r) and (r, n) float64, of the rank r that the radius leaves.

    `singular_values` (k,): those of the best full-rank fit X Zᵀ (with an output metric D, of X Zᵀ D^½), descending.
    `shrunk` (r,): those of the solution. `threshold`: what was subtracted, 0 where the radius does not bind.
    """

    left: Tensor
    right: Tensor
    singular_values: Tensor
    shrunk: Tensor
    threshold: float

    __repr__ = brief

    @property
    def rank(self) -> int:
        return len(self.shrunk)

    @property
    def lost(self) -> Tensor:
        """How far X Zᵀ is from the best full-rank fit, in the same norm; add ‖Y‖² − ‖fit‖² for the error."""
        kept = self.singular_values[: self.rank] - self.shrunk
        return torch.cat([kept, self.singular_values[self.rank :]]).norm()

    def debias(self) -> NuclearFit:
        """The same subspace with its singular values restored: the best fit of this rank (theorem 3.1)."""
        values = self.singular_values[: self.rank]
        right = self.right * (values / self.shrunk).unsqueeze(-1)
        return replace(self, right=right, shrunk=values, threshold=0.0)


class TiedError(ValueError):
    """No radius of the nuclear-norm ball leaves the rank that was asked for."""


def nuclear_radius(singular_values: Tensor, rank: int) -> float:
    """τ = Σ_{i≤rank} (s_i − s_{rank+1}): the largest radius at which `nuclear_fit` has at most that rank.

    Exactly that rank unless s_rank = s_{rank+1}. `singular_values` (k,) descending, as a `Projection` or a `NuclearFit`
    has them. Raises `ValueError` for a rank outside 1 … k, and `TiedError` where no radius above 0 exists: ties, or a
    fit of zero.
    """
    s = checked(singular_values)
    if not 1 <= rank <= len(s):
        raise ValueError(f"rank must be from 1 to {len(s)}, got {rank}")
    following = s[rank] if rank < len(s) else s.new_zeros(())
    radius = float((s[:rank] - following).sum())
    if radius <= 0:
        raise TiedError(
            f"the first {rank + 1} singular values are equal, so that no radius leaves rank {rank}: choose another rank"
        )
    return radius


def shrink_to_ball(projection: Projection, radius: float) -> NuclearFit:
    """The solution in the ball of `radius` from a projection of the full-rank fit: `project(least_squares(…),
    inputs=…)`.

    Exact, in the metric of the projection if it has one. Cost O(m k r). Raises `ValueError` for a radius that is not
    above 0 and for batches.
    """
    check_radius(radius)
    s = projection.singular_values.double()
    if s.ndim != 1:
        raise ValueError(
            f"singular values of one weight were expected, got those of a batch, of shape {tuple(s.shape)}"
        )
    subtracted = threshold(s, radius)
    shrunk = s - subtracted
    # values at the level of rounding belong to no rank
    rank = int((shrunk > 1e-12 * s[:1]).sum()) if len(s) else 0
    left, right = (factor.double() for factor in projection.factors(rank))
    right = right * (shrunk[:rank] / s[:rank]).unsqueeze(-1)
    return NuclearFit(left, right, s, shrunk[:rank], float(subtracted))


def nuclear_fit(
    gram: Tensor,
    cross: Tensor,
    *,
    radius: float | None = None,
    rank: int | None = None,
    metric: Tensor | None = None,
    cut: float = CUT,
) -> NuclearFit:
    """argmin ‖(Y − X Zᵀ) D^½‖ over ‖X Zᵀ D^½‖_* ≤ τ, from second moments (math A1; theorem 4.4 without its box).

    `gram` XᵀX (n, n) and `cross` XᵀY (n, m), centred for a free bias; `metric` D as in `project`. Give the `radius`
    τ, or a `rank` for the largest radius that leaves it. Directions of the inputs whose variance is below `cut`
    (relative, after scaling every input to variance one) are left out. Cost: O(n³ + n² m) and one eigenproblem of
    min(m, n). Raises `ValueError` (neither or both of radius and rank, radius not above 0, shapes) and as `checked`.
    """
    gram = checked(gram)
    return _fit(least_squares(gram, cross, cut=cut), gram, radius, rank, metric)


def nuclear_fit_rows(
    x: Tensor, y: Tensor, *, radius: float | None = None, rank: int | None = None, metric: Tensor | None = None
) -> NuclearFit:
    """`nuclear_fit` from rows x (N, n) and y (N, m), by orthogonal factors of x: for condition numbers above 1e5."""
    x, y = checked(x), checked(y)
    if y.ndim != 2 or len(x) != len(y) or len(x) < 1:
        raise ValueError(
            f"inputs and targets must have equally many rows, at least one, got shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    space = column_space(x)
    # in the coordinates of the basis, whose Gram matrix is the identity: that of x would square its condition
    count, unused = x.shape[1], x.shape[1] - space.basis.shape[1]
    full = torch.nn.functional.pad(y.mT @ space.basis, (0, unused))
    fit = _fit(full, torch.eye(count, dtype=x.dtype, device=x.device), radius, rank, metric)
    return replace(fit, right=fit.right @ torch.nn.functional.pad(space.back, (0, unused)).mT)


def _fit(full: Tensor, gram: Tensor, radius: float | None, rank: int | None, metric: Tensor | None) -> NuclearFit:
    if (radius is None) == (rank is None):
        raise ValueError("give either the radius of the nuclear-norm ball or the rank that it leaves, and not both")
    found = project(full, inputs=gram, metric=metric)
    if radius is None:
        assert rank is not None
        radius = nuclear_radius(found.singular_values, rank)
    return shrink_to_ball(found, radius)
