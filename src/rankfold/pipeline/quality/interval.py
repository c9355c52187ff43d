"""How far a figure fell on paired samples, and an interval of it, for any objective whose sums merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite

from torch import nn

from rankfold.compress.ranks.options import BudgetError
from rankfold.objectives import Evaluation, Figures, Objective
from rankfold.pipeline.quality.halves import GROUPS, Halves
from rankfold.pipeline.quality.value import MaxDrop
from rankfold.train import TrainingError, counted


@dataclass(frozen=True)
class Fall:
    """By how much the judging figure is worse ``after`` than ``before``, in its own unit, and a 95 % ``interval``.

    ``error``: its standard error, 0 where there are too few groups of samples to tell; ``interval`` is None then.
    """

    before: Evaluation
    after: Evaluation
    drop: float
    error: float = 0.0
    interval: tuple[float, float] | None = None


def fall(before: Sequence[Figures], after: Sequence[Figures], groups: int = GROUPS, figure: str = "") -> Fall:
    """The drop between two networks whose sums over the same batches, one for one, are ``before`` and ``after``, in the
    judging figure or in the one of this name, which then is the first; ``KeyError`` where it was not measured,
    ``TrainingError`` where no target counts.

    Batches are put together into about ``groups`` groups; the drop is measured again without each of them, which says
    how much it varies (jackknife without a group). Groups of m of n counted positions have the weights of F. Busing,
    E. Meijer, R. van der Leeden, "Delete-m jackknife for unequal m", 1999; the interval takes Student's t with one
    degree less than there are groups. Both networks meet the same samples, so that what is hard in them cancels. Cost:
    three sums over the groups, and no forward pass.
    """
    sums = _grouped(before, groups), _grouped(after, groups)
    counting = [index for index, part in enumerate(sums[0]) if _size(part)]
    if not counting:
        raise TrainingError(
            "validation data: no target of the samples that judge counts, as all are marked as left out, such as -100: "
            "give more samples with a target"
        )
    kept = [[side[index] for index in counting] for side in sums]
    total = judged_by(_merged(kept[0]).result(), figure), judged_by(_merged(kept[1]).result(), figure)
    whole = total[0].judged.better(total[1].judged)
    error = float("nan")
    if len(counting) > 1 and isfinite(whole):
        without = [
            a.judged.better(b.judged) for a, b in zip(*(_without_each(part, figure) for part in kept), strict=True)
        ]
        error = _error(whole, [_size(part) for part in kept[0]], without)
    if not isfinite(error):
        return Fall(*total, whole)
    reach = error * _student(len(counting) - 1)
    return Fall(*total, whole, error, (whole - reach, whole + reach))


def _student(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def _error(whole: float, positions: Sequence[int], without: Sequence[float]) -> float:
    count = len(positions)
    shares = [sum(positions) / size for size in positions]
    centre = count * whole - sum((1 - 1 / share) * value for share, value in zip(shares, without, strict=True))
    spread = sum(
        (share * whole - (share - 1) * value - centre) ** 2 / (share - 1)
        for share, value in zip(shares, without, strict=True)
    )
    return (spread / count) ** 0.5


def judged_by(found: Evaluation, figure: str) -> Evaluation:
    """The same with the figure of this name first, which judges; "" for the one that does."""
    if not figure:
        return found
    found[figure]  # a figure that was not measured is named here
    return replace(found, figures=tuple(sorted(found.figures, key=lambda each: each.name != figure)))


def check_figure(model: nn.Module, asked: MaxDrop, objective: Objective, parts: Halves) -> None:
    """``BudgetError`` for a figure by a name that the validation data do not give, on one batch of them."""
    if not asked.figure:
        return
    batch = next(iter(parts.search.cut))
    found = counted(model, [batch], role="validation", objective=objective, teacher=model)
    try:
        judged_by(found[0].result(), asked.figure)
    except KeyError as error:
        raise BudgetError(f"max drop {asked} (--max-drop): {error.args[0]}") from None


def _without_each(sums: Sequence[Figures], figure: str) -> list[Evaluation]:
    """What follows without each of the groups, from the sums of those before it and of those behind it."""
    first, last = [_merged(sums[:1])], [_merged(sums[-1:])]
    for part in sums[1:-1]:
        first.append(_merged([first[-1], part]))
    for part in sums[-2:0:-1]:
        last.append(_merged([part, last[-1]]))
    inner = [_merged(both) for both in zip(first, last[-2::-1], strict=False)]
    return [judged_by(each.result(), figure) for each in (last[-1], *inner, first[-1])]


def _grouped(sums: Sequence[Figures], groups: int) -> list[Figures]:
    size = ceil(len(sums) / groups)
    return [_merged(sums[start : start + size]) for start in range(0, len(sums), size)]


def _merged(sums: Sequence[Figures]) -> Figures:
    merged = sums[0].objective.figures()
    for part in sums:
        merged.merge(part)
    return merged


def _size(sums: Figures) -> int:
    return int(sums.sums.get("count", 0))
