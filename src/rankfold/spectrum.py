"""Spectrum: the singular values of a matrix, and every question that they answer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankfold.linalg import NonFiniteError, checked, singular_values
from rankfold.linalg.brief import brief

_ROUNDING = 1e-9  # of what may be left out: 1 - 0.8 is less than 0.2


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of an (m, n) matrix, descending. *Energy* is a sum of squares, *error* a Frobenius norm.

    Args:
        values: (k,) float64 on the CPU, k ≤ min(m, n).
        shape: (m, n).
        unseen_energy: the energy of values that were not computed, measured on its own and never found by subtraction;
            0 for a complete spectrum.

    Raises:
        ValueError: values that are not descending, negative, or more than the shape allows.
        NonFiniteError: values that are not finite.

    Example:
        >>> s = rf.Spectrum(torch.tensor([3.0, 4e-9], dtype=torch.float64), (5, 2))
        >>> s.energy, s.numerical_rank(1e-6), round(s.stable_rank, 3)
        (9.0, 1, 1.0)
    """

    values: Tensor
    shape: tuple[int, int]
    unseen_energy: float = 0.0

    __repr__ = brief

    def __post_init__(self) -> None:
        values = checked(torch.as_tensor(self.values)).cpu()
        m, n = (int(size) for size in self.shape)
        if values.ndim != 1 or min(m, n) < 0 or len(values) > min(m, n):
            raise ValueError(
                f"values of shape {tuple(values.shape)} cannot be the spectrum of a matrix of shape {(m, n)}"
            )
        if len(values) and (bool((values.diff() > 0).any()) or float(values[-1]) < 0):
            raise ValueError("singular values must be descending and at least 0")
        if not math.isfinite(self.unseen_energy):
            raise NonFiniteError(f"unseen energy must be finite, got {self.unseen_energy}")
        if self.unseen_energy < 0:
            raise ValueError(f"unseen energy must be at least 0, got {self.unseen_energy}")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "shape", (m, n))
        object.__setattr__(self, "unseen_energy", float(self.unseen_energy))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spectrum):
            return NotImplemented
        same = self.shape == other.shape and self.unseen_energy == other.unseen_energy
        return same and torch.equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def spectral_norm(self) -> float:
        """Largest singular value; 0 for an empty spectrum."""
        return float(self.values[0]) if len(self.values) else 0.0

    @property
    def energy(self) -> float:
        """Sum of all squared singular values, the unseen ones included: the squared Frobenius norm."""
        return float(self._tail_energies()[0])

    @property
    def nuclear_norm(self) -> float:
        """Sum of the values seen."""
        return self.schatten(1.0)

    def tail(self, rank: int) -> float:
        """Frobenius error of the best approximation of this rank, √(Σ_{i>rank} σ_i² + unseen), 0 ≤ rank.

        Beyond the values seen it stays at √unseen. Raises `ValueError` for a negative rank.
        """
        if rank < 0:
            raise ValueError(f"rank must be at least 0, got {rank}")
        return float(self.tails()[min(rank, len(self.values))])

    def tails(self) -> Tensor:
        """`tail` at every rank 0 … k: (k + 1,) float64. Discarded values are summed, smallest first."""
        return self._tail_energies().sqrt()

    def relative_tail(self, rank: int) -> float:
        """‖W − (W)_rank‖ / ‖W‖ (equation 22 of "Neural rank collapse"): from 1 at rank 0. 0 for a zero
        matrix.
        """
        whole = self.tail(0)
        return self.tail(rank) / whole if whole > 0 else 0.0

    def rank_for(self, energy_fraction: float) -> int:
        """Smallest rank that keeps at least this fraction (0 … 1) of the energy; 0 for a zero matrix.

        Raises `ValueError` when the fraction is out of range, or needs values that were not seen.
        """
        if not 0.0 <= energy_fraction <= 1.0:
            raise ValueError(f"energy_fraction must be from 0 to 1, got {energy_fraction}")
        return self._first(kept(self._tail_energies(), energy_fraction), f"{energy_fraction:.6g} of the energy")

    def rank_for_error(self, error: float) -> int:
        """Smallest rank whose `tail` is at most `error` (absolute, Frobenius; times √energy for a relative
        one).

        Raises `ValueError` when `error` is negative, or needs values that were not seen.
        """
        if not error >= 0.0:
            raise ValueError(f"error must be at least 0, got {error}")
        return self._first(self.tails() <= error, f"an error of {error:.6g}")

    def numerical_rank(self, eps: float | None = None) -> int:
        """Number of values that are at least `eps` times the largest, and not 0.

        Default: max(m, n) times the machine epsilon of float64, the customary bound of rounding errors.
        """
        eps = max(*self.shape, 1) * torch.finfo(torch.float64).eps if eps is None else eps
        return int(((self.values >= eps * self.spectral_norm) & (self.values > 0)).sum())

    @property
    def stable_rank(self) -> float:
        """‖W‖_F² / ‖W‖₂², between 1 and the rank; 0 for a zero matrix. Unseen energy counts."""
        top = self.spectral_norm
        return float((self.values / top).square().sum()) + self.unseen_energy / top / top if top > 0 else 0.0

    @property
    def effective_rank(self) -> float:
        """exp(−Σ p log p) with p = σ/Σσ (Roy and Vetterli 2007), of the values seen; 0 for a zero matrix."""
        if self.spectral_norm == 0:
            return 0.0
        p = self.values / self.spectral_norm
        p = p / p.sum()
        return math.exp(-float(torch.special.xlogy(p, p).sum()))

    def schatten(self, p: float) -> float:
        """Schatten norm (Σσ^p)^(1/p) of the values seen, p > 0 (a quasi-norm below 1; `math.inf` is the
        spectral norm).
        """
        if not p > 0:
            raise ValueError(f"the p of a Schatten norm must be above 0, got {p}")
        top = self.spectral_norm
        if top == 0 or p == math.inf:
            return top
        return top * float((self.values / top).pow(p).sum()) ** (1.0 / p)

    def to_dict(self) -> dict[str, Any]:
        """Numbers and lists only, for JSON; exact, since JSON keeps every digit that Python prints."""
        return {
            "values": self.values.tolist(),
            "shape": list(self.shape),
            "unseen_energy": self.unseen_energy,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "Spectrum":
        """The inverse of `to_dict`."""
        m, n = state["shape"]
        return cls(torch.tensor(state["values"], dtype=torch.float64), (m, n), state.get("unseen_energy", 0.0))

    def _tail_energies(self) -> Tensor:
        squares = torch.cat([self.values.square(), self.values.new_tensor([self.unseen_energy])])
        return squares.flip(0).cumsum(0).flip(0)

    def _first(self, reached: Tensor, wish: str) -> int:
        if not bool(reached.any()):
            raise ValueError(
                f"{wish} needs more than the {len(self.values)} values that are known of a matrix of shape "
                f"{self.shape} (unseen energy {self.unseen_energy:.3g}): compute the complete spectrum"
            )
        return int(reached.to(torch.int8).argmax())


def kept(left: Tensor, fraction: float) -> Tensor:
    """At which ranks this fraction of the energy is kept, of the energies (k + 1,) that ranks 0 … k leave out."""
    return left <= (1.0 - fraction) * (1.0 + _ROUNDING) * left[0]


def rounding(values: Tensor, shape: tuple[int, int], eps: float) -> Tensor:
    """What rounding may make of a singular value that is 0: of the ``values`` (…, k), all those of a matrix (m, n), or
    of each of several, only larger ones stand out of it. (…) float64.

    ``eps``: that of the dtype in which the entries are stored. Rounded independently, they differ by a matrix of norm
    below eps·‖W‖_F·(1/√m + 1/√n). Products are summed in float32 or better, half precision among them, whose errors
    have the customary bound max(m, n)·eps·σ₁; of the eps of half precision it would pass σ₁ itself.
    """
    m, n = shape
    values = values.double()
    stored = eps * values.square().sum(-1).sqrt() * (m**-0.5 + n**-0.5)
    return torch.maximum(stored, max(m, n) * min(eps, torch.finfo(torch.float32).eps) * values.amax(-1))


def spectrum(matrix: Tensor) -> Spectrum:
    """The complete spectrum of ``matrix``, computed in float64 whatever its dtype.

    Args:
        matrix: (m, n) of any real dtype, or (g, m, n) for groups that share one rank. Of these the values are √(Σ_g
            σ_{g,i}²) and the shape that of one group, so that ``tail(r)`` is the error of all groups together when each
            keeps rank r.

    Returns:
        A ``Spectrum``.

    Raises:
        NonFiniteError: NaN or infinite entries.
        NotMaterialisedError: a tensor on the meta device.
        NotConvergedError: no driver of the decomposition converged.
        ValueError: not a matrix.
        TypeError: complex entries.

    Cost: O(m n min(m, n)) for each matrix.

    Source: Eckart and Young 1936.

    Example:
        >>> s = rf.spectrum(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
        >>> s.values.tolist(), s.rank_for(0.9), round(s.relative_tail(2), 3)
        ([3.0, 2.0, 1.0], 2, 0.267)
    """
    values = singular_values(matrix)
    m, n = matrix.shape[-2:]
    return Spectrum(values if values.ndim == 1 else values.square().sum(0).sqrt(), (m, n))
