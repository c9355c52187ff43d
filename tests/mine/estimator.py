"""An estimator of a low-rank matrix: fill in, truncate, and again (SVD imputation at one rank)."""

import math

import numpy as np

from rankfold.recover import Recovered, Recovery


class Impute(Recovery):
    def __init__(
        self, rank=1, *, tol=1e-9, max_iter=5000, validation_fraction=0.0, patience=10, random_state=0, device=None,
        progress=None,
    ):  # fmt: skip
        self.rank, self.tol, self.max_iter, self.validation_fraction = rank, tol, max_iter, validation_fraction
        self.patience, self.random_state, self.device, self.progress = patience, random_state, device, progress

    def _recover(self, operator, y, seed):
        left, right = np.zeros((operator.shape[0], self.rank)), np.zeros((self.rank, operator.shape[1]))
        step, error = 0, 1.0
        while step < self.max_iter and error >= self.tol:
            step += 1
            lacking = y - operator.push(left, right)
            error = float(np.linalg.norm(lacking) / np.linalg.norm(y))
            u, s, vt = np.linalg.svd(left @ right + _dense(operator.adjoint(lacking)), full_matrices=False)
            root = np.sqrt(s[: self.rank])
            left, right = u[:, : self.rank] * root, root[:, None] * vt[: self.rank]
        reason = f"residual {error:.1e} after {step} steps"
        values = np.linalg.svd(left @ right, compute_uv=False)[: self.rank]
        return Recovered(left, right, values, error < self.tol, reason, step, 0.0, error, math.nan, ())


def _dense(z):
    return z.toarray() if hasattr(z, "toarray") else np.asarray(z)
