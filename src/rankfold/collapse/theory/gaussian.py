"""The within-cluster variation of Gaussian mixtures (section 4): exact law, tail bounds, proposition 4.1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import chi2
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """Balanced isotropic blobs: ``points`` (N, d), their ``blob`` (N,), ``centres`` (K, d), deviation ``sigma``."""

    points: Tensor
    blob: Tensor
    centres: Tensor
    sigma: float


def mixture(samples: int, dimension: int, blobs: int, sigma: float, generator: torch.Generator) -> Mixture:
    """x_i = μ_k + σ ξ_i with μ_k and ξ_i standard normal, float64; ``samples`` spread evenly over ``blobs``.

    Centres are drawn first, so that one seed gives the same centres and directions for every σ. Raises ``ValueError``
    for fewer samples than blobs.
    """
    if not 0 < blobs <= samples:
        raise ValueError(f"{samples} samples are too few for {blobs} blobs: give at least one for each")
    centres = torch.randn(blobs, dimension, dtype=torch.float64, generator=generator)
    blob = torch.arange(samples) % blobs
    noise = torch.randn(samples, dimension, dtype=torch.float64, generator=generator)
    return Mixture(centres[blob] + sigma * noise, blob, centres, sigma)


def scatter_interval(
    samples: int, dimension: int, blobs: int, sigma: float, level: float = 1e-6
) -> tuple[float, float]:
    """(low, high) that contain the blobs' S_x = (1/N) Σ‖x − x̄_k‖² except with probability ``level``.

    N S_x / σ² follows χ² with d (N − K) degrees of freedom exactly, for isotropic blobs of any sizes.
    """
    law = chi2(dimension * (samples - blobs))
    scale = sigma**2 / samples
    return scale * float(law.ppf(level / 2)), scale * float(law.isf(level / 2))


def stable_rank(covariance: Tensor) -> float:
    """r(Σ) = tr Σ / ‖Σ‖₂, the stable rank of Σ^{1/2}."""
    return float(covariance.trace() / torch.linalg.matrix_norm(covariance, 2))


def exceedance(samples: int, covariance: Tensor, t: float) -> float:
    """A bound of P(S_x ≥ (1 + t) tr Σ) for one Gaussian: exp(−N r(Σ) a(t)), a(t) = ((√(1 + 2t) − 1)/2)².

    The inequality (13) of the paper with an explicit constant, one-sided.
    """
    if t <= 0:
        return 1.0
    return math.exp(-samples * stable_rank(covariance) * ((math.sqrt(1 + 2 * t) - 1) / 2) ** 2)


@dataclass(frozen=True)
class MixtureBound:
    """TCV_{0,K} ≤ ``bound`` with probability at least ``probability`` (proposition 4.1, one-sided constants)."""

    bound: float
    probability: float

    @property
    def vacuous(self) -> bool:
        """Whether it promises nothing: a probability of 0."""
        return self.probability <= 0


def proposition_4_1(counts: Sequence[int], covariances: Sequence[Tensor], t: float) -> MixtureBound:
    """Autoencoding (y = x): 2(1 + t)(1/N) Σ_k N_k tr Σ_k, except with probability Σ_k exp(−N_k r(Σ_k) a(t))."""
    total = sum(counts)
    bound = 2 * (1 + t) / total * sum(n * float(s.trace()) for n, s in zip(counts, covariances, strict=True))
    missed = sum(exceedance(n, s, t) for n, s in zip(counts, covariances, strict=True))
    return MixtureBound(bound, max(0.0, 1 - missed))
