"""From updates and a budget to pairs of factors: ranks are shared out over all updates, which are looked at one by one.

An update is decomposed as deep as its rank is expected to be, and deeper where it is found to be larger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from rankfold.adapt.extraction.budget import Asked, Curve, ranks
from rankfold.linalg.leading import Leading
from rankfold.run.progress import Progress

_START = 32  # directions that are looked at first where only an error is asked
_ROUNDING = 8  # units of the last place of the largest singular value: less cannot be told from rounding


@dataclass(frozen=True)
class Update:
    """An update of shape (m, n). ``leading(rank)``: its leading triplets, and what an error of it costs.

    Known once it was read: ``noise()``, singular values up to which may come from rounding of the weights alone, and
    ``stored()``, the type that its factors are worth, float64 where its weights are.
    """

    shape: tuple[int, int]
    leading: Callable[[int], Leading]
    noise: Callable[[], float] = lambda: 0.0
    stored: Callable[[], torch.dtype] = lambda: torch.float32

    @property
    def price(self) -> int:
        return sum(self.shape)


@dataclass(frozen=True)
class Part:
    """One update at the rank that was chosen: factors in float32 or float64, its squared error and size."""

    right: torch.Tensor
    left: torch.Tensor
    loss: float
    energy: float
    full: int  # the rank that it has, as far as that is known

    @property
    def rank(self) -> int:
        return len(self.right)


def spread(
    updates: Mapping[str, Update], wanted: Asked, limit: int | None, progress: Progress | None = None
) -> dict[str, Part]:
    """The factors of each update, its rank chosen within ``wanted``; rank 0 where it gets none.

    ``limit``: numbers in all (None: no limit). Errors of different updates are added up as they come, in squares.
    Raises ``BudgetError``, and whatever reading an update raises.
    """
    total = max(1, sum(update.price for update in updates.values()))
    depth = wanted.rank if wanted.rank is not None else _START if limit is None else 2 * (limit // total) + _START
    looked: dict[str, Leading] = {}
    todo = {name: min(depth, *update.shape) for name, update in updates.items()}
    while True:
        for done, (name, deep) in enumerate(todo.items()):
            looked[name] = _above_noise(updates[name].leading(deep), updates[name])
            if progress is not None:
                progress("decomposing", done + 1, len(todo))
        curves = {name: Curve(found.losses, updates[name].price, found.full) for name, found in looked.items()}
        chosen = ranks(curves, wanted, limit)
        todo = {
            name: min(2 * len(found.values), *updates[name].shape)
            for name, found in looked.items()
            if chosen[name] == len(found.values) and not found.full and chosen[name] != wanted.rank
        }
        if not todo:
            break
    parts = {}
    for name, found in looked.items():
        right, left = (factor.to(updates[name].stored()) for factor in found.pair(chosen[name]))
        losses = found.losses
        parts[name] = Part(right, left, float(losses[chosen[name]]), float(losses[0]), len(found.values))
    return parts


def _above_noise(found: Leading, update: Update) -> Leading:
    """``found`` without what rounding alone may have made."""
    if not len(found.values):
        return found
    floor = max(update.noise(), _ROUNDING * torch.finfo(update.stored()).eps * float(found.values[0]))
    kept = int((found.values > floor).sum())
    if kept == len(found.values):
        return found
    rest = found.rest + float(found.values[kept:].square().sum())
    return Leading(found.left[:, :kept], found.values[:kept], found.right[:kept], rest, True)
