"""The smallest network whose judging figure falls by at most so much, found from one profile."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.batches import copied
from rankfold.compress.applying.apply import apply_
from rankfold.compress.methods.method import fits_layers
from rankfold.compress.planning.plan import Plan, decisions
from rankfold.compress.planning.profile import Calibration, Profile
from rankfold.compress.planning.profiling import profile as measured
from rankfold.compress.planning.profiling import profiled
from rankfold.compress.planning.reachable import refused_early
from rankfold.compress.ranks.asked import parsed
from rankfold.compress.ranks.budget import Budget, Multiples
from rankfold.compress.ranks.options import BudgetError
from rankfold.compress.ranks.rules import RankRule, rule_named
from rankfold.compress.repair.batchnorm import Reference, reestimate_
from rankfold.linalg.brief import brief
from rankfold.objectives import Figure, Figures, Objective
from rankfold.observe.passes import separable
from rankfold.pipeline.compression.outcome.measure import calibration_part
from rankfold.pipeline.compression.repair import ENOUGH, compressed_copy
from rankfold.pipeline.quality.halves import Half, Halves, halves
from rankfold.pipeline.quality.interval import Fall, check_figure, fall
from rankfold.pipeline.quality.search import ROUNDING, Tried, larger_by_steps, search
from rankfold.pipeline.quality.value import MaxDrop, Quality
from rankfold.run.disk.files import write_atomically
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Tell, showing
from rankfold.train import choose, counted, feed
from rankfold.zoo.data import parts_of

WIDE = 1.15  # sizes that are further apart have others between them
JUDGED = 5  # networks that the judging half sees at most: a choice among many would be one made on it


@dataclass(frozen=True, eq=False)
class Smallest:
    """The network that ``rankfold.smallest`` found.

    Attributes:
        model: the network.
        plan: that it follows.
        quality: how good it is, what was tried, and a sentence that says it.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8))
        >>> plan = rf.plan(net, "params=0.9", "truncate", example=torch.randn(1, 8))
        >>> rf.Smallest(net, plan, quality=None).plan.method
        'truncate'
    """

    model: nn.Module
    plan: Plan
    quality: Quality

    __repr__ = brief


@showing
@ordinarily
def smallest(
    model: nn.Module,
    data: Any,
    max_drop: float | str,
    by: str = "flops",
    *,
    budget: str | Budget | Sequence[str | Budget] = (),
    rule: str | RankRule = "optimal",
    profile: Profile | None = None,
    objective: Objective | str | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Smallest:
    """The smallest compressed copy of ``model`` whose judging figure falls by at most ``max_drop``, without training.

    One half of the validation data searches: networks of ever smaller budgets are made from the one profile and
    evaluated. The other half judges the smallest that is good enough, with an interval of the drop; where it does not
    pass, a larger one is taken, five times at most. A method that fits layer after layer is searched
    with plans of ``project``, and fitted once for each network that is judged.

    Args:
        model: a trained network, left as it is.
        data: with the parts ``train`` and ``validation``.
        max_drop: in points of a percentage where the figure's unit is "fraction" (accuracy, mean IoU), else in the
            figure's own unit; of another figure than the judging one by its name, such as "kl=0.02", the divergence
            from the original's next tokens in nats.
        by: what is to be smallest: "flops", "params", "bytes" or "latency".
        budget: others that must hold besides.
        rule: how ranks are shared out between sites.
        profile: of ``model``, by the method, objective and calibration of your choice; by default made here, by
            ``project`` from 2,048 samples of ``data.train``.
        objective: what outputs and targets mean; by default that of ``profile``, or as data and model tell.
        seed: draws these samples, and parts ``validation`` in two halves.
        progress: called as ``progress(what, done, total)`` as the work goes on.

    Returns:
        A ``Smallest``: the network, its plan, and how good it is.

    Raises:
        BudgetError: nothing is good enough; with the least drop that was met.
        ValueError: a drop below zero or above what the figure can fall by; validation data that are missing or too few;
            both a profile and an objective.

    Cost: the profile; for each network that is tried (about 20) its factors, one pass over the calibration data where
    there is BatchNorm, and one over half of ``validation``.

    Example:
        >>> from types import SimpleNamespace
        >>> x = torch.randn(96, 16); y = (x[:, 0] > 0).long()
        >>> data = SimpleNamespace(train=(x[:64], y[:64]), validation=(x[64:], y[64:]))
        >>> net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> found = rf.smallest(net, data, max_drop=20)
        >>> found.quality.drop <= 0.2
        True
    """
    asked = MaxDrop.of(max_drop, by)
    if profile is not None:
        if objective is not None:
            raise ValueError(
                "the profile has an objective already: leave objective out, or give it to rankfold.profile"
            )
        objective = profile.objective
    data, limits = parts_of(data), parsed(budget) if budget else ()
    with feed.undrawn(data.train, data.validation):
        return _hunt(model, data, asked, limits, rule, profile, objective, seed, progress).found()


def _hunt(
    model: nn.Module,
    data: Any,
    asked: MaxDrop,
    budgets: tuple[Budget, ...],
    rule: str | RankRule,
    profile: Profile | None,
    given: Objective | str | None,
    seed: int,
    progress: Callable[[str, int, int], None] | None,
) -> Hunt:
    """What is refused without a profile is refused before there is one."""
    parts = halves(data.validation, seed)
    given = given or getattr(data, "objective", None)
    objective = choose(model, data.validation, given, role="validation").objective
    calibration = calibration_part(data.train, 2048, seed) if profile is None or profile.data is None else profile.data
    tell = Tell() if progress is None else Tell(progress)
    check_figure(model, asked, objective, parts)
    if profile is None:
        check = refused_early(budgets, rule_named(rule), (asked.budget(0.5),))
        profile = profiled(
            model, calibration, method="project", objective=objective, progress=progress, check=check,
        )  # fmt: skip
    return Hunt(model, profile, asked, budgets, rule, calibration, parts, objective, tell)


@dataclass(frozen=True, eq=False)
class Hunt:
    """One search. ``known``: the profile of the method that was asked; ``calibration`` corrects BatchNorm.

    ``place``: a file that keeps the figures of networks that were tried, so that an interrupted search goes on.
    """

    model: nn.Module
    known: Profile
    asked: MaxDrop
    budgets: tuple[Budget, ...]
    rule: str | RankRule
    calibration: Any
    halves: Halves
    objective: Objective
    tell: Tell = field(default_factory=Tell)
    reference: Reference | None = None
    place: Path | None = None

    @cached_property
    def figures(self) -> dict[str, tuple[float, float]]:
        """The judging figure on the searching half of each plan's network and the error of its drop, by the plan's
        decisions."""
        if self.place is not None and self.place.exists():
            with suppress(ValueError, OSError, TypeError, AttributeError):  # damaged: they are tried again
                stored = json.loads(self.place.read_text()).items()
                return {str(key): (float(figure), float(error)) for key, (figure, error) in stored}
        return {}

    @cached_property
    def before(self) -> list[Figures]:
        """Sums of the original on the searching half."""
        return self.sums(self.model, self.halves.search)

    @cached_property
    def separable(self) -> bool:
        """Whether a batch may be cut, so that there are enough groups for an interval."""
        first = next(iter(feed.ordered(self.halves.search.data, self.halves.search.batch_size)))
        return separable(self.model, first)

    @cached_property
    def start(self) -> Figure:
        """The judging figure of the original on the searching half."""
        try:
            return self.fallen(self.before, self.before).before.judged
        except KeyError as error:
            raise BudgetError(f"max drop {self.asked} (--max-drop): {error.args[0]}") from None

    def fallen(self, before: list[Figures], after: list[Figures]) -> Fall:
        return fall(before, after, figure=self.asked.figure)

    @cached_property
    def allowed(self) -> float:
        return self.asked.allowed(self.start)

    @cached_property
    def original(self) -> Reference:
        return self.reference or Reference(self.model)

    @cached_property
    def searched(self) -> Profile:
        """What budgets are searched with: the profile itself, or one by ``project`` where each plan would be a fit."""
        if not fits_layers(self.known.method):
            return self.known
        self.tell.say(
            f"{self.known.method.name} fits layer after layer: the budget is searched with plans of project, then "
            f"fitted by {self.known.method.name}"
        )
        data, how = self.known.needed_data(), self.known.calibration
        one_shot, chosen = Calibration(how.samples, how.batch_size, how.name), {site.name for site in self.known.sites}
        return measured(
            self.model, data, method="project", objective=self.objective, example=self.known.example,
            where=lambda name, module: name in chosen, calibration=one_shot, progress=self.tell.progress,
        )  # fmt: skip

    def found(self) -> Smallest:
        """The whole search: try, take the smallest that is good enough, judge it."""
        self.tell.say(f"max drop: {self.asked.told(self.start)}, on {self.halves.search.samples} samples")
        tried = self.tried()
        good = [point for point in tried if point.met]
        if not good:
            raise self.failed(tried, "is good enough on the samples that the search used")
        return self.judge(tried, good)

    def tried(self) -> tuple[Tried, ...]:
        binding = any(not isinstance(budget, Multiples) for budget in self.budgets)
        top = self.searched.plan(self.budgets, self.rule) if binding else None
        counted: list[Tried] = []

        def attempt(fraction: float) -> Tried | None:
            point = self.attempt(fraction)
            if point is not None:
                counted.append(point)
                name = self.start.name
                self.tell.progress(f"the smallest by {self.asked.by} ({name} {point.figure:.4g})", len(counted), 20)
            return point

        found = search(attempt, known=top is None)
        return tuple(point for point in found if point.key)  # without the one that changes nothing

    def planned(self, known: Profile, fraction: float) -> Plan:
        return known.plan((*self.budgets, self.asked.budget(fraction)), self.rule)

    def attempt(self, fraction: float) -> Tried | None:
        """The network of this budget; None where none is so small. What was tried before is not evaluated again."""
        try:
            plan = self.planned(self.searched, fraction)
        except BudgetError:
            return None
        key = decisions(plan.entries) if plan.changed else ""
        if key and key not in self.figures:
            met = self.fallen(self.before, self.sums(self.built(plan, self.searched), self.halves.search))
            self.figures[key] = met.after.judged.value, met.error
            if self.place is not None:
                write_atomically(self.place, json.dumps(self.figures).encode())
        value, error = self.figures[key] if key else (self.start.value, 0.0)
        drop, after, before = self.start.better(replace(self.start, value=value)), plan.after, plan.before
        kind = self.asked.by
        kept = fraction if kind == "latency" else min(fraction, getattr(after, kind) / max(getattr(before, kind), 1))
        return Tried(
            fraction, kept, after.flops, after.params, after.bytes, value, drop, self.good(drop),
            self.good(drop - error), error, key,
        )  # fmt: skip

    def good(self, drop: float) -> bool:
        return drop <= self.allowed + ROUNDING * max(1.0, abs(self.start.value))

    def built(self, plan: Plan, known: Profile) -> nn.Module:
        """The network of a plan, corrected; where a fit decides by data whether to correct, by those that search."""
        if plan.factors is not None:
            return compressed_copy(
                self.model, plan, self.calibration, self.halves.search.data, profile=known, method=known.method,
                reference=self.original, objective=self.objective, repaired=known.calibration.samples,
            )[0]  # fmt: skip
        small = apply_(copied(self.model), plan, known, method=known.method)
        reestimate_(small, self.original, self.calibration, samples=min(known.calibration.samples, ENOUGH))
        return small

    def judge(self, tried: tuple[Tried, ...], good: Sequence[Tried]) -> Smallest:
        """The smallest good one that the other half finds good too."""
        before = self.sums(self.model, self.halves.judge)
        notes, least, number, between = list[str](), float("inf"), 0, list[Tried]()
        below = 0.0

        def attempt(fraction: float) -> Tried | None:
            point = self.attempt(fraction)
            between.extend([] if point is None or not point.key else [point])
            return point

        for number, point in enumerate(larger_by_steps(good, JUDGED, attempt), 1):
            plan = self.planned(self.known, point.fraction)
            network = self.built(plan, self.known)
            met = self.fallen(before, self.sums(network, self.halves.judge))
            gap = self.gap(below, point.kept)
            quality = self.quality((*tried, *between), point, met, number, decisions(plan.entries), (*notes, *gap))
            self.tell.say(f"{self.asked.by}={point.fraction:.4g}: {quality.judgement} on the samples that judge")
            if self.good(met.drop):
                return Smallest(network, plan, quality)
            least, below = min(least, met.drop), point.kept
            notes.append(
                f"{self.asked.by}={point.fraction:.4g} is worse by {quality.text} on the samples that judge, so "
                "that a larger network is taken"
            )
        raise self.failed((*tried, *between), f"of {number} that were judged is good enough", least)

    def gap(self, below: float, kept: float) -> tuple[str, ...]:
        """What is said where many sizes lie between a network that was refused and the one that is taken."""
        if not below or kept < WIDE * below:
            return ()
        return (
            f"networks between {self.asked.by}={below:.4g} and {kept:.4g} were not judged: one of those may do "
            f"(--budget {self.asked.by}=…, judged by its validation figure)",
        )

    def again(self, plan: Plan, quality: Quality) -> Quality:
        """``quality`` of a plan that somebody changed since: judged anew; ``BudgetError`` where it falls too far."""
        part, network = self.halves.judge, self.built(plan, self.known)
        met = self.fallen(self.sums(self.model, part), self.sums(network, part))
        if not self.good(met.drop):
            raise self.failed(quality.tried, "that was changed since it was found is good enough", met.drop)
        found = replace(quality, after=met.after.judged.value, drop=met.drop, interval=met.interval)
        return replace(found, judged=quality.judged + 1, key=decisions(plan.entries))

    def quality(
        self, tried: tuple[Tried, ...], point: Tried, met: Fall, number: int, key: str, notes: tuple[str, ...]
    ) -> Quality:
        return Quality(
            self.allowed, self.asked.by, self.start, met.before.judged.value, met.after.judged.value, met.drop,
            met.interval, (self.halves.search.samples, self.halves.judge.samples), tried, number, point.fraction, key,
            notes,
        )  # fmt: skip

    def sums(self, network: nn.Module, part: Half) -> list[Figures]:
        """Of each batch of a half."""
        alone = self.objective.labelled and not self.asked.figure  # what judges is enough to choose by
        teacher = None if alone else self.model
        data = part.cut if self.separable else part.data
        return counted(
            network, data, part.batch_size, role="validation", objective=self.objective, teacher=teacher,
            apart=True,
        )  # fmt: skip

    def failed(self, tried: Sequence[Tried], why: str, least: float | None = None) -> BudgetError:
        """The least drop that was met, in the words of ``max_drop``."""
        figure = self.start
        drops = [point.drop for point in tried] if least is None else [least]
        if not drops:
            return BudgetError("no network is smaller than the original: factoring gains nothing in any of its layers")
        return BudgetError(
            f"no network {why}: {figure.name} may be worse by {figure.amount(self.allowed, 6)}, and the best of the "
            f"{len(tried)} networks that were tried is worse by {figure.amount(min(drops))}: allow more (--max-drop, "
            "max_drop=), or try another method (--method)"
        )
