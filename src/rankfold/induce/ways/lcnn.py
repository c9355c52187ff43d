"""Learning and compression in turns (Idelbayev and Carreira-Perpiñán 2020): a dense weight drawn to one of low rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rankfold.induce.places import numbers_within
from rankfold.induce.ways.guide import Guided, Way, add, own, positive, require
from rankfold.layers import Approached
from rankfold.linalg.allocation import least_tails
from rankfold.linalg.manifold.tangent import wide


@dataclass(frozen=True)
class LearningCompression(Way):
    """Training adds μ/2·‖W − Θ‖² to what is minimised; Θ is the best of low rank for W, anew in each period.

    At the end of each period Θ becomes the matrices of low rank that are best for the present W, exactly, and μ grows.
    With a ``budget``: ranks of least Σ‖W − Θ‖² within it, over all layers; without, in each layer the rank of least
    ``price``·r(m + n) + μ/2·‖W − Θ‖². The network is judged, and folded, with Θ.

    Args:
        budget: share of the parameters of the dense network that the folded one has at most; None for none.
        every: steps of a period; None: an epoch, where ``fit`` trains.
        pull: μ at the start.
        growth: factor of μ for each period.
        price: of a number, without a budget.

    Raises:
        ValueError: settings out of range.

    Cost: of a period one SVD of each weight; memory is that of the dense network.

    Source: Idelbayev and Carreira-Perpiñán 2020.

    Example:
        >>> rf.LearningCompression(budget=0.3).growth
        1.2
    """

    pull: float = 1e-3
    growth: float = 1.2
    price: float = 1e-6

    name: ClassVar[str] = "lcnn"
    kind: ClassVar[type[Approached]] = Approached

    def __post_init__(self) -> None:
        super().__post_init__()
        require(positive(self.pull), self, "pull", "positive and finite")
        require(positive(self.growth) and self.growth >= 1, self, "growth", "finite and at least 1")
        require(positive(self.price), self, "price", "positive and finite")

    def start_(self, model: nn.Module) -> None:
        room = None if self.budget is None else numbers_within(model, self.budget)
        self._compress(list(own(model).values()), room, self.pull)

    def penalise(self, layer: Any, guided: Guided) -> None:
        add(layer.dense, self.pulling(guided.periods) * (layer.dense - layer.left @ layer.right))

    def pulling(self, periods: int) -> float:
        """μ after so many periods."""
        return self.pull * self.growth**periods

    def period(self, guided: Guided) -> None:
        self._compress(list(guided.layers.values()), guided.room, self.pulling(guided.periods))

    def _compress(self, layers: Sequence[Approached], room: int | None, pull: float) -> None:
        triples = [torch.linalg.svd(wide(layer.dense.detach()), full_matrices=False) for layer in layers]
        values, prices = [triple[1] for triple in triples], [sum(layer.shape) for layer in layers]
        if room is not None:
            ranks = least_tails(values, prices, room)
        else:
            ranks = [cheapest(s, self.price * each, pull) for s, each in zip(values, prices, strict=True)]
        for layer, (left, s, right), rank in zip(layers, triples, ranks, strict=True):
            roots = s[:rank].sqrt()
            layer.draw_to_(left[:, :rank] * roots, roots.unsqueeze(1) * right[:rank])


def cheapest(values: Tensor, price: float, pull: float) -> int:
    """argmin over r ≥ 1 of price·r + pull/2·Σ_{i>r} σᵢ²: directions stay as long as pull/2·σᵢ² is above the price."""
    return max(1, int((0.5 * pull * values.double().square() > price).sum()))
