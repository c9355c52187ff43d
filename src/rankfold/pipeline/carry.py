"""A plan carried out: the network is saved as soon as it is factored, and again when it is repaired."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.batches import copied
from rankfold.compress.applying.apply import apply_
from rankfold.compress.planning.plan import Plan
from rankfold.compress.repair.batchnorm import has_statistics
from rankfold.compress.slicing.bottlenecks import bottlenecks
from rankfold.costs import Cost, Example, model_cost
from rankfold.objectives import Objective
from rankfold.pipeline.compression.outcome.delivery import model_notes
from rankfold.pipeline.compression.outcome.measure import calibration_part
from rankfold.pipeline.compression.repair import mended
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Tell
from rankfold.sites import narrowable_sites
from rankfold.store import check_ours, save
from rankfold.train import choose


@dataclass(frozen=True)
class Carrying:
    """How a plan is carried out. ``model``: the name from which the original can be built again, for the manifest.

    ``data`` as for ``compress``, or None: then nothing is repaired and slices need data later. ``example``: one input;
    None if none is known. ``slices``: keep what slicing needs. ``seed`` draws the calibration samples.
    """

    model: str = ""
    data: Any = None
    example: Example | None = None
    objective: Objective | str | None = None
    slices: bool = True
    seed: int = 0


@ordinarily
def carry_out_(
    original: nn.Module, plan: Plan, directory: str | Path, how: Carrying, tell: Tell | None = None
) -> tuple[nn.Module, Cost]:
    """The network of ``plan``, saved in ``directory``, and what it costs.

    ``original`` is left as it is with data, and without is itself what is factored. It is saved once it is factored.
    With data, BatchNorm statistics are then corrected beside the original, it is judged on validation, what slices need
    is measured, and it is saved again: where one of these fails, the error says that the factored network is there.
    Raises ``ValueError`` in one line.
    """
    tell = tell or Tell()
    check_ours(directory, original)
    small = original if how.data is None else copied(original)
    apply_(small, plan, progress=lambda _, done, total: tell.progress("factoring", done, total))
    save(small, plan, directory, notes=model_notes(how.model, how.data, how.example))
    if how.data is not None:
        try:
            small = _improved(original, small, plan, Path(directory), how, tell)
        except (ValueError, OSError) as error:
            raise ValueError(f"{error}; the factored network is saved in {directory}, but not repaired") from error
    elif has_statistics(small):
        tell.say("BatchNorm statistics stay those of the original; --data NAME measures them again")
    tell.say(f"saved in {directory}")
    return small, plan.after if how.example is None else model_cost(small, how.example)


def _improved(
    original: nn.Module, small: nn.Module, plan: Plan, directory: Path, how: Carrying, tell: Tell
) -> nn.Module:
    data = how.data
    calibration = calibration_part(data.train, 2048, how.seed)
    chosen = choose(original, data.validation, how.objective, role="validation")
    tell.say(str(chosen))
    small, score = mended(small, original, plan, calibration, data.validation, objective=chosen.objective)
    tell.say(f"validation {score.judged.name}: {score.judged.text}")
    known = None
    if how.slices and narrowable_sites(small):
        known = bottlenecks(small, calibration, progress=tell.progress)
    save(small, plan, directory, notes=model_notes(how.model, data, how.example, chosen), bottlenecks=known)
    return small
