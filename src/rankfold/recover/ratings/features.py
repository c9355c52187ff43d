"""What a row's factors are expected to be, linear in what is known of it: who rated what, and its properties."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse
from scipy.sparse import csr_array as Csr


class Features:
    """Rows scaled so that Σ f² ≤ 1: which of the others were rated, over the root of their number; and ``side``
    (rows, any number), properties of the rows, likewise."""

    def __init__(self, ones: Csr, strength: float, side: Csr | None = None) -> None:
        parts = [ones] if side is None else [ones, side]
        scaled = []
        for part in parts:
            squares = np.asarray(part.multiply(part).sum(1)).reshape(-1)
            scaled.append(scipy.sparse.diags_array(np.where(squares > 0, squares, 1.0) ** -0.5) @ part)
        self.matrix = Csr(scipy.sparse.hstack(scaled))
        self.transposed = Csr(self.matrix.T)
        self.strength = strength
        rows, columns = self.matrix.shape
        self.dual = rows <= columns
        gram = (self.matrix @ self.transposed) if self.dual else (self.transposed @ self.matrix)
        self.factor = scipy.linalg.cho_factor(gram.toarray() + strength * np.eye(min(rows, columns)))

    def draw(self, target: np.ndarray, root: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(rows, k): features times a draw of their weights, for rows ``target`` of covariance root rootᵀ."""
        rows, columns = self.matrix.shape
        width = target.shape[1]
        noisy = target + rng.standard_normal((rows, width)) @ root.T
        weights = rng.standard_normal((columns, width)) @ root.T * self.strength**-0.5
        # (FᵀF + s) w = Fᵀ noisy + s · weights, by whichever of FFᵀ and FᵀF is smaller
        if self.dual:
            rest = scipy.linalg.cho_solve(self.factor, noisy - self.matrix @ weights)
            return self.matrix @ (weights + self.transposed @ rest)
        right = self.transposed @ noisy + self.strength * weights
        return self.matrix @ scipy.linalg.cho_solve(self.factor, right)
