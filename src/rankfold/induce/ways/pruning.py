"""Directions that leave while training: what ways with ordered or sparse directions share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankfold.induce.ways.guide import Guided, Way, factor_, own, positive, require, whole
from rankfold.layers import Phased, Scaled
from rankfold.linalg.manifold.tangent import rank_within, ranks_within, shares


@dataclass(frozen=True)
class Pruning(Way):
    """Factors from the SVD of each weight at a ``rank`` share of full rank; at the end of each period the least
    directions leave: those whose sizes together stay within ``tolerance`` of the layer's, or, with a ``budget``, those
    that all layers can best do without. The budget is reached over ``reach`` periods, in which sizes fall by the same
    factor each time."""

    rank: float = 1.0
    tolerance: float = 0.05
    reach: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.rank <= 1, self, "rank", "a share of full rank, above 0 and at most 1")
        require(positive(self.tolerance, zero=True) and self.tolerance < 1, self, "tolerance", "in [0, 1)")
        require(whole(self.reach, 1), self, "reach", "a whole number of at least 1")

    def start_(self, model: nn.Module) -> None:
        for layer in own(model).values():
            factor_(layer, max(1, int(self.rank * min(layer.shape))))

    def sizes(self, layer: Phased) -> Tensor:
        """How much each direction counts, (r,)."""
        raise NotImplementedError

    def ordered(self) -> bool:
        """Whether directions leave from the end, in the order that they have."""
        return False

    def period(self, guided: Guided) -> None:
        sizes = {name: self.sizes(layer).double().cpu() for name, layer in guided.layers.items()}
        orders = {
            name: torch.arange(len(size)) if self.ordered() else size.argsort(descending=True, stable=True)
            for name, size in sizes.items()
        }
        sorted_ = [sizes[name][orders[name]] for name in sizes]
        if guided.room is None:
            ranks = [rank_within(values, self.tolerance) for values in sorted_]
        else:
            taken = sum(layer.numbers for layer in guided.layers.values())
            first = guided.notes.setdefault("first", torch.tensor(taken))
            left = max(0.0, 1 - guided.periods / self.reach)
            room = int(guided.room * max(1.0, float(first) / guided.room) ** left)
            worth = [shares(values) for values in sorted_]
            ranks = ranks_within(worth, [layer.numbers_at for layer in guided.layers.values()], room)
        self._keep(guided, {n: orders[n][:rank].sort().values for n, rank in zip(sizes, ranks, strict=True)})

    def _keep(self, guided: Guided, kept: Mapping[str, Tensor]) -> None:
        going = {}
        for name, layer in guided.layers.items():
            chosen = kept[name].to(layer.left.device)
            if len(chosen) == layer.rank:
                continue
            going[name] = chosen
            left, right = layer.left.detach()[:, chosen], layer.right.detach()[chosen]
            if isinstance(layer, Scaled):
                layer.factor_(left, right, layer.scale.detach()[chosen])
            else:
                layer.factor_(left, right)
        guided.follow(going)
