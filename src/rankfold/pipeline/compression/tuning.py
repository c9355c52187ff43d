"""Tuning as a stage of the job: whether it is kept, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Self

from torch import nn
from typing_extensions import TypedDict

from rankfold.batches import copied
from rankfold.compress.repair.tune import Tuned, tune_
from rankfold.objectives import Evaluation, Objective
from rankfold.pipeline.compression.request import Settings
from rankfold.run.disk.container import checked
from rankfold.run.progress import Tell


@dataclass(frozen=True)
class Tuning:
    """``steps`` asked for, of the whole at once or of each block (``by``), what each of the ``parts`` gained, and
    whether the tuned factors were ``kept``."""

    steps: int
    by: str
    parts: tuple[Tuned, ...]
    kept: bool

    @property
    def sentence(self) -> str:
        """In words, without a full stop: what follows "tuned: ", or "tuning was " where it is not kept."""
        return self._gained if self.kept else f"tried and not kept: {self._gained}{self._without}"

    @property
    def _gained(self) -> str:
        if self.by == "whole":
            (whole,) = self.parts
            told = f"{self.steps} steps of the whole network; its divergence from the original on held-out samples was "
            told += f"{whole.before:.4g} before"
            if not whole.step:
                return f"{told}, and no step lowered it: the factors stay as they were"
            return f"{told} and is {whole.after:.4g} after step {whole.step}, the best"
        before, after = (fmean(getattr(part, when) for part in self.parts) for when in ("before", "after"))
        many = f"each of {len(self.parts)} blocks" if len(self.parts) > 1 else "one block"
        return (
            f"{self.steps} steps of {many}; the squared error of a block's output, over its energy, was "
            f"{before:.4g} before and is {after:.4g} after, in the mean"
        )

    @property
    def _without(self) -> str:
        """Why it was not kept, where that is not said yet, and what else may be tried."""
        if self.by == "whole" and not self.parts[0].step:
            return ""
        other = "; --tune-by whole is another way" if self.by == "blocks" and len(self.parts) == 1 else ""
        return f"; the loss on the validation split did not fall{other}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the manifest and ``rankfold compress --json`` hold them."""
        parts = [asdict(part) for part in self.parts]
        return {"steps": self.steps, "by": self.by, "kept": self.kept, "parts": parts}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        known = checked(_Kept, dict(values))
        return cls(known["steps"], known["by"], tuple(known["parts"]), known["kept"])


class _Kept(TypedDict):
    steps: int
    by: str
    kept: bool
    parts: list[Tuned]


def tuned_copy(
    small: nn.Module,
    score: Evaluation,
    original: nn.Module,
    calibration: Any,
    settings: Settings,
    objective: Objective,
    scored: Callable[[nn.Module], Evaluation],
    tell: Tell,
) -> tuple[nn.Module, Evaluation, Tuning | None]:
    """``small`` with its factors tuned, where that was asked and lowers the loss on validation; how good it is there,
    and what tuning did."""
    if not settings.tune:
        return small, score, None
    tuned = copied(small)
    by = settings.tune_by or ("whole" if objective.by_token else "blocks")
    parts = tune_(
        tuned, original, calibration, steps=settings.tune, by=by, samples=None,
        objective=objective if objective.by_token or by == "whole" else None, progress=tell.progress,
    )  # fmt: skip
    now = scored(tuned)
    told = Tuning(settings.tune, by, parts, now.loss < score.loss)
    what = "tuned blocks" if by == "blocks" else "tuned factors"
    tell.say(f"validation {now.judged.name}: {now.judged.text} with {what}" + ("" if told.kept else "; not kept"))
    return (tuned, now, told) if told.kept else (small, score, told)
