"""Steps on the manifold of kernels of low multilinear rank: what ``tangent`` is for matrices, for Tucker's form.

A kernel W (m, c, …) is a core C (p, q, …) with U (m, p) of orthonormal columns along the outputs and V (q, c) of
orthonormal rows along the inputs. Each unfolding of the core is a square matrix times a frame of orthonormal rows; the
gradient of W seen through a basis of one side and the frame of the other, (m, p) and (q, c), says where the bases go.
Nothing here inverts the core, and nothing of the size of the kernel is formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.linalg.errors import NonFiniteError
from rankfold.linalg.manifold.tangent import Turn, new_directions, orthonormal, wide

Ladder = tuple[tuple[int, int], ...]
"""(p, q) at rank 1, 2, …: what a layer of that rank has along its outputs and inputs."""


@dataclass(frozen=True)
class TuckerPoint:
    """U (m, p), C (p, q, …), V (q, c) of W = C ×₁ U ×₂ Vᵀ, whose ranks go along ``ladder``."""

    left: Tensor
    core: Tensor
    right: Tensor
    ladder: Ladder

    @property
    def rank(self) -> int:
        return rank_on(self.ladder, self.core)

    @property
    def product(self) -> Tensor:
        """W itself, (m, c, …)."""
        return torch.einsum("op,pq...,qc->oc...", self.left, self.core, self.right)

    @property
    def spectrum(self) -> Tensor:
        """σ₁, σ₂, … such that truncation at rank r is off by (Σ_{i>r} σᵢ²)^½, and their norm is that of W. Cost: two
        SVDs of the core. Raises ``NonFiniteError``."""
        if not bool(self.core.isfinite().all()):
            raise NonFiniteError(f"a core of shape {tuple(self.core.shape)} holds NaN or infinity")
        left, right = self._own_bases()
        energy = Turn(left, right).linear(self.core).double().square().flatten(2).sum(2)
        steps = self.ladder[: self.rank]
        # discarded energy is summed, not taken from the whole: small directions count as well
        tails = torch.stack([energy[p:].sum() + energy[:p, q:].sum() for p, q in [(0, 0), *steps]])
        return (tails[:-1] - tails[1:]).clamp_min(0).sqrt()

    def straightened(self) -> TuckerPoint:
        """The same W in orthonormal bases, where these are none."""
        left, r_left = orthonormal(self.left)
        right, r_right = orthonormal(self.right.mT)
        core = torch.einsum("ap,pq...,bq->ab...", r_left, self.core, r_right)
        return TuckerPoint(left, core, right.mT, self.ladder)

    def augmented(
        self, left_gradient: Tensor, right_gradient: Tensor, most: int | None = None
    ) -> tuple[TuckerPoint, Turn]:
        """The same W in bases that also hold the gradients' directions, with a core padded by zeros.

        With ``most`` only so many along the outputs, and the same share along the inputs. ``left_gradient`` (m, p),
        ``right_gradient`` (q, c). (Zangrando, Schotthöfer, Ceruti, Kusch, Tudisco 2024.)
        """
        p, q = self.core.shape[:2]
        most = p if most is None else most
        below = new_directions(self.left, left_gradient)[:, :most]
        beside = new_directions(self.right.mT, right_gradient.mT)[:, : -(-most * q // p)]
        turn = Turn(*(torch.eye(n, n + new.shape[1]).to(self.core) for n, new in zip(self.core.shape, (below, beside))))
        left, right = torch.cat([self.left, below], 1), torch.cat([self.right, beside.mT])
        return TuckerPoint(left, turn.linear(self.core), right, self.ladder), turn

    def tangent_core(self, left_gradient: Tensor, right_gradient: Tensor, core_gradient: Tensor) -> Tensor:
        """The gradient of the core of ``augmented`` as far as the products know it; its block of new directions on both
        sides is zero. A step along it is a step along the gradient projected onto the tangent space at W."""
        p, q = core_gradient.shape[:2]
        out_frame, in_frame = frames(self.core[:p, :q])
        found = torch.zeros_like(self.core)
        found[:p, :q] = core_gradient
        found[p:, :q] = torch.einsum("oa,op,pq...->aq...", self.left[:, p:], left_gradient, out_frame)
        found[:p, q:] = torch.einsum("pq...,qc,bc->pb...", in_frame, right_gradient, self.right[q:])
        return found

    def moved(self, left_gradient: Tensor, right_gradient: Tensor, rate: float) -> tuple[TuckerPoint, Turn]:
        """W projected onto the bases that follow the gradients, at the same ranks: no descent is promised."""
        out_frame, in_frame = frames(self.core)
        out_core = torch.einsum("pq...,rq...->pr", self.core, out_frame)
        in_core = torch.einsum("pr...,pq...->rq", in_frame, self.core)
        left, _ = orthonormal(self.left @ out_core - rate * left_gradient)
        right, _ = orthonormal((in_core @ self.right - rate * right_gradient).mT)
        turn = Turn(self.left.mT @ left, self.right @ right)
        return TuckerPoint(left, turn.linear(self.core), right.mT, self.ladder), turn

    def truncated(self, rank: int) -> tuple[TuckerPoint, Turn]:
        """The leading directions of both unfoldings, as many as the ladder has at ``rank`` (higher-order SVD): off by
        the tail of ``spectrum``, which is at most √2 times the best that can be had."""
        p, q = self.ladder[rank - 1]
        left, right = self._own_bases()
        turn = Turn(left[:, :p], right[:, :q])
        left, r_left = orthonormal(self.left @ turn.left)
        right, r_right = orthonormal(self.right.mT @ turn.right)
        core = torch.einsum("ap,pq...,bq->ab...", r_left, turn.linear(self.core), r_right)
        return TuckerPoint(left, core, right.mT, self.ladder), turn

    def _own_bases(self) -> tuple[Tensor, Tensor]:
        """The left singular vectors of both unfoldings of the core."""
        left, right = (torch.linalg.svd(_unfolded(self.core, side), full_matrices=False)[0] for side in (0, 1))
        return left, right


def starting(kernel: Tensor, rank: int, ladder: Ladder) -> TuckerPoint:
    """The higher-order SVD of a kernel (m, c, …), cut at ``rank``. Raises ``NonFiniteError``."""
    if not bool(kernel.isfinite().all()):
        raise NonFiniteError(f"a weight of shape {tuple(kernel.shape)} holds NaN or infinity")
    kernel = wide(kernel)
    p, q = ladder[rank - 1]
    left = torch.linalg.svd(_unfolded(kernel, 0), full_matrices=False)[0][:, :p]
    right = torch.linalg.svd(_unfolded(kernel, 1), full_matrices=False)[0][:, :q].mT
    return TuckerPoint(left, torch.einsum("op,oc...,qc->pq...", left, kernel, right), right, ladder)


def frames(core: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal frames of the rows of both unfoldings, shaped as the core (p, q, …): each unfolding of the core is a
    square matrix times that of its frame. Where p or q exceeds the numbers behind it: as many as there are, and zeros.
    """
    found = []
    for side in (0, 1):
        unfolded = _unfolded(core, side)
        q, _ = torch.linalg.qr(unfolded.mT)
        frame = torch.zeros_like(unfolded)
        frame[: q.shape[1]] = q.mT
        shape = (core.shape[side], core.shape[1 - side], *core.shape[2:])
        frame = frame.reshape(shape)
        found.append(frame if side == 0 else frame.transpose(0, 1))
    return found[0], found[1]


def rank_on(ladder: Ladder, core: Tensor) -> int:
    """The least rank whose (p, q) hold a core (p, q, …), or the last one."""
    p, q = core.shape[:2]
    return next((rank for rank, (most_p, most_q) in enumerate(ladder, 1) if most_p >= p and most_q >= q), len(ladder))


def _unfolded(core: Tensor, side: int) -> Tensor:
    """(p, q·…) or (q, p·…)."""
    return core.transpose(0, side).flatten(1)
