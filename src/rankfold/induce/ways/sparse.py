"""Singular values made sparse while training, between bases held near orthonormal (Yang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from rankfold.induce.ways.guide import Guided, add, own, positive, require
from rankfold.induce.ways.pruning import Pruning
from rankfold.layers import Phased, Scaled
from rankfold.linalg.manifold.tangent import wide

Penalty = Literal["hoyer", "nuclear"]


@dataclass(frozen=True)
class SparseFactors(Pruning):
    """W = U diag(s) V from the SVD of each weight, with a penalty that empties s.

    Added to what is minimised: ``weight`` times ‖s‖₁ ("nuclear") or ‖s‖₁/‖s‖₂ ("hoyer", which does not shrink what is
    large), and ``orthogonality``·(‖UᵀU − I‖² + ‖VVᵀ − I‖²)/r², which keeps s close to the singular values. Directions
    of small sᵢ leave at the end of each period. The factors have no other weight decay.

    Args:
        budget: share of the parameters of the dense network that the folded one has at most; None for none.
        every: steps of a period; None: an epoch, where ``fit`` trains.
        rank: share of the full rank at the start.
        tolerance: part of the layer's norm that may be cut in a period, without a budget.
        reach: periods after which the budget holds.
        penalty: "hoyer" or "nuclear".
        weight: of the penalty.
        orthogonality: of the other one.

    Raises:
        ValueError: settings out of range.

    Cost: of a step O((m + n)r²) for each layer.

    Source: Yang et al. 2020.

    Example:
        >>> rf.SparseFactors(penalty="nuclear").reach
        3
    """

    penalty: Penalty = "hoyer"
    weight: float = 1e-3
    orthogonality: float = 1.0

    name: ClassVar[str] = "sparse"
    kind: ClassVar[type[Phased]] = Scaled
    owns_decay: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.penalty in get_args(Penalty), self, "penalty", f"one of {', '.join(get_args(Penalty))}")
        require(positive(self.weight, zero=True), self, "weight", "finite and not negative")
        require(positive(self.orthogonality, zero=True), self, "orthogonality", "finite and not negative")

    def start_(self, model: nn.Module) -> None:
        for layer in own(model).values():
            rank = max(1, int(self.rank * min(layer.shape)))
            left, values, right = torch.linalg.svd(wide(layer.matrix().detach()), full_matrices=False)
            layer.factor_(left[:, :rank], right[:rank], values[:rank])

    def sizes(self, layer: Any) -> Tensor:
        return (layer.scale * layer.left.norm(dim=0) * layer.right.norm(dim=1)).detach().abs()

    def penalise(self, layer: Any, guided: Guided) -> None:
        add(layer.scale, self.weight * sparsity(layer.scale.detach(), self.penalty))
        share = self.orthogonality / layer.rank**2
        add(layer.left, share * away(layer.left.detach()))
        add(layer.right, share * away(layer.right.detach().mT).mT)


def sparsity(s: Tensor, penalty: Penalty) -> Tensor:
    """The gradient of ‖s‖₁, or of ‖s‖₁/‖s‖₂; zero where s is."""
    if penalty == "nuclear":
        return s.sign()
    size = s.norm().clamp_min(torch.finfo(s.dtype).tiny)
    return s.sign() / size - s.abs().sum() / size * (s / size) / size


def away(basis: Tensor) -> Tensor:
    """The gradient of ‖BᵀB − I‖², 4B(BᵀB − I)."""
    gram = basis.mT @ basis
    return 4 * basis @ (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
