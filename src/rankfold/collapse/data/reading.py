"""What labels are to the outputs of a model: classes of samples or of positions, and the answers to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankfold.batches import labels_of, size_of
from rankfold.objectives import Classification, Objective, ObjectiveError, Regression, infer, main_tensor

_ONE = "clusters by class need one class label for each sample: give batches (inputs, labels)"


@dataclass(frozen=True)
class Reading:
    """``axis``: of the outputs, along which the scores of classes lie; ``single``: there is one score for each label
    instead, positive for class 1. Neither: outputs are no scores of the labels. ``numbers``: targets are several
    numbers for each sample, and no classes.
    """

    axis: int | None = None
    single: bool = False
    numbers: bool = False

    @classmethod
    def of(cls, output: Any, batch: Any, objective: Objective | None = None) -> Reading:
        """By ``objective``, or by what the output and the targets tell; where they tell none, labels are classes."""
        values = main_tensor(output)
        if objective is None:
            try:
                objective = infer(output, batch).objective
            except ObjectiveError:
                return cls()
        if isinstance(objective, Classification):
            return cls(axis=objective.axis)
        single = values.ndim == 1 or values.shape[-1] == 1
        several = isinstance(objective, Regression) and values.ndim == 2 and not single
        labels = labels_of(batch)
        binary = isinstance(labels, Tensor) and bool(((labels == 0) | (labels == 1)).all())
        return cls(single=single and binary, numbers=several)

    def labels(self, batch: Any) -> Tensor:
        """Whole numbers (n,) or, of positions, (n, T), on the CPU; below 0 for what counts nowhere.

        Raises ``ValueError`` for targets that are no such labels.
        """
        labels = labels_of(batch)
        if not isinstance(labels, Tensor) or labels.is_complex() or not labels.ndim:
            raise ValueError(_ONE)
        if len(labels) != size_of(batch):
            raise ValueError(
                f"a batch of {size_of(batch)} samples has {len(labels)} labels: give one label for each sample"
            )
        if labels.numel() == len(labels):
            labels = labels.flatten()  # of columns
        if self.numbers and labels.ndim > 1:
            raise ValueError(
                f"the targets of shape {tuple(labels.shape)} are several numbers for each sample, one for each output, "
                "and clusters by class need one class label: give class labels (n,), or use collapse_report, which "
                "puts such targets into clusters"
            )
        if labels.ndim not in (1, 2) or (labels.is_floating_point() and not self.single):
            raise ValueError(_ONE)
        return labels.detach().cpu().long().contiguous()

    def answers(self, output: Any, labels: Tensor) -> Tensor | None:
        """The classes that the model answers where there are ``labels``, as many and in their order, on the CPU; None
        where outputs are no scores of them."""
        values = main_tensor(output).detach()
        if self.single:
            found = (values.flatten() > 0).long()
        elif self.axis is not None and values.ndim > 1:
            found = values.movedim(self.axis, -1).argmax(-1).flatten()
        else:
            return None
        return found.cpu() if found.numel() == labels.numel() else None


def compact(answers: Tensor, present: Tensor) -> Tensor:
    """Classes numbered as the ``present`` ones (ascending) are; −1 for one of which there is no sample."""
    index = torch.searchsorted(present, answers).clamp_max(len(present) - 1)
    return torch.where(present[index] == answers, index, -1)
