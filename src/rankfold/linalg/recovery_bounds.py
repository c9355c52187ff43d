"""What theory says of recovered outputs, as numbers: theorems 3.1, 4.4 and 4.9, and sharper bounds beside them.

After "Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks". N rows, k = rank of the inputs X̃, m
outputs; the truth is X̃ Mᵀ, the data its sum with noise G of deviation σ, P the projection onto the span of X̃. MSE is
the mean over the N·m entries of the squared error of the recovered outputs. The paper's rates have unknown constants:
`constant` stands for them, 1 unless given, so that only their growth means anything.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rankfold.linalg.decompositions import checked, singular_values
from rankfold.linalg.programs.entrywise import hazard

# --- theorem 3.1: the truth has rank r


def error_bound(rank: int, noise: float) -> float:
    """‖X̃(Z − M)ᵀ‖ ≤ 2 √(2 rank) ‖PG‖₂ for the best fit Z of that rank; `noise` = ‖PG‖₂. No probability in it."""
    return 2 * math.sqrt(2 * rank) * noise


def noise_bound(sigma: float, k: int, m: int, confidence: float = 0.99) -> float:
    """‖PG‖₂ ≤ σ(√k + √m + t) for Gaussian G with probability `confidence` = 1 − exp(−t²/2), at least."""
    if not 0 <= confidence < 1:
        raise ValueError(f"confidence, a probability, must be below 1, got {confidence:g}")
    return sigma * (math.sqrt(k) + math.sqrt(m) + math.sqrt(-2 * math.log1p(-confidence)))


def mse_bound(rank: int, sigma: float, rows: int, k: int, m: int, confidence: float = 0.99) -> float:
    """Theorem 3.1 for Gaussian noise, with its constants: 8 σ² r (√k + √m + t)²/(N m)."""
    return error_bound(rank, noise_bound(sigma, k, m, confidence)) ** 2 / (rows * m)


def mse_expected(rank: int, sigma: float, rows: int, k: int, m: int) -> float:
    """What the best fit of rank r attains where the signal is well above the noise: σ² r (k + m − r)/(N m).

    The variance σ² times the dimension of the matrices of rank r in coordinates of the inputs. Not a bound.
    """
    return sigma**2 * rank * (k + m - rank) / (rows * m)


# --- theorem 4.4 and corollary 4.7: the truth has a small nuclear norm


def approximate_rank(outputs: Tensor) -> float:
    """The smallest r for which `outputs` (N, m) is approximately rank-r: ‖A‖_* ≤ √(r N m) ‖A‖_∞ (Definition 4.1).

    At most the rank. Beware: since the largest entry is far above the mean, it says little. A Gaussian matrix of
    2,000 × 128 and rank 64 has 2.4; a constraint built from it is slack and compresses nothing.
    """
    a = checked(outputs)
    if a.ndim != 2 or not a.numel() or not bool(a.any()):
        raise ValueError(
            "the approximate rank needs a matrix (two dimensions) with an entry other than 0, got "
            f"{'zeros' if a.ndim == 2 and a.numel() else f'a tensor of shape {tuple(a.shape)}'}"
        )
    return float(singular_values(a).sum() / a.abs().max()) ** 2 / a.numel()


def paper_radius(bound: float, rank: float, rows: int, m: int) -> float:
    """τ = α √(r N m), the nuclear norm that Definition 4.1 allows for entries up to `bound` α."""
    return bound * math.sqrt(rank * rows * m)


def constrained_mse_bound(radius: float, slope: float, rows: int, m: int, curvature: float = 1.0) -> float:
    """MSE ≤ 4 τ ‖PS‖₂/(w N m) for the minimum of a loss over ‖X̃Zᵀ‖_* ≤ τ, if the truth is in that ball. Ours.

    `slope` = ‖PS‖₂, S the slopes of the losses of the entries at the truth: G for squares, and the slopes of `Tobit`
    for the ReLU. `curvature` w: what the second derivatives of those losses are at least, within all other constraints
    (1 for squares, `relu_curvature` else). From (w/2)‖Δ‖² ≤ |⟨PS, Δ⟩| ≤ ‖PS‖₂ · 2τ: no probability in it. Tends to
    zero with more rows, which the paper's rate does not.
    """
    return 4 * radius * slope / (curvature * rows * m)


def constrained_mse_rate(bound: float, noise: float, rank: float, rows: int, m: int, constant: float = 1.0) -> float:
    """Theorem 4.4: C α(α + β) √(r (N + m)/(N m)), entries up to `bound` α and noise up to `noise` β."""
    return constant * bound * (bound + noise) * math.sqrt(rank * (rows + m) / (rows * m))


def misfit_rmse_bound(mse: float, misfit: float) -> float:
    """Corollary 4.7: a bound `mse` holds up to √mse + ε, in the root, for data that are ε from truth plus noise.

    `misfit` ε: the root mean square of that difference. Projections onto convex sets do not move points apart.
    """
    return math.sqrt(mse) + misfit


# --- theorem 4.9: of the data, their ReLU is seen


def relu_curvature(bound: float, sigma: float) -> float:
    """w = h(h + α/σ), h = φ/Φ at α/σ: second derivatives of the Tobit loss are at least this for entries up to α.

    Within (0, 1), and exponentially small in α²/(2σ²): .37, .11, .013, .00054 at α/σ = 1, 2, 3, 4.
    """
    t = _ratio(bound, sigma)
    h = float(hazard(torch.tensor(-t, dtype=torch.float64)))
    return h * (h + t)


def relu_slope_bound(sigma: float, k: int, m: int) -> float:
    """E‖PS‖₂ ≤ σ(√k + √m), S the slopes of the Tobit loss at the truth: S = −E[G | data], so Jensen's inequality."""
    return sigma * (math.sqrt(k) + math.sqrt(m))


def relu_mse_rate(bound: float, sigma: float, rank: float, rows: int, m: int, constant: float = 1.0) -> float:
    """Theorem 4.9: C α (L/β₀) √(r (N + m)/(N m)).

    L = (2α + 2σ √log(N m))/σ² is the Lipschitz constant of the log-likelihood, up to constants, and
    β₀ = inf_{|ξ|≤α} f′(ξ)²/(8 f(ξ)(1 − f(ξ))), f = Φ(·/σ), which is attained at α.
    """
    t = torch.tensor(_ratio(bound, sigma), dtype=torch.float64)
    beta = float(hazard(t) * hazard(-t)) / (8 * sigma**2)
    lipschitz = (2 * bound + 2 * sigma * math.sqrt(math.log(rows * m))) / sigma**2
    return constant * bound * lipschitz / beta * math.sqrt(rank * (rows + m) / (rows * m))


def _ratio(bound: float, sigma: float) -> float:
    if not (0 < bound < math.inf and 0 < sigma < math.inf):
        raise ValueError(f"bound and sigma must be above 0 and finite, got {bound:g} and {sigma:g}")
    return bound / sigma
