"""What the time of a look is spent on: the quality at a handful of budgets first, then latency with what is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.profile import Profile
from rankfold.compress.ranks.options import BudgetError
from rankfold.costs import Example, evaluating, latencies
from rankfold.costs.clock import once
from rankfold.costs.example import with_batch
from rankfold.pipeline.advice.found import Advice, Tried
from rankfold.pipeline.quality.value import BY
from rankfold.run.progress import Tell

KEPT = (0.9, 0.75, 0.6, 0.45, 0.3)  # fractions of what is to be small, tried one after the other while time is left
_PASSES, _OF_TOKENS = 18, 9  # forward passes of one sample that a profile costs for each (ResNet20, 32 to 512 images)
_TOGETHER, _MOST = 75, 128  # and so many more, decompositions included, where errors at positions are added up
_TIMING = 0.15  # of the time, to time networks in
_FORWARDS = 8  # of which latencies takes no fewer: one to warm up and three rounds, of two networks


@dataclass(frozen=True)
class Look:
    """The time that a look has, and what it is spent on: quality first, then latency."""

    seconds: float
    tell: Tell
    begun: float = field(default_factory=lambda: time.perf_counter())

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.begun

    @property
    def left(self) -> float:
        return max(self.seconds - self.spent, 0.0)

    def judged(
        self, known: Profile, by: str, judge: Callable[[Plan], Tried]
    ) -> tuple[list[Plan], list[Tried], list[float]]:
        """The plans that were carried out, what was seen of each, and the fractions for which the time did not do."""
        plans: list[Plan] = []
        tried: list[Tried] = []
        asked, last = list(_plans(known, by)), 0.0
        for number, (_, plan) in enumerate(asked):
            if tried and last > self.left - _TIMING * self.seconds:
                return plans, tried, [fraction for fraction, _ in asked[number:]]
            started = self.spent
            plans.append(plan)
            tried.append(judge(plan))
            last = self.spent - started
            self.tell.progress(f"trying smaller networks ({tried[-1].figure})", len(tried), len(asked))
        return plans, tried, []

    def timed(
        self, found: Advice, plans: Sequence[Plan], made: Callable[[Plan], nn.Module], root: nn.Module,
        example: Example, each: float, batches: Sequence[int],
    ) -> Advice:  # fmt: skip
        """``found`` with the times of the network that it recommends, or else the first, and then of the others, as
        long as there is time. ``each``: seconds of one sample."""
        if not found.tried:
            return found
        tried = list(found.tried)
        first = tried.index(found.best or tried[0])
        for index in sorted(range(len(tried)), key=lambda index: (index != first, index)):
            fits = [batch for batch in batches if _FORWARDS * batch * each <= self.left]
            small = made(plans[index]) if fits else None
            for batch in fits:
                if small is None or _FORWARDS * batch * each > self.left:
                    continue
                pair = {"new": small, "old": root}
                most = min(1.0, self.left / (4 * len(fits)))
                times = latencies(pair, example, batch=batch, rounds=9, seconds=most)
                point = tried[index]
                tried[index] = replace(
                    point,
                    latencies={**point.latencies, batch: times["new"]},
                    beside={**point.beside, batch: times["old"]},
                )
        untimed = tuple(batch for batch in batches if batch not in tried[first].latencies)
        return replace(found, tried=tuple(tried), untimed=untimed)


def affordable(wanted: float, each: float, most: int) -> int:
    """How many samples to take: no fewer than 64, or than half a second allows of a slow network, but 16."""
    return int(min(max(wanted, min(64, max(16, 0.5 / each))), most))


def profiled_within(forwards: float, tokens: bool = False) -> float:
    """How many samples a profile may take that shall cost no more than so many forward passes of one sample. Errors of
    ``tokens`` are not added up over positions."""
    if tokens:
        return forwards / _OF_TOKENS
    if forwards <= (_PASSES + _TOGETHER) * _MOST:
        return forwards / (_PASSES + _TOGETHER)
    return (forwards - _TOGETHER * _MOST) / _PASSES


def seconds_of_one(root: nn.Module, example: Example) -> float:
    """Of one sample in a batch of four, which is what a slow network can be asked before anything is known of it; of a
    fast one in batches of sixteen, the mean of some, since a busy machine takes turns."""
    with evaluating(root):
        few = with_batch(example, 4)
        once(root, few)
        each = once(root, few) / 4
        if each <= 0.01:
            few, took = with_batch(example, 16), list[float]()
            while len(took) < 3 or (sum(took) < 0.3 and len(took) < 20):
                took.append(once(root, few))
            each = sum(took) / (16 * len(took))
        return max(each, 1e-6)


def _plans(known: Profile, by: str) -> Iterator[tuple[float, Plan]]:
    """Fractions and plans: those that can be met and change something, the largest first; no two that decide alike."""
    seen = set[str]()
    for fraction in KEPT:
        try:
            plan = known.plan(BY[by](fraction))
        except BudgetError:
            return
        if plan.changed and plan.decided not in seen:
            seen.add(plan.decided or "")
            yield fraction, plan
