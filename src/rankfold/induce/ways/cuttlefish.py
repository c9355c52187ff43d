"""Dense until stable ranks no longer move, then factored at ranks that they tell (Cuttlefish: Wang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rankfold.induce.ways.frobenius import decay_product
from rankfold.induce.ways.guide import Guided, Way, factor_, positive, require, whole
from rankfold.linalg.manifold.tangent import wide


@dataclass(frozen=True)
class Cuttlefish(Way):
    """Dense training that switches to products once the stable rank of every weight has settled.

    Each period the stable rank ρ = ‖W‖²/‖W‖₂² of every weight is taken. A layer is stable once the smoothed ρ has moved
    by at most ``threshold`` a period, on average over the last ``over``; where six layers or fewer are still moving, by
    at most 2.5 times, where three or fewer, 5 times as much. Each then becomes a product of rank ρ·min(m, n)/ρ₀, with
    ρ₀ that of the start; a layer that would not become smaller stays dense. With a ``budget`` these ranks are scaled
    together to the largest that fits.

    Args:
        budget: share of the parameters of the dense network that the folded one has at most; None for none.
        every: steps of a period; None: an epoch, where ``fit`` trains.
        threshold: how far ρ may move in a period.
        over: periods of the average, and the span of the smoothing.
        latest: periods after which it switches in any case; None for never.
        decay: ``decay``·‖W‖²/2 is added to what is minimised throughout, of factors that of their product.

    Raises:
        ValueError: settings out of range.

    Cost: of a period the singular values of each weight.

    Source: Cuttlefish (Wang et al. 2023).

    Example:
        >>> rf.Cuttlefish(latest=3).name
        'cuttlefish'
    """

    threshold: float = 0.33
    over: int = 5
    latest: int | None = None
    decay: float = 1e-4

    name: ClassVar[str] = "cuttlefish"
    owns_decay: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(positive(self.threshold, zero=True), self, "threshold", "finite and not negative")
        require(whole(self.over, 1), self, "over", "a whole number of at least 1")
        require(self.latest is None or whole(self.latest, 1), self, "latest", "None or a whole number of at least 1")
        require(positive(self.decay, zero=True), self, "decay", "finite and not negative")

    def penalise(self, layer: Any, guided: Guided) -> None:
        decay_product(layer, self.decay)

    def between(self, guided: Guided) -> None:
        if "ranks" not in guided.notes and guided.steps == 0:
            guided.notes["ranks"] = self._now(guided)  # (periods + 1, layers), the start first

    def period(self, guided: Guided) -> None:
        if self._switched(guided):
            return
        history = torch.cat([guided.notes["ranks"], self._now(guided)])
        guided.notes["ranks"] = history
        if not (settled(history, self.threshold, self.over) or guided.periods == self.latest):
            return
        layers = list(guided.layers.values())
        full = torch.tensor([min(layer.shape) for layer in layers], dtype=torch.float64)
        told = (history[-1] * full / history[0]).clamp(min=torch.ones_like(full), max=full)
        for layer, rank in zip(layers, fitted(told, layers, guided.room), strict=True):
            if guided.room is not None or rank * sum(layer.shape) < layer.left.numel():
                factor_(layer, rank)
        guided.notes["switched"] = torch.tensor(guided.periods)

    def _switched(self, guided: Guided) -> bool:
        return "switched" in guided.notes

    def met(self, guided: Guided) -> bool:
        return self._switched(guided)

    def _now(self, guided: Guided) -> Tensor:
        """(1, layers)"""
        found = []
        for layer in guided.layers.values():
            values = torch.linalg.svdvals(wide(layer.left.detach())).double().cpu()
            found.append(float((values / values[0].clamp_min(1e-300)).square().sum()))
        return torch.tensor([found], dtype=torch.float64)


def settled(history: Tensor, threshold: float, over: int) -> bool:
    """Whether stable ranks (periods + 1, layers) have come to rest, in all layers."""
    if len(history) <= over:
        return False
    smooth, keep = [history[0]], 1 - 2 / (over + 1)
    for row in history[1:]:
        smooth.append(keep * smooth[-1] + (1 - keep) * row)
    moved = torch.stack(smooth).diff(dim=0)[-over:].abs().mean(0)
    moving = int((moved > threshold).sum())
    relaxed = 5.0 if moving <= 3 else 2.5 if moving <= 6 else 1.0
    return bool((moved <= threshold * relaxed).all())


def fitted(told: Tensor, layers: list[Any], room: int | None) -> list[int]:
    """These ranks rounded up; or scaled together so that they just fit into ``room``, at least 1 each."""
    if room is None:
        return [int(rank) for rank in told.ceil()]
    found = [1] * len(layers)
    for mille in range(1, 2001):
        ranks = [max(1, min(int(rank * mille / 1000), min(x.shape))) for rank, x in zip(told, layers, strict=True)]
        if sum(rank * sum(x.shape) for rank, x in zip(ranks, layers, strict=True)) > room:
            break
        found = ranks
    return found
