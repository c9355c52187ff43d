"""How far draws of the sampler differ, and what a row or column of which nothing is known adds to that."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class Spread:
    """Some draws (d, m + 1, k + 1), (d, n + 1, k + 1), the bias last, the deviation of the noise, and the variances of
    the moments: for each span of those that are known, and last of one that is not.

    ``unknown`` (m + 1,), (n + 1,): of whom nothing is known, the last of them: their draws are the mean of a name
    without features, about which they have the second moments ``apart`` (d, k + 1, k + 1). Draws and second moments are
    in multiples of ``unit``, the noise and the moments are not.
    """

    lefts: np.ndarray
    rights: np.ndarray
    unknown: tuple[np.ndarray, np.ndarray]
    apart: tuple[np.ndarray, np.ndarray]
    noise: float
    moments: tuple[np.ndarray, ...] = ()
    unit: float = 1.0

    def variances(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(count,): of ⟨p, q⟩ + b + c at pairs of indices: over the draws, and of whom nothing is known in each draw.

        With (p, b) of second moment Σ and (q, c) of second moment Ψ about their means that is (q, 1) Σ (q, 1)ᵀ for an
        unknown row, (p, 1) Ψ (p, 1)ᵀ for an unknown column, and where both are unknown their sum at the means and
        tr Σ_pp Ψ_qq: on average over the known columns no less than of the unknown row alone.
        """
        first, second, apart = np.zeros((3, len(rows)))
        new = self.unknown[0][rows], self.unknown[1][columns]
        both = new[0] & new[1]
        for left, right, sigma, psi in zip(self.lefts, self.rights, *self.apart, strict=True):
            p, q = left[rows, :-1], right[columns, :-1]
            told = (np.einsum("ij,ij->i", p, q) + left[rows, -1] + right[columns, -1]).astype(np.float64)
            first, second = first + told, second + told**2
            apart[new[0]] += _squares(q[new[0]], sigma)
            apart[new[1]] += _squares(p[new[1]], psi)
            apart[both] += np.sum(sigma[:-1, :-1] * psi[:-1, :-1])
        count = len(self.lefts)
        over = np.maximum(second - first**2 / count, 0.0) / max(count - 1, 1)
        return np.asarray((self.unit * np.sqrt(over + apart / count)) ** 2)

    def with_strangers(self, count: int, noise: float) -> Spread:
        """Beside so many more rows of whom nothing is known."""
        more = np.repeat(self.lefts[:, -1:], count, axis=1)
        unknown = np.append(self.unknown[0], np.full(count, True))
        return replace(self, lefts=np.append(self.lefts, more, 1), unknown=(unknown, self.unknown[1]), noise=noise)


def _squares(x: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(x, 1) covariance (x, 1)ᵀ of each row x."""
    x = np.append(x, np.ones((len(x), 1), x.dtype), 1)
    return np.asarray(np.einsum("ij,jk,ik->i", x, covariance, x, optimize=True))
