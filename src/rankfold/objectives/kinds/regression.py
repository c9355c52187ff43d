"""Numbers as targets: squared error, the share of variance explained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.objectives.answer import main_alone, main_tensor, single
from rankfold.objectives.base import Objective
from rankfold.objectives.evaluation import SPREAD, Figure, ObjectiveError, moments

_TARGETS = f"{SPREAD}of targets"


def alike(values: Tensor, target: Tensor) -> bool:
    """Whether there is one number for each output, axes of one left aside."""
    if not values.dim() or not target.dim() or len(values) != len(target):
        return False
    return [n for n in values.shape[1:] if n > 1] == [n for n in target.shape[1:] if n > 1]


@dataclass(frozen=True)
class Regression(Objective):
    """The output's main tensor and a target of its shape. Mean squared error is minimised; r2 judges.

    r2 is the share of the targets' variance that is explained: 1 is perfect, 0 no better than their mean. Missing
    targets are NaN.

    Args:
        name: of the objective.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> rf.evaluate(nn.Identity(), (x, x), objective=rf.Regression()).judged.value
        1.0
    """

    smooths: ClassVar[bool] = False
    name: str = "regression"

    def _counting(self, output: Any) -> list[tuple[str, Tensor]]:
        return main_alone(output)

    def pair(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Outputs and targets (N, K) as rows, with NaN where nothing is known."""
        given, wanted = self._rows(output, batch)
        return given, wanted.to(given)

    def _rows(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """The same with targets as precise as they are given."""
        values, target = main_tensor(output), self.target(batch)
        if not isinstance(target, Tensor):
            raise ObjectiveError(f"{self.name}: targets must be a tensor of numbers, got a {type(target).__name__}")
        target = target.to(values.device)
        if not alike(values, target) or target.is_complex():
            raise ObjectiveError(
                f"{self.name}: targets of shape {tuple(target.shape)} do not fit outputs of shape "
                f"{tuple(values.shape)}: give one number for each output"
            )
        shaped = target.reshape(values.shape)
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        return single(wide).flatten(1), single(shaped).flatten(1)

    def losses(self, output: Any, batch: Any, smoothing: float = 0.0) -> tuple[Tensor, int]:
        given, wanted = self.pair(output, batch)
        known = ~wanted.isnan()
        if not bool(known.any()):
            return given.sum() * 0, 0
        return F.mse_loss(given[known], wanted[known]), int(known.sum())

    def measure(self, output: Any, batch: Any, taught: Any = None) -> dict[str, Tensor]:
        given, wanted = (part.double() for part in self._rows(output, batch))
        known = ~wanted.isnan()
        error = torch.where(known, given - wanted, 0.0)
        return {
            "square": error.square().sum(), "absolute": error.abs().sum(), "known": known.sum(),
            _TARGETS: moments(wanted, known),
        }  # fmt: skip

    def conclude(self, sums: Mapping[str, Tensor]) -> tuple[tuple[Figure, ...], float | None]:
        count, spread, square = float(sums["known"]), float(sums[_TARGETS][2].sum()), float(sums["square"])
        root = Figure("rmse", (square / count) ** 0.5, False)
        absolute = Figure("mae", float(sums["absolute"]) / count, False)
        if not spread > 0:  # every target is the same: no variance to explain
            return (root, absolute), None
        return (Figure("r2", 1 - square / spread), root, absolute), 0.0
