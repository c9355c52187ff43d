"""Directions in order of importance, by dropping all beyond a random one (Horváth, Laskaridis et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rankfold.induce.ways.guide import Guided, add, positive, require, whole
from rankfold.induce.ways.pruning import Pruning
from rankfold.layers import Phased
from rankfold.run.seeds import derived_seed


@dataclass(frozen=True)
class Maestro(Pruning):
    """W = U V with ordered dropout: in each step one layer computes with its first directions alone.

    The layer is drawn at random, and of its directions the first b, uniform from 1 to its rank: so the first directions
    come to matter most (of a linear map they become its singular directions, of inputs without correlation). Trailing
    directions leave at the end of each period; what remains can be cut at any rank.

    Args:
        budget: share of the parameters of the dense network that the folded one has at most; None for none.
        every: steps of a period; None: an epoch, where ``fit`` trains.
        rank: share of the full rank at the start.
        tolerance: part of the layer's norm that may be cut in a period, without a budget.
        reach: periods after which the budget holds.
        lasso: weight of Σ_b (‖U_(b:)‖ + ‖V_(b:)‖), which empties the last directions.
        seed: draws follow from it and the step.

    Raises:
        ValueError: settings out of range.

    Source: Maestro (Horváth et al. 2024).

    Example:
        >>> rf.Maestro(lasso=1e-3).tolerance
        0.05
    """

    lasso: float = 0.0
    seed: int = 0

    name: ClassVar[str] = "maestro"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(positive(self.lasso, zero=True), self, "lasso", "finite and not negative")
        require(whole(self.seed, 0), self, "seed", "a whole number of at least 0")

    def between(self, guided: Guided) -> None:
        """Draw what the next step computes with."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, guided.steps))
        layers = list(guided.layers.values())
        drawn = int(torch.randint(len(layers), (), generator=generator))
        for place, layer in enumerate(layers):
            if place == drawn:
                layer.active = 1 + int(torch.randint(layer.rank, (), generator=generator))
            else:
                layer.active = None

    def ordered(self) -> bool:
        return True

    def sizes(self, layer: Phased) -> Tensor:
        """Whose tails are those of the product: ‖W − W_b‖, by the Gram matrices of the factors."""
        left, right = layer.left.detach().double(), layer.right.detach().double()
        energy = (left.mT @ left) * (right @ right.mT)
        tails = torch.stack([energy[b:, b:].sum() for b in range(len(energy) + 1)]).clamp_min(0)
        tails = tails.flip(0).cummax(0).values.flip(0)  # what comes later may take away from what came before
        return (tails[:-1] - tails[1:]).clamp_min(0).sqrt()

    def penalise(self, layer: Any, guided: Guided) -> None:
        if self.lasso:
            add(layer.left, self.lasso * nested(layer.left.detach()))
            add(layer.right, self.lasso * nested(layer.right.detach().mT).mT)


def nested(columns: Tensor) -> Tensor:
    """The gradient of Σ_b ‖U_{b:}‖, of all columns from b on: each column over the norms of the groups it lies in."""
    norms = columns.square().sum(0).flip(0).cumsum(0).flip(0).sqrt().clamp_min(torch.finfo(columns.dtype).tiny)
    return columns * (1 / norms).cumsum(0)
