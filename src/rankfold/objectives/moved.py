"""How far the answers of any objective have moved, in the unit in which layers are priced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rankfold.objectives.answer import Answer
from rankfold.objectives.base import Objective
from rankfold.objectives.kinds.teacher import Teacher


@dataclass(frozen=True)
class Moved(Teacher):
    """``loss``: the squared change of the answers of ``judged`` over their variance, class scores less their mean, as
    ``rankfold.compress.metric`` prices it; no targets are looked at.

    Args:
        name: of the objective.
        labelled: False.
        judged: whose answers count.

    Example:
        >>> x = torch.randn(8, 4)
        >>> rf.evaluate(nn.Identity(), x, objective=Moved(judged=rf.Regression()), teacher=nn.Identity()).loss
        0.0
    """

    name: str = "moved"
    judged: Objective = field(default_factory=Teacher)

    def answers(self, output: Any, batch: Any = None) -> tuple[Answer, ...]:
        return self.judged.answers(output, batch)
