"""How far a figure fell on paired samples, and an interval of it, for any objective whose sums merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, isfinite

from rankfold.objectives import Evaluation, Figures
from rankfold.pipeline.quality.halves import GROUPS


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


def fall(before: Sequence[Figures], after: Sequence[Figures], groups: int = GROUPS) -> Fall:
    """The drop between two networks whose sums over the same batches, one for one, are ``before`` and ``after``.

    Batches are put together into about ``groups`` groups; the drop is measured again without each of them, which says
    how much it varies (jackknife without a group). Groups of m of n counted positions have the weights of F. Busing,
    E. Meijer, R. van der Leeden, "Delete-m jackknife for unequal m", 1999; the interval takes Student's t with one
    degree less than there are groups. Both networks meet the same samples, so that what is hard in them cancels. Cost:
    two sums over the groups for each of them, and no forward pass.
    """
    pairs = [(a, b) for a, b in zip(_grouped(before, groups), _grouped(after, groups), strict=True) if _size(a)]
    whole = _difference(pairs)
    total = _concluded([a for a, _ in pairs]), _concluded([b for _, b in pairs])
    error = _error(whole, pairs, _difference) if len(pairs) > 1 and isfinite(whole) else float("nan")
    if not isfinite(error):
        return Fall(*total, whole)
    reach = error * _student(len(pairs) - 1)
    return Fall(*total, whole, error, (whole - reach, whole + reach))


Pair = tuple[Figures, Figures]


def _student(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def _error(whole: float, pairs: Sequence[Pair], difference: Callable[[Sequence[Pair]], float]) -> float:
    count, positions = len(pairs), [_size(a) for a, _ in pairs]
    shares = [sum(positions) / size for size in positions]
    without = [difference([*pairs[:index], *pairs[index + 1 :]]) for index in range(count)]
    centre = count * whole - sum((1 - 1 / share) * value for share, value in zip(shares, without, strict=True))
    spread = sum(
        (share * whole - (share - 1) * value - centre) ** 2 / (share - 1)
        for share, value in zip(shares, without, strict=True)
    )
    return (spread / count) ** 0.5


def _difference(pairs: Sequence[Pair]) -> float:
    before, after = (_concluded([pair[side] for pair in pairs]).judged for side in (0, 1))
    return before.better(after)


def _grouped(sums: Sequence[Figures], groups: int) -> list[Figures]:
    size = ceil(len(sums) / groups)
    return [_merged(sums[start : start + size]) for start in range(0, len(sums), size)]


def _merged(sums: Sequence[Figures]) -> Figures:
    merged = sums[0].objective.figures()
    for part in sums:
        merged.merge(part)
    return merged


def _concluded(sums: Sequence[Figures]) -> Evaluation:
    return _merged(sums).result()


def _size(sums: Figures) -> int:
    return int(sums.sums.get("count", 0))
