"""Any number of labels for each sample: binary cross-entropy, F1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.objectives.evaluation import Figure, ObjectiveError
from rankfold.objectives.kinds.regression import Regression


@dataclass(frozen=True)
class MultiLabel(Regression):
    """One score for each label, positive for yes; targets of the same shape hold 0 and 1. F1 over all judges.

    Missing targets are NaN. Shares between 0 and 1 are taken too, but not where the objective was ``told``.

    Args:
        name: of the objective.
        told: whether it was told from data, whose targets were all 0 and 1 as far as they were seen: others that come
            later contradict it, and are refused.

    Example:
        >>> x, y = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
        >>> rf.evaluate(nn.Identity(), (x, y), objective=rf.MultiLabel()).judged.value
        1.0
    """

    smooths: ClassVar[bool] = True
    name: str = "multi-label"
    told: bool = field(default=False, compare=False, repr=False)

    def pair(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        scores, target = super().pair(output, batch)
        known = target[~target.isnan()]
        if self.told and not is_binary(known):
            raise ObjectiveError(
                f"the objective was told from the first targets, which were all 0 or 1, and here they run from "
                f"{float(known.min()):g} to {float(known.max()):g}: say what they are with objective= (--objective), "
                f"regression for numbers, classification for probabilities, {self.name} for shares"
            )
        if bool(((known < 0) | (known > 1)).any()):
            raise ObjectiveError(
                f"{self.name}: targets must be from 0 to 1, and run from {float(known.min()):g} to "
                f"{float(known.max()):g}"
            )
        return scores, target

    def losses(self, output: Any, batch: Any, smoothing: float = 0.0) -> tuple[Tensor, int]:
        scores, target = self.pair(output, batch)
        known = ~target.isnan()
        if not bool(known.any()):
            return scores.sum() * 0, 0
        wanted = target * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(scores[known], wanted[known]), int(known.sum())

    def measure(self, output: Any, batch: Any, taught: Any = None) -> dict[str, Tensor]:
        scores, target = self.pair(output, batch)
        known, lost, wanted = ~target.isnan(), scores.isnan(), target > 0.5
        yes = torch.where(lost, ~wanted, scores > 0)  # what is no number is no right answer
        return {
            "hits": (yes & wanted & known).sum(), "given": (yes & known).sum(), "wanted": (wanted & known).sum(),
            "right": ((yes == wanted) & known).sum(),
        }  # fmt: skip

    def conclude(self, sums: Mapping[str, Tensor]) -> tuple[tuple[Figure, ...], float | None]:
        both = float(sums["given"] + sums["wanted"])
        score = 2 * float(sums["hits"]) / both if both else 1.0
        accuracy = Figure("accuracy", float(sums["right"] / sums["count"]), True, "fraction")
        return (Figure("f1", score, True, "fraction"), accuracy), None


def is_binary(target: Tensor) -> bool:
    """Whether all targets are 0 or 1, or NaN, which is unknown."""
    return bool(((target == 0) | (target == 1) | target.isnan()).all())
