"""How far one subspace is from another."""

import torch
from torch import Tensor


def subspace_distance(a: Tensor, b: Tensor) -> Tensor:
    """r − ‖AᵀB‖_F² of the column spaces of A and B (…, m, r), both with orthonormal columns: (…), at least 0.

    The sum of the squared sines of the r principal angles: 0 for equal subspaces, r for orthogonal ones, the same for
    every orthonormal basis of either. Equation 14 of the paper on compressed deep linear networks (Kwon et al.). Formed
    as ‖B − A AᵀB‖_F², which is the same number without the cancellation of r − r for close subspaces. Cost O(m r²).

    Raises ``ValueError`` for shapes that differ.
    """
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"only bases of equal shape (m, r) can be compared, got {tuple(a.shape)} and {tuple(b.shape)}")
    return torch.linalg.matrix_norm(b - a @ (a.mT @ b)).square()
