"""A compressed copy of a model, repaired without training."""

from __future__ import annotations

from typing import Any

from torch import nn

from rankfold.batches import copied
from rankfold.compress.applying.apply import apply_
from rankfold.compress.methods.method import Method
from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.profile import Profile
from rankfold.compress.repair.batchnorm import Reference, reestimate_
from rankfold.objectives import Evaluation, Objective, objective_named
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Progress
from rankfold.train import evaluate

ENOUGH = 1024  # samples that correct BatchNorms: two networks are compared on the same ones, so that chance cancels


@ordinarily
def compressed_copy(
    model: nn.Module,
    plan: Plan,
    calibration: Any,
    validation: Any,
    *,
    profile: Profile | None = None,
    method: Method | None = None,
    reference: Reference | None = None,
    progress: Progress | None = None,
    objective: Objective | str | None = None,
    repaired: int = ENOUGH,
) -> tuple[nn.Module, Evaluation]:
    """A copy of ``model`` with ``plan`` applied and BatchNorm statistics corrected, and its result on ``validation``.

    Where a fit layer after layer has fitted the layers to what they meet, the statistics are only corrected if that
    lowers the loss on ``validation``. ``objective`` as in ``rankfold.train.evaluate``. ``model`` is left as it is.
    ``profile``: the one that the plan was made from: then nothing is decomposed again. ``method``: your own, where the
    plan was made with one. ``reference``: to ``model``, where several copies of it are made. ``repaired``: samples of
    ``calibration`` that correct the statistics, at most ``ENOUGH``. Cost: the factorization, one pass of both networks
    over these (of the new one alone where the reference knows the data), and one of it over ``validation``.
    """
    tell = progress or (lambda what, done, total: None)
    small = copied(model)
    apply_(small, plan, profile, method=method, progress=lambda _, done, total: tell("factoring", done, total))
    return mended(
        small, model, plan, calibration, validation, reference=reference, objective=objective, repaired=repaired
    )


def mended(
    small: nn.Module,
    model: nn.Module,
    plan: Plan,
    calibration: Any,
    validation: Any,
    *,
    reference: Reference | None = None,
    objective: Objective | str | None = None,
    repaired: int = ENOUGH,
) -> tuple[nn.Module, Evaluation]:
    """What ``compressed_copy`` does with ``small``, to which ``plan`` was applied; ``small`` itself may be returned."""

    def scored(network: nn.Module) -> Evaluation:
        known = None if objective is None else objective_named(objective)
        teacher = None if known is not None and known.labelled else model  # what judges is enough to choose by
        return evaluate(network, validation, role="validation", objective=known, teacher=teacher)

    fitted = None
    if plan.factors is not None:
        fitted = copied(small), scored(small)
    if not reestimate_(small, reference or model, calibration, samples=min(repaired, ENOUGH)) and fitted is not None:
        return fitted
    score = scored(small)
    return fitted if fitted is not None and fitted[1].loss <= score.loss else (small, score)
