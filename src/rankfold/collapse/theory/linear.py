"""Deep linear networks (section 5): critical points, minimisers of data and of centroids, and bounds between them.

Samples are columns here, as in the paper: X (d, N), Y (c, N). Sums over samples, not means: with a mean loss give
X/√N and Y/√N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.collapse.partition import Partition
from rankfold.linalg import eigh, singular_values


def with_ridge(x: Tensor, y: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """X_λ = [X, √λ I], Y_λ = [Y, 0] (equation 18): ‖W X_λ − Y_λ‖² = ‖W X − Y‖² + λ‖W‖²."""
    d, c = len(x), len(y)
    return torch.cat([x, decay**0.5 * torch.eye(d).to(x)], 1), torch.cat([y, y.new_zeros(c, d)], 1)


def inverse_root(x: Tensor) -> Tensor:
    """(X Xᵀ)^{−1/2}; ``ValueError`` where X Xᵀ is singular (add ridge first)."""
    values, vectors = eigh(x @ x.mT)
    if not len(values) or not values[-1] > len(values) * torch.finfo(torch.float64).eps * values[0]:
        raise ValueError(f"X Xᵀ is singular for X of shape {tuple(x.shape)}: use with_ridge, or give more samples")
    return (vectors / values.sqrt()) @ vectors.mT


def target(x: Tensor, y: Tensor) -> Tensor:
    """Q = Y Xᵀ (X Xᵀ)^{−1/2} (equation 16), (c, d)."""
    return y.double() @ x.double().mT @ inverse_root(x.double())


def critical_point(x: Tensor, y: Tensor, directions: Sequence[int]) -> tuple[Tensor, float]:
    """W = Σ_{j∈J} σ_j u_j v_jᵀ (X Xᵀ)^{−1/2} and its loss ‖WX − Y‖² = ‖Y‖² − Σ_{j∈J} σ_j² (theorem 5.1)."""
    u, s, vh = torch.linalg.svd(target(x, y), full_matrices=False)
    chosen = list(directions)
    w = (u[:, chosen] * s[chosen]) @ vh[chosen] @ inverse_root(x.double())
    return w, float(y.double().square().sum() - s[chosen].square().sum())


def best_of_rank(x: Tensor, y: Tensor, rank: int, decay: float = 0.0) -> Tensor:
    """The global minimiser of ‖WX − Y‖² + λ‖W‖² over rank ≤ ``rank``: (Q_λ)_K (X Xᵀ + λI)^{−1/2} (equation 17)."""
    if decay > 0:
        x, y = with_ridge(x.double(), y.double(), decay)
    rank = min(rank, len(x), len(y))
    return critical_point(x, y, range(rank))[0]


def ridge(x: Tensor, y: Tensor, decay: float) -> Tensor:
    """W* = Y Xᵀ (X Xᵀ + λI)^{−1} (equation 21)."""
    x, y = x.double(), y.double()
    gram = x @ x.mT + decay * torch.eye(len(x)).to(x)
    return torch.linalg.solve(gram, x @ y.mT).mT


def centred_columns(x: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
    """(X̄, X − X̄): every column replaced by its cluster's mean (equation 20), and what is left."""
    sums = torch.zeros(len(x), partition.clusters, dtype=torch.float64).index_add_(1, partition.index, x.double())
    means = (sums / partition.counts)[:, partition.index]
    return means, x.double() - means


@dataclass(frozen=True)
class LinearBounds:
    """``distance`` = ‖W* − W_C*‖ ≥ dist(W*, M_K) = ``to_rank``, and what theorem 5.3 and ours say of it.

    ``printed`` = (1/(2λ) + ‖YXᵀ‖₂/λ²)(s_x + s_y); ``sharper`` = (√(s_x s_y) + ‖W*‖₂ s_x)/λ. ``labels`` bounds
    ‖W* − W_K*‖ = ``to_minimiser``: √(TCV^Y/λ) of theorem 5.4; ``labels_sharper`` with σ₁²/((σ₁²+λ)(σ_d²+λ)) for 1/λ.
    ``norm`` = ‖W*‖: a bound above it is vacuous.
    """

    norm: float
    to_rank: float
    distance: float
    printed: float
    sharper: float
    to_minimiser: float
    labels: float
    labels_sharper: float

    @property
    def vacuous(self) -> tuple[str, ...]:
        """The bounds that are not below ‖W*‖."""
        return tuple(
            name for name in ("printed", "sharper", "labels", "labels_sharper") if getattr(self, name) >= self.norm
        )


def linear_bounds(x: Tensor, y: Tensor, partition: Partition, decay: float) -> LinearBounds:
    """Theorems 5.3 and 5.4 for X (d, N), Y (c, N), λ > 0 on the end-to-end matrix.

    The partition's sums of squares are upper bounds of the TCVs, so that the bounds are true for any partition.
    ``ValueError`` for λ ≤ 0.
    """
    if not decay > 0:
        raise ValueError(f"the weight decay must be above 0, got {decay}")
    x, y = x.double(), y.double()
    means, rest = centred_columns(x, partition)
    labels, other = centred_columns(y, partition)
    w, centroid = ridge(x, y, decay), ridge(means, labels, decay)
    s_x, s_y = float(rest.square().sum()), float(other.square().sum())
    values = singular_values(x)
    low = float(values[-1]) ** 2 if len(values) == len(x) else 0.0
    top = float(values[0]) ** 2
    cross = float(torch.linalg.matrix_norm(y @ x.mT, 2))
    found = singular_values(w)
    return LinearBounds(
        norm=float(w.norm()),
        to_rank=float(found[partition.clusters :].norm()),
        distance=float((w - centroid).norm()),
        printed=(1 / (2 * decay) + cross / decay**2) * (s_x + s_y),
        sharper=((s_x * s_y) ** 0.5 + float(found[0]) * s_x) / decay,
        to_minimiser=float((w - best_of_rank(x, y, partition.clusters, decay)).norm()),
        labels=(s_y / decay) ** 0.5,
        labels_sharper=(s_y * top / ((top + decay) * (low + decay))) ** 0.5,
    )
