"""Quality against budget: what compression alone, without fine-tuning, keeps at a handful of FLOP budgets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.profile import Profile
from rankfold.compress.ranks.budget import Budget, Flops
from rankfold.compress.ranks.options import BudgetError
from rankfold.compress.ranks.rules import RankRule
from rankfold.compress.repair.batchnorm import Reference
from rankfold.objectives import Evaluation, Figure, Objective
from rankfold.pipeline.compression.repair import compressed_copy
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Progress
from rankfold.train import evaluate

KEPT = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1)
SAMPLES = 1000  # of validation, for a curve to look at: the same for all points, which differ by less than chance says
REPAIRED = 256  # calibration samples that correct the BatchNorm statistics of a point


@dataclass(frozen=True)
class Point:
    """The judging ``figure`` on validation samples at the kept fractions of FLOPs and parameters of the whole model.

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


@dataclass(frozen=True)
class Curve:
    """Points, the judging figure of the original on the same samples, and how many those are where not all."""

    points: tuple[Point, ...] = ()
    start: float | None = None
    samples: int | None = None


@ordinarily
def quality_curve(
    model: nn.Module,
    validation: Any,
    calibration: Any,
    known: Profile,
    *,
    rule: RankRule | str = "optimal",
    reference: Reference | None = None,
    kept: tuple[float, ...] = KEPT,
    progress: Progress | None = None,
    objective: Objective | None = None,
    measured: tuple[Plan, nn.Module, Evaluation | None] | None = None,
    besides: Sequence[Budget] = (),
) -> Iterator[Point]:
    """One point for each fraction of the FLOPs that can be reached, the largest first; all from one profile.

    On validation data, so that the test split is left for the final report. Cost for each point: the factors of one
    plan, one pass over ``REPAIRED`` samples of ``calibration`` and one over ``validation``; once, a pass of ``model``
    over the former, unless the ``reference`` to it knows them. ``measured``: a plan, the copy that it gave, and
    how that does on ``validation`` where it is known; a point with the same decisions is taken from it. ``besides``:
    what holds for every point.
    """
    original = reference or Reference(model)
    for done, fraction in enumerate(kept):
        try:
            plan = known.plan((Flops(fraction), *besides), rule)
        except BudgetError:
            return
        if measured is not None and plan.decided == measured[0].decided:
            _, small, known_score = measured
            score = known_score or evaluate(small, validation, role="validation", objective=objective, teacher=model)
        else:
            _, score = compressed_copy(
                model, plan, calibration, validation, profile=known, reference=original, objective=objective,
                repaired=REPAIRED,
            )  # fmt: skip
        if progress is not None:
            progress(f"{score.judged.name} against budget", done + 1, len(kept))
        label = f"{plan.method}, {plan.rule}"
        yield Point(label, plan.after.flops / plan.before.flops, plan.after.params / plan.before.params, score.judged)
