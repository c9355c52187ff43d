"""The smallest budget that is good enough, by trying as few as one can; knows nothing of networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WITHIN = 0.005  # of the smallest good budget: how far the bisection goes
STEP = 0.01  # of the smallest good budget: between the probes below it
MISSES = 8  # probes in a row that are clearly not good, after which no smaller one is tried
PROBES = 32  # in a row that are not good, clearly or not
ROUNDING = 1e-9


@dataclass(frozen=True)
class Tried:
    """A network that was tried: the ``fraction`` of the resource that was asked, and the ``kept`` one that it takes.

    ``figure`` is the judging one on the samples that search, ``drop`` by how much it is worse than the original's
    there, in its own unit, ``error`` the standard error of that; ``met``: whether that is allowed, ``near``: whether it
    is, or is beyond by no more than the error. ``key`` stands for the decisions of its plan.
    """

    fraction: float
    kept: float
    flops: int
    params: int
    bytes: int
    figure: float
    drop: float
    met: bool
    near: bool = False
    error: float = 0.0
    key: str = ""

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        del values["key"], values["near"]
        return values


def search(attempt: Callable[[float], Tried | None], *, top: float = 1.0, known: bool = True) -> tuple[Tried, ...]:
    """Try budgets in (0, ``top``] and return every network that was tried, each once, in that order.

    ``attempt(fraction)`` tries the network of that budget; None where no network is so small. ``known``: ``top`` is
    good enough, which needs no trial, as is the original itself.

    Bisection first, until the smallest good budget is known to ``WITHIN`` of itself, as if figures fell steadily. They
    do not: of two networks of nearly one size the smaller may be the better by chance. So budgets below are probed,
    ``STEP`` apart, until ``MISSES`` in a row are not good enough; a good one starts the count again, and one that is
    beyond by less than its error does not count, as long as there are fewer than ``PROBES`` in a row. What a plan
    leaves unused of its budget is skipped over, so that no network is tried twice. About 8 + 8 trials where figures
    fall steadily.
    """
    tried: dict[tuple[str, float], Tried] = {}

    def ask(fraction: float) -> Tried | None:
        point = attempt(fraction)
        if point is not None:
            tried.setdefault((point.key, point.kept), point)
        return point

    low, high = 0.0, top
    if not known:
        point = ask(top)
        high = top if point is None else min(top, point.kept)
        low = 0.0 if point is not None and point.met else high
    while high - low > WITHIN * high:
        middle = (low + high) / 2
        point = ask(middle)
        if point is not None and point.met:
            high = min(middle, point.kept)
        else:
            low = middle
    _probe(ask, high)
    return tuple(tried.values())


def _probe(ask: Callable[[float], Tried | None], below: float) -> None:
    missed = probes = 0
    while missed < MISSES and probes < PROBES:
        below *= 1 - STEP
        point, probes = ask(below), probes + 1
        if point is None:
            missed += 1
            continue
        below = min(below, point.kept)
        if point.met:
            missed = probes = 0
        else:
            missed += not point.near


def larger_by_steps(good: Sequence[Tried], most: int, attempt: Callable[[float], Tried | None]) -> Iterator[Tried]:
    """The smallest of ``good``, then larger ones, at most ``most``: each by more of its size than the one before.

    At least 1 %, then 4 %, 16 %, …: what is hardly larger is hardly better. Bisection leaves wide gaps: where
    nothing of about that size was tried, it is now (``attempt``), and taken if it is good too. Where none is so much
    larger, the largest.
    """
    ordered, step = sorted(good, key=lambda point: point.kept), STEP
    point = ordered[0] if ordered else None
    for number in range(1, most + 1):
        if point is None:
            return
        yield point
        if number == most:
            return
        wanted = point.kept * (1 + step)
        left = [other for other in ordered if other.kept > point.kept]
        following = next((other for other in left if other.kept >= wanted), left[-1] if left else None)
        if wanted < 1 and (following is None or not wanted <= following.kept <= wanted * (1 + step / 4)):
            made = attempt(wanted)
            if made is not None and made.met and made.kept > point.kept:
                following = made
        point, step = following, 4 * step
