"""Projected gradient ascent on a classifier's loss, inside a ball around each sample (Madry et al. 2018).

A sample counts as held only where it is answered rightly at every point that the ascent passes, its start included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankfold.batches import LABELS, forward, mapped, samples_of, tensors_in
from rankfold.objectives import Classification

Norm = Literal["linf", "l2"]
_OVERSHOOT = 2.5  # all steps together could cross the ball so often


@dataclass(frozen=True)
class Ball:
    """All changes of norm at most ``radius``."""

    norm: Norm
    radius: float

    def ascent(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The steepest direction of norm 1 for each sample; zero where the gradient is."""
        if self.norm == "linf":
            return [gradient.sign() for gradient in gradients]
        size = _sizes(gradients)
        return [torch.where(_wide(size, g) > 0, g / _wide(size, g).clamp_min(1e-300), 0.0).to(g) for g in gradients]

    def within(self, changes: Sequence[Tensor]) -> list[Tensor]:
        """The nearest changes inside the ball."""
        if self.norm == "linf":
            return [change.clamp(-self.radius, self.radius) for change in changes]
        shrink = (self.radius / _sizes(changes).clamp_min(1e-300)).clamp_max(1.0)
        return [(change * _wide(shrink, change)).to(change) for change in changes]

    def drawn(self, likes: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Changes at random: uniform in the cube, or in a random direction at a uniform share of the radius."""
        draws = [2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1 for x in likes]
        if self.norm == "l2":
            draws = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in likes]
            share = torch.rand(len(likes[0]), generator=generator, dtype=torch.float64) / _sizes(draws)
            draws = [(draw * _wide(share, draw)).to(draw) for draw in draws]
        return [self.radius * draw.to(x.device) for draw, x in zip(draws, likes, strict=True)]


@dataclass(frozen=True, eq=False)
class Space:
    """In what units radii are, and where inputs may lie: one entry, broadcastable, for each floating input tensor.

    ``unit``: how much of the model's input one unit of the radius is; ``low`` and ``high``: the extremes.
    """

    unit: tuple[Tensor, ...]
    low: tuple[Tensor, ...]
    high: tuple[Tensor, ...]

    def to(self, likes: Sequence[Tensor]) -> Space:
        parts = (self.unit, self.low, self.high)
        return Space(*(tuple(p.to(x) for p, x in zip(part, likes, strict=True)) for part in parts))


def movable(batch: Any) -> list[Tensor]:
    """The tensors of a batch that an attack changes: floating inputs with an axis of samples and another one."""
    return [x for x in tensors_in(_inputs(batch)) if x.is_floating_point() and x.dim() > 1]


def answered(model: nn.Module, batch: Any) -> Any:
    """The output for a copy of the inputs: a network may overwrite them."""
    return forward(model, _with(batch, {id(x): x.clone() for x in movable(batch)}))


def held(
    model: nn.Module,
    objective: Classification,
    batch: Any,
    ball: Ball,
    space: Space,
    *,
    steps: int,
    restarts: int,
    generator: torch.Generator,
    least: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Of each sample the fewest positions answered rightly at any point of any ascent, (N,), and whether the gradient
    at its start was zero, (N,). The first ascent starts at the sample, ``restarts`` more at random points of the ball.
    ``least``: what a smaller ball has left, (N,).

    ``batch`` is on the model's device and in its dtype; samples of which nothing is held any more are left alone. Cost:
    (1 + restarts)·(steps + 1) forward and backward passes over the rest.
    """
    with torch.no_grad():
        worst = objective.hits(answered(model, batch), batch)[0]
    worst = worst if least is None else torch.minimum(worst, least)
    blind = torch.zeros_like(worst, dtype=torch.bool)
    for start in range(1 + restarts):
        alive = worst.nonzero().squeeze(1)
        if not len(alive):
            break
        part = samples_of(batch, len(worst), alive)
        found, flat = _ascent(model, objective, part, ball, space, steps, generator if start else None)
        worst[alive] = torch.minimum(worst[alive], found)
        if start == 0:
            blind[alive] = flat
    return worst, blind


def _ascent(
    model: nn.Module,
    objective: Classification,
    batch: Any,
    ball: Ball,
    space: Space,
    steps: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    origin = movable(batch)
    where, rate = space.to(origin), _OVERSHOOT * ball.radius / steps
    change = [torch.zeros_like(x) for x in origin] if generator is None else ball.drawn(origin, generator)
    worst, flat = None, torch.zeros(0)
    for step in range(steps + 1):
        at = [
            torch.minimum(torch.maximum(x + u * d, low), high)
            for x, u, d, low, high in zip(origin, where.unit, change, where.low, where.high, strict=True)
        ]
        gradients, hits = _gradients(model, objective, batch, origin, at)
        worst = hits if worst is None else torch.minimum(worst, hits)
        gradients = [g * u for g, u in zip(gradients, where.unit, strict=True)]
        if step == 0:
            flat = _sizes(gradients) == 0
        moved = [(x - x0) / u for x, x0, u in zip(at, origin, where.unit, strict=True)]
        change = ball.within([d + rate * g for d, g in zip(moved, ball.ascent(gradients), strict=True)])
    assert worst is not None
    return worst, flat


def _gradients(
    model: nn.Module, objective: Classification, batch: Any, origin: Sequence[Tensor], at: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """The loss's gradient at other inputs, and how many positions of each sample are right there."""
    leaves = [x.detach().requires_grad_() for x in at]
    changed = _with(batch, {id(old): new for old, new in zip(origin, leaves, strict=True)})
    with torch.enable_grad():
        output = answered(model, changed)
        loss, count = objective.losses(output, changed)
        seen = loss.requires_grad  # else the network computes without gradients: none are seen, as behind saturation
        found = torch.autograd.grad(loss * count, leaves, allow_unused=True) if seen else [None] * len(leaves)
    gradients = [torch.zeros_like(x) if g is None else g.nan_to_num() for x, g in zip(leaves, found, strict=True)]
    return gradients, objective.hits(output, changed)[0].detach()


def _inputs(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key not in LABELS}
    return batch[0] if isinstance(batch, tuple | list) else batch


def _with(batch: Any, new: Mapping[int, Tensor]) -> Any:
    """The batch with some of its input tensors exchanged."""
    inputs = mapped(_inputs(batch), lambda x: new.get(id(x), x))
    if isinstance(batch, Mapping):
        return {**batch, **inputs}
    return (inputs, *batch[1:]) if isinstance(batch, tuple | list) else inputs


def _sizes(parts: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each sample over all its tensors, in float64."""
    return torch.stack([part.detach().double().flatten(1).square().sum(1) for part in parts]).sum(0).sqrt()


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.dim() - 1))
