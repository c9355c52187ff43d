"""What a plan was forecast to lose beside what the network has lost: both in one unit, for every objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from rankfold.batches import batches_of
from rankfold.compress.layerwise.rounds import divergence
from rankfold.compress.planning.forecast import Total
from rankfold.compress.planning.plan import Plan
from rankfold.objectives import Evaluation, Objective
from rankfold.objectives.moved import Moved
from rankfold.objectives.units import CHANGE, TOKEN, in_words
from rankfold.pipeline.quality.halves import few_of
from rankfold.run.disk.container import checked
from rankfold.train import evaluate
from rankfold.train.feed import samples

SAMPLES = 1024  # of the split on which both networks are compared, where no figure says it already
_BATCH = 64
_TUNED = " (before tuning too)"


@dataclass(frozen=True)
class Beside:
    """``total``: the forecast of the plan. ``measured``: the same of the network, before any fine-tuning, ``where``;
    None where it was not."""

    total: Total
    measured: float | None = None
    where: str = ""

    @property
    def sentence(self) -> str:
        """Both in words, without a full stop."""
        if self.total.value is None:
            return f"forecast {self.total.sentence}"
        probe = self.total.probe
        tried = "" if probe is None else f" ({probe:.3g} on a few tokens of the calibration data)"
        place, tuned, _ = self.where.partition(_TUNED)
        when = "tuning" if tuned else "any fine-tuning"
        found = "not measured" if self.measured is None else f"measured {self.measured:.3g} on {place}, before {when}"
        return f"forecast {self.total.value:.3g}{tried}, {found}: {in_words(self.total.unit)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``--json``, the manifest and ``result.json`` hold them."""
        return self.total.to_dict() | {"measured": self.measured} | ({"where": self.where} if self.where else {})

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        of_total = {key: each for key, each in values.items() if key in Total.__annotations__}
        rest = {key: each for key, each in values.items() if key not in of_total}
        return checked(cls, {"total": of_total} | rest)


def beside(
    made: Plan,
    original: nn.Module,
    small: nn.Module,
    split: Any,
    name: str,
    objective: Objective,
    score: Evaluation | None,
) -> Beside:
    """The forecast of ``made`` beside what ``small``, as the plan made it, has lost on the ``split`` of this ``name``.
    ``score``: what was evaluated there; None where the network was tuned since, which no forecast knows of. Cost:
    nothing where the score says it; else one pass of both networks over ``SAMPLES``."""
    total, when = made.total, _TUNED if score is None else ""
    if total.value is None:
        return Beside(total)
    few = split if total.unit == TOKEN and score is not None else few_of(split, SAMPLES)
    where = (
        f"the {name} split{when}" if few is split else f"{samples(few) or SAMPLES} samples of the {name} split{when}"
    )
    if total.unit == TOKEN:
        if score is None:
            score = evaluate(small, few, role=name, objective=objective, teacher=original)
        lost = score.values.get("kl")
        where = "" if lost is None else where
    elif total.unit == CHANGE:
        lost = evaluate(small, few, role=name, objective=Moved(judged=objective), teacher=original).loss
    else:
        lost = divergence(original, small, list(batches_of(few, _BATCH, None)), objective)
    return Beside(total, lost, where)
