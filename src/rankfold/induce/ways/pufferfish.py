"""Dense at first, then factored at one share of full rank (Pufferfish: Wang, Agarwal, Papailiopoulos 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rankfold.induce.ways.guide import Guided, Way, alike, factor_, require, whole


@dataclass(frozen=True)
class Pufferfish(Way):
    """``warmup`` periods of the dense network; then each weight becomes a product of its leading singular triples.

    √S goes to either side, and the factors train. Layers that would not become smaller stay dense.

    Args:
        budget: share of the parameters of the dense network that the folded one has at most; None for none.
        every: steps of a period; None: an epoch, where ``fit`` trains.
        rank: share of the singular triples that is kept; with a budget the largest share that fits.
        warmup: periods.

    Raises:
        ValueError: settings out of range.

    Cost: one SVD of each weight.

    Source: Pufferfish (Wang, Agarwal, Papailiopoulos 2021).

    Example:
        >>> rf.Pufferfish(rank=0.25, warmup=2).name
        'pufferfish'
    """

    rank: float = 0.25
    warmup: int = 2

    name: ClassVar[str] = "pufferfish"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.rank <= 1, self, "rank", "a share of full rank, above 0 and at most 1")
        require(whole(self.warmup, 1), self, "warmup", "a whole number of at least 1")

    def period(self, guided: Guided) -> None:
        if guided.periods != self.warmup:
            return
        layers = list(guided.layers.values())
        if guided.room is not None:
            ranks = alike(layers, guided.room)
        else:
            ranks = [max(1, int(self.rank * min(layer.shape))) for layer in layers]
        for layer, rank in zip(layers, ranks, strict=True):
            if guided.room is not None or rank * sum(layer.shape) < layer.left.numel():
                factor_(layer, rank)

    def met(self, guided: Guided) -> bool:
        return guided.periods >= self.warmup
