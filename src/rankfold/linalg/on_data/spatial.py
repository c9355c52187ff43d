"""The best pair k_h×1, 1×k_w for a convolution kernel on given data, at every rank.

A pair is Ŵ[o,c,i,j] = Σ_ρ V[o,ρ,j] U[ρ,c,i]. For fixed U the best V is a linear least-squares problem; with the rows of
U ordered by importance, one Cholesky factorisation solves it for every rank at once and gives every error. Errors are
measured where the kernel is used: ``tr[D (W − Ŵ) H (W − Ŵ)ᵀ]``, H the second moment of the input patches, D a metric of
the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.linalg.decompositions import checked, eigh
from rankfold.linalg.on_data.projection import tails

# anchors the pair at the kernel off the data: this part of the mean patch variance is added to each direction
_RIDGE = 1e-6
# a round of alternation that lowers the squared error by less than this part of it was the last
_ENOUGH = 7e-4


@dataclass(frozen=True, eq=False)
class SpatialProjection:
    """Ordered rows U (K, C·k_h) and what is needed for V at any rank. Made by ``project_spatial``.

    ``values`` (K,) ≥ 0: the error lost with each further rank, so that the tail of its squares is the squared error.
    They need not descend.
    """

    values: Tensor
    _weight: Tensor  # (O, C, k_h, k_w)
    _patches: Tensor  # (n, n), anchored
    _metric: Tensor  # (O, O)
    _root: Tensor  # (C·k_h, C·k_h) lower, of the mean of the patches' blocks at one place of the second kernel axis
    _rows: Tensor  # (K, C·k_h)
    _triangle: Tensor  # (K·k_w, K·k_w) lower
    _targets: Tensor  # (K·k_w, O)

    @property
    def errors(self) -> Tensor:
        """(K + 1,) float64: the error at rank 0 … K, summed from what is left out."""
        return tails(self.values)

    def errors_on(self, patches: Tensor, metric: Tensor | None = None) -> Tensor:
        """The error of the closed form at every rank on other data: (K + 1,) float64, never negative.

        ``patches``: their second moment, taken about the mean of the data that the pair was made from, and in the same
        units. ``metric`` (O, O): by which errors are measured; None for that of the pair. They may rise with the rank,
        where directions were fitted to chance. Cost O(n²·K·k_w), no decomposition.
        """
        h, w = checked(patches), self._weight.flatten(1)
        _, c_in, k_h, k_w = self._weight.shape
        # rows of A = U ⊗ I made orthonormal on the old data: the kernel at rank r is the sum of the first r·k_w of them
        lifted = torch.einsum("ra,jl->rjal", self._rows, torch.eye(k_w, dtype=w.dtype)).reshape(-1, c_in * k_h * k_w)
        rows = torch.linalg.solve_triangular(self._triangle, lifted, upper=False)
        pushed = rows @ h
        metric = self._metric if metric is None else metric
        weighted = self._targets @ metric
        linear = (pushed @ w.mT * weighted).sum(1)
        square = (pushed @ rows.mT) * (weighted @ self._targets.mT)
        whole = float(((w @ h) * (metric @ w)).sum())
        lost = whole - 2 * linear.cumsum(0) + square.cumsum(0).cumsum(1).diagonal()
        at_ranks = lost.reshape(-1, k_w)[:, -1]
        return torch.cat([at_ranks.new_tensor([whole]), at_ranks]).clamp_min(0).sqrt()

    def factors(self, rank: int, rounds: int = 8, steps: int = 2) -> tuple[Tensor, Tensor]:
        """``left`` (O·k_w, rank) with rows (o, j), and ``right`` (rank, C·k_h) with columns (c, i).

        At most ``rounds`` alternations improve both from the closed form: U by ``steps`` of conjugate gradients, V
        exactly, until one of them saves less than 7e-4 of the squared error. The error never rises. Cost of a
        round: O(steps·O·n² + (rank·k_w)³), n = C·k_h·k_w.
        """
        if not 1 <= rank <= len(self.values):
            raise ValueError(f"rank must be from 1 to {len(self.values)}, got {rank}")
        c_out, _, _, k_w = self._weight.shape
        size = rank * k_w
        u, targets = self._rows[:rank], self._targets[:size]
        v = torch.linalg.solve_triangular(self._triangle[:size, :size].mT, targets, upper=True)
        v = v.reshape(rank, k_w, c_out)
        w = self._weight.flatten(1)
        whole = float(((w @ self._patches) * (self._metric @ w)).sum())
        error = float(self.values[rank:].square().sum())
        for _ in range(rounds):
            u = self._improve(u, v, steps)
            gram, targets = _normal(u, self._weight, self._patches)
            v = torch.cholesky_solve(targets, _cholesky(gram)).reshape(rank, k_w, c_out)
            # at the least-squares V what is explained is linear in it
            error, before = whole - float(((targets @ self._metric) * v.flatten(0, 1)).sum()), error
            if not before - error > _ENOUGH * before:
                break
        return v.permute(2, 1, 0).reshape(c_out * k_w, rank).contiguous(), u.contiguous()

    def _improve(self, u: Tensor, v: Tensor, steps: int) -> Tensor:
        """Conjugate gradients on the normal equations of U for fixed V: D Ŵ(U) H against D W H, never formed.

        Their operator is Σ (V_j D V_lᵀ) ⊗ H_jl over pairs of places j, l of the second kernel axis. Were all H_jl but
        those with j = l zero and these alike, it were (Σ V_j D V_jᵀ) ⊗ mean H_jj: by this it is preconditioned.
        """
        c_out, c_in, k_h, k_w = self._weight.shape
        rank, n = len(u), c_in * k_h
        placed = v.permute(0, 2, 1).reshape(rank, -1)  # (ρ, (o, j))

        def pull(kernel: Tensor) -> Tensor:
            weighted = (self._metric @ kernel.reshape(c_out, -1) @ self._patches).reshape(c_out, n, k_w)
            return placed @ weighted.mT.reshape(-1, n)

        def push(rows: Tensor) -> Tensor:
            return (placed.mT @ rows).reshape(c_out, k_w, n).mT

        residual = pull(self._weight.reshape(c_out, n, k_w) - push(u))
        start = residual.square().sum()
        if not start > 0:
            return u
        weighted = (v.flatten(0, 1) @ self._metric).reshape(v.shape).permute(0, 2, 1).reshape(rank, -1)
        inner = _cholesky(placed @ weighted.mT)

        def conditioned(rows: Tensor) -> Tensor:
            return torch.cholesky_solve(torch.cholesky_solve(rows, inner).mT, self._root).mT

        direction = conditioned(residual)
        energy = (residual * direction).sum()
        for _ in range(steps):
            image = pull(push(direction))
            step = energy / (direction * image).sum().clamp_min(torch.finfo(u.dtype).tiny)
            u = u + step * direction
            residual = residual - step * image
            if not residual.square().sum() > 1e-24 * start:
                break
            better = conditioned(residual)
            energy, before = (residual * better).sum(), energy
            direction = better + (energy / before) * direction
        return u


def project_spatial(
    weight: Tensor, patches: Tensor, metric: Tensor | None = None, ridge: float = 0.0
) -> SpatialProjection:
    """Ordered spatial pairs for ``weight`` (O, C, k_h, k_w) on data whose input patches have second moment ``patches``.

    ``patches``: (n, n) with n = C·k_h·k_w in the order of ``torch.nn.functional.unfold``, centred for a free bias.
    ``metric``: D (O, O) positive definite, its diagonal (O,), or None for the identity. ``ridge``: this part of the
    mean patch variance is added in every direction, so that the kernel counts off the data too. float64; the maximal
    rank is min(O·k_w, C·k_h), where the pair is exact.
    Cost: one eigendecomposition of size C·k_h, one Cholesky factorisation of size rank·k_w, and O(n²·(O + rank)).
    Raises ``ValueError`` for shapes that do not fit, and as ``checked``.
    """
    w, h = checked(weight), checked(patches)
    if w.ndim != 4 or h.shape != (w[0].numel(),) * 2:
        raise ValueError(f"patches of shape {tuple(h.shape)} do not fit a kernel of shape {tuple(w.shape)}")
    c_out, c_in, k_h, k_w = w.shape
    n = w[0].numel()
    d = torch.eye(c_out, dtype=w.dtype) if metric is None else checked(metric)
    d = d.diag() if d.ndim == 1 else d
    h = h + ((ridge + _RIDGE) * h.diagonal().mean().clamp_min(torch.finfo(w.dtype).tiny)) * torch.eye(n, dtype=w.dtype)

    columns = torch.einsum("aibcdb->aicd", h.reshape(c_in, k_h, k_w, c_in, k_h, k_w)) / k_w
    root = _cholesky(columns.reshape(c_in * k_h, -1))
    energy = torch.einsum("ocij,op,pdkj->cidk", w, d, w).reshape(c_in * k_h, -1)
    rank = min(c_out * k_w, c_in * k_h)
    # the leading right singular vectors of D^½ W L, H_v = L Lᵀ, pulled back: S L E = L^-ᵀ E Λ needs no inverse
    rows = (energy @ (root @ eigh(root.mT @ energy @ root)[1][:, :rank])).mT
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)

    gram, targets = _normal(rows, w, h)
    triangle = _cholesky(gram)
    targets = torch.linalg.solve_triangular(triangle, targets, upper=False)
    lost = ((targets @ d) * targets).sum(1).clamp_min(0).reshape(rank, k_w).sum(1)
    return SpatialProjection(lost.sqrt(), w, h, d, root, rows, triangle, targets)


def _normal(u: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """A H Aᵀ and A H Wᵀ for A = U ⊗ I over the second kernel axis: rows (ρ, j)."""
    _, c_in, k_h, k_w = w.shape
    pushed = torch.einsum("ra,ajn->rjn", u, h.reshape(c_in * k_h, k_w, -1)).flatten(0, 1)
    gram = torch.einsum("sal,ra->srl", pushed.reshape(-1, c_in * k_h, k_w), u).flatten(1)
    return (gram + gram.mT) / 2, pushed @ w.flatten(1).mT


def _cholesky(gram: Tensor) -> Tensor:
    jitter = 1e-12 * gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny)
    eye = torch.eye(len(gram), dtype=gram.dtype)
    for _ in range(12):
        triangle, failed = torch.linalg.cholesky_ex(gram + jitter * eye)
        if not bool(failed):
            return triangle
        jitter = jitter * 10
    raise ValueError("the patch statistics are not positive semidefinite, so that they cannot come from data")
