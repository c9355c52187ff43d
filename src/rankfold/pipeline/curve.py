"""Quality against budget: what compression alone, without fine-tuning, keeps at a handful of FLOP budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from rankfold.compress.methods.method import Method
from rankfold.compress.planning.plan import Plan
from rankfold.compress.ranks.allocate import BudgetError
from rankfold.compress.ranks.budget import Flops
from rankfold.compress.repair.batchnorm import Reference
from rankfold.objectives import Evaluation, Figure, Objective
from rankfold.pipeline.repair import compressed_copy
from rankfold.run.progress import Progress

KEPT = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Point:
    """The judging ``figure`` on the validation split at the kept fractions of FLOPs and parameters of the whole model.

    ``label`` names the method and the rank rule.
    """

    label: str
    kept_flops: float
    kept_params: float
    figure: Figure

    @property
    def accuracy(self) -> float:
        """The value of the figure."""
        return self.figure.value


def accuracy_curve(
    model: nn.Module,
    validation: Any,
    calibration: Any,
    make_plan: Callable[[Flops], Plan],
    *,
    method: Method | None = None,
    reference: Reference | None = None,
    kept: tuple[float, ...] = KEPT,
    progress: Progress | None = None,
    objective: Objective | None = None,
    known: tuple[Plan, Evaluation] | None = None,
) -> Iterator[Point]:
    """One point for each fraction of the FLOPs that can be reached, the largest first.

    On validation data, so that the test split is left for the final report. Cost for each point: ``make_plan``, one
    factorization of the model, one pass over ``calibration`` and one over ``validation``; once, a pass of ``model``
    over ``calibration``, unless the ``reference`` to it knows them. ``known``: a plan whose copy has been measured on
    ``validation`` by the same steps; the point with the same entries is taken from it.
    """
    shared = reference or Reference(model)
    for done, fraction in enumerate(kept):
        try:
            plan = make_plan(Flops(fraction))
        except BudgetError:
            return
        if known is not None and plan.entries == known[0].entries:
            score = known[1]
        else:
            _, score = compressed_copy(
                model, plan, calibration, validation, method=method, reference=shared, objective=objective
            )
        if progress is not None:
            progress(f"{score.judged.name} against budget", done + 1, len(kept))
        label = f"{plan.method}, {plan.rule}"
        yield Point(label, plan.after.flops / plan.before.flops, plan.after.params / plan.before.params, score.judged)
