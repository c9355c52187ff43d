"""Factors from the SVD of the ordinary start, trained under decay of their product (Khodak et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from rankfold.induce.places import numbers_within
from rankfold.induce.ways.guide import Guided, Way, add, alike, factor_, own, positive, require


@dataclass(frozen=True)
class FrobeniusDecay(Way):
    """W = U V from the SVD of the weight; ``decay``·‖U V‖²/2 replaces the factors' own weight decay.

    Decay of the factors, ‖U‖² + ‖V‖², would be decay by the nuclear norm.

    Args:
        budget: share of the parameters of the dense network that the folded one has at most; None for none.
        every: steps of a period; None: an epoch, where ``fit`` trains.
        rank: share of the full rank; with a budget the largest that fits.
        decay: of the product.

    Raises:
        ValueError: settings out of range.

    Cost: of a step O((m + n)r²) for each layer.

    Source: Khodak, Tenenholtz, Mackey, Fusi 2021.

    Example:
        >>> rf.FrobeniusDecay(rank=0.5).decay
        0.0001
    """

    rank: float = 0.25
    decay: float = 1e-4

    name: ClassVar[str] = "frobenius"
    owns_decay: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.rank <= 1, self, "rank", "a share of full rank, above 0 and at most 1")
        require(positive(self.decay, zero=True), self, "decay", "finite and not negative")

    def start_(self, model: nn.Module) -> None:
        layers = list(own(model).values())
        room = None if self.budget is None else numbers_within(model, self.budget)
        ranks = [max(1, int(self.rank * min(x.shape))) for x in layers] if room is None else alike(layers, room)
        for layer, rank in zip(layers, ranks, strict=True):
            factor_(layer, rank)

    def penalise(self, layer: Any, guided: Guided) -> None:
        decay_product(layer, self.decay)


def decay_product(layer: Any, decay: float) -> None:
    """Add the gradient of ``decay``·‖W‖²/2: decay·U(VVᵀ) and decay·(UᵀU)V of factors, decay·W of a dense weight."""
    if layer.dense:
        add(layer.left, decay * layer.left)
        return
    left, right = layer.left.detach(), layer.right.detach()
    add(layer.left, decay * left @ (right @ right.mT))
    add(layer.right, decay * (left.mT @ left) @ right)
