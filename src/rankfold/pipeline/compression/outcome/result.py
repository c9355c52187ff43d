"""What one run reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.compress.planning.plan import Plan
from rankfold.linalg.brief import brief
from rankfold.pipeline.compression.outcome.beside import Beside
from rankfold.pipeline.compression.outcome.measure import Figures
from rankfold.pipeline.compression.tuning import Tuning
from rankfold.pipeline.quality.value import Quality


@dataclass(frozen=True)
class Result:
    """``compressed``: without training; ``finetuned``: None if there was none. ``model`` is the last of the two.

    Figures are on the split named ``split`` (test where there is one), measured once, when every choice was made.
    ``validation``: the judging figure of each stage on the split that chose. ``seconds``: wall clock of this call.
    ``objective``: what outputs and targets were taken to mean, and why. ``quality``: what a search for the smallest
    network found, where a drop was allowed (``Settings.max_drop``). ``tuning``: what ``Settings.tune`` gave.
    ``forecast``: what the plan was expected to lose beside what the compressed network has lost.
    """

    model: nn.Module
    plan: Plan
    before: Figures
    compressed: Figures
    finetuned: Figures | None
    seconds: float
    split: str
    validation: Mapping[str, float]
    remarks: tuple[str, ...] = ()
    directory: Path | None = field(default=None, compare=False)
    objective: str = ""
    quality: Quality | None = None
    tuning: Tuning | None = None
    forecast: Beside | None = None

    __repr__ = brief

    @property
    def params_removed(self) -> float:
        """Fraction of the original's parameters."""
        return 1 - self.compressed.params / self.before.params

    @property
    def flops_removed(self) -> float:
        """Fraction of the original's FLOPs; 0 for a model without any."""
        return 1 - self.compressed.flops / self.before.flops if self.before.flops else 0.0

    def to_dict(self) -> dict[str, Any]:
        """What ``rankfold compress --json`` prints."""
        return {
            "before": self.before.to_dict(),
            "compressed": self.compressed.to_dict(),
            "finetuned": None if self.finetuned is None else self.finetuned.to_dict(),
            "params_removed": self.params_removed,
            "flops_removed": self.flops_removed,
            "kept_of_factorable": self.plan.kept_of_factorable(),
            "seconds": self.seconds,
        } | self._stages()

    def _stages(self) -> dict[str, Any]:
        """What is told of a search and of tuning, where there was one, and of the forecast."""
        searched = {} if self.quality is None else {"quality": self.quality.to_dict()}
        tuned = {} if self.tuning is None else {"tuning": self.tuning.to_dict()}
        return searched | tuned | ({} if self.forecast is None else {"forecast": self.forecast.to_dict()})
