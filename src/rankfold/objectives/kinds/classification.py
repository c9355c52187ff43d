"""One class for each sample, pixel or token: cross-entropy, accuracy, mean intersection over union."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.objectives.answer import IGNORE, Answer, decoded, indices, main_tensor, of_classes, unpadded
from rankfold.objectives.base import Objective
from rankfold.objectives.evaluation import Figure, ObjectiveError
from rankfold.objectives.units import NATS


@dataclass(frozen=True)
class Classification(Objective):
    """Scores of classes along ``axis`` of the output's main tensor, and the index of the right one as target.

    Targets may also be probabilities of the classes.

    Args:
        axis: of the classes in the output: 1 as in ``torch.nn.functional.cross_entropy`` (N, C, …), −1 for tokens (N,
            …, C).
        areas: pixels: mean intersection over union judges, otherwise accuracy.
        ignore: targets of this value count nowhere.
        name: of the objective.

    Example:
        >>> scores, right = torch.eye(3), torch.tensor([0, 1, 1])
        >>> rf.evaluate(nn.Identity(), (scores, right), objective=rf.Classification()).judged.text
        '66.67 %'
    """

    diverges_in: ClassVar[str] = NATS
    axis: int = 1
    areas: bool = False
    ignore: int = IGNORE
    name: str = "classification"

    def answers(self, output: Any, batch: Any = None) -> tuple[Answer, ...]:
        values = main_tensor(output)
        if values.dim() < 2:
            raise ObjectiveError(
                f"{self.name}: the model must give outputs of shape (N, classes, …), and gives {tuple(values.shape)}"
            )
        return (of_classes(values.movedim(self.axis, -1), self._counted(values, output, batch)),)

    def _counted(self, values: Tensor, output: Any, batch: Any) -> Tensor | None:
        return None

    def target(self, batch: Any) -> Any:
        return indices(super().target(batch))

    def pair(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Scores (R, C) and targets (R,), or probabilities (R, C), of the positions that count."""
        scores, found = self._rows(output, batch)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        kept = self._kept(found)
        if not bool(kept.all()):  # a copy of the scores only where some are left out
            scores, found = scores[kept], found[kept]
        return scores, found

    def _kept(self, found: Tensor) -> Tensor:
        """Which of the targets of ``_rows`` count."""
        return found != self.ignore if found.dim() == 1 else found.new_ones(len(found), dtype=torch.bool)

    def _rows(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Scores (R, C) in their own type and targets (R,), or probabilities (R, C), of all positions."""
        values = main_tensor(output)
        target = self.target(batch)
        if not isinstance(target, Tensor):
            raise ObjectiveError(
                f"{self.name}: targets must be a tensor of class indices, got a {type(target).__name__}"
            )
        target = target.to(values.device)
        if values.dim() < 2:
            self._refuse(values, target)
        scores = values.movedim(self.axis, -1)
        classes = scores.shape[-1]
        if target.is_floating_point():
            if target.shape != values.shape:
                self._refuse(values, target)
            chances = target.movedim(self.axis, -1).reshape(-1, classes)
            if not (bool((chances >= 0).all()) and bool(((chances.sum(1) - 1).abs() < 1e-3).all())):
                raise ObjectiveError(
                    f"{self.name}: targets that are floating-point numbers must be probabilities of the classes, "
                    "which sum to 1: convert class indices to integers (.long()), and name another objective= "
                    "(--objective) for other numbers"
                )
            return scores.reshape(-1, classes), chances
        if target.dim() == scores.dim() and target.shape[-1] == 1:
            target = target.squeeze(-1)
        if target.shape != scores.shape[:-1] or target.dtype == torch.bool or target.is_complex():
            self._refuse(values, target)
        found = target.reshape(-1)
        self._check_range(found[found != self.ignore], classes)
        return scores.reshape(-1, classes), found

    def check(self, output: Any, targets: Tensor) -> None:
        values = main_tensor(output)
        if values.dim() > 1 and not targets.is_floating_point():
            found = indices(targets)
            self._check_range(found[found != self.ignore], values.shape[self.axis])

    def _check_range(self, found: Tensor, classes: int) -> None:
        if not found.numel():
            return
        low, high = int(found.min()), int(found.max())
        if low >= 0 and high < classes:
            return
        where = "negative" if low < 0 else f"outside 0 … {classes - 1}"
        raise ObjectiveError(
            f"label {low if low < 0 else high} is {where}, as the model has {classes} outputs: renumber the "
            f"labels from 0, mark positions that do not count with {self.ignore}, widen the last layer, or let "
            "this label mark such positions: "
            f"{type(self).__name__}(ignore={low if low < 0 else high}{', areas=True' if self.areas else ''})"
        )

    def _refuse(self, values: Tensor, target: Tensor) -> None:
        place = "second" if self.axis == 1 else "last"
        raise ObjectiveError(
            f"{self.name}: labels of shape {tuple(target.shape)}, {str(target.dtype).removeprefix('torch.')}, do "
            f"not fit outputs of shape {tuple(values.shape)}: with the classes along the {place} axis, each "
            "position needs one class index, an integer (.long()); or name what the labels are with objective= "
            "(--objective)"
        )

    def losses(self, output: Any, batch: Any, smoothing: float = 0.0) -> tuple[Tensor, int]:
        scores, target = self.pair(output, batch)
        if not len(scores):
            return scores.sum() * 0, 0
        return F.cross_entropy(scores, target, label_smoothing=smoothing), len(scores)

    def measure(self, output: Any, batch: Any, taught: Any = None) -> dict[str, Tensor]:
        scores, target = self.pair(output, batch)
        target = target.argmax(-1) if target.dim() > 1 else target
        given, classes = likeliest(scores), scores.shape[-1]
        found = {"right": (given == target).sum(), "labels": target.bincount(minlength=classes)}
        if self.areas:
            cells = (target * (classes + 1) + given).bincount(minlength=classes * (classes + 1))
            found["confusion"] = cells.reshape(classes, classes + 1)
        return found

    def hits(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Of each sample how many positions are answered rightly, and how many count: (N,) and (N,) int64."""
        self.pair(output, batch)  # refuses targets that do not fit
        given = likeliest(main_tensor(output).movedim(self.axis, -1))
        target = self.target(batch).to(given.device)
        target = target.movedim(self.axis, -1).argmax(-1) if target.is_floating_point() else target.reshape(given.shape)
        counted = target != self.ignore
        return ((given == target) & counted).reshape(len(given), -1).sum(1), counted.reshape(len(given), -1).sum(1)

    def conclude(self, sums: Mapping[str, Tensor]) -> tuple[tuple[Figure, ...], float | None]:
        count = float(sums["count"])
        accuracy = Figure("accuracy", float(sums["right"]) / count, True, "fraction")
        chance = float(sums["labels"].max()) / count
        if not self.areas:
            return (accuracy,), chance
        both = sums["confusion"].diagonal()
        either = sums["confusion"].sum(0)[: len(both)] + sums["confusion"].sum(1) - both
        present = either > 0
        return (Figure("mean_iou", float((both / either)[present].mean()), True, "fraction"), accuracy), None


def likeliest(scores: Tensor) -> Tensor:
    """The class with the highest of the scores (…, C); C, which is none, where one of them is NaN."""
    highest, found = scores.max(-1)
    return found.masked_fill(highest.isnan(), scores.shape[-1])


@dataclass(frozen=True)
class TokenClassification(Classification):
    """One class for each token, along the last axis.

    Args:
        axis: of the classes in the output: 1 as in ``torch.nn.functional.cross_entropy`` (N, C, …), −1 for tokens (N,
            …, C).
        areas: pixels: mean intersection over union judges, otherwise accuracy.
        ignore: targets of this value count nowhere.
        name: of the objective.

    Example:
        >>> x, y = torch.eye(3)[None], torch.tensor([[0, 1, -100]])
        >>> rf.evaluate(nn.Identity(), (x, y), objective=rf.TokenClassification()).accuracy
        1.0
    """

    axis: int = -1
    name: str = "token-classification"

    def _counted(self, values: Tensor, output: Any, batch: Any) -> Tensor | None:
        return unpadded(values, batch, decoded(output, batch))
