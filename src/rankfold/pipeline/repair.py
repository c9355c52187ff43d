"""A compressed copy of a model, repaired without training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from rankfold.compress.apply import apply_
from rankfold.compress.method import Method
from rankfold.compress.plan import Plan
from rankfold.compress.repair import reestimate_
from rankfold.train import Evaluation, evaluate

Progress = Callable[[str, int, int], None]


def compressed_copy(
    model: nn.Module,
    plan: Plan,
    calibration: Any,
    validation: Any,
    *,
    method: Method | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, Evaluation]:
    """A copy of ``model`` with ``plan`` applied and BatchNorm statistics corrected, and its result on ``validation``.

    ``model`` is left as it is. ``method``: your own, where the plan was made with one. Cost: the factorization, one
    pass of both networks over ``calibration``, and one of the new one over ``validation``.
    """
    tell = progress or (lambda what, done, total: None)
    small = copy.deepcopy(model)
    apply_(small, plan, method=method, progress=lambda _, done, total: tell("factoring", done, total))
    reestimate_(small, model, calibration, samples=None)
    return small, evaluate(small, validation, role="validation")
