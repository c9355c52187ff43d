"""What would pay: a short look at a model, its data and this machine, and what it says in plain words."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from torch import nn

from rankfold.compress.planning.apply import apply_
from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.profile import Calibration, Profile
from rankfold.compress.planning.profiling import profile
from rankfold.compress.ranks.budget import Flops
from rankfold.compress.ranks.options import BudgetError
from rankfold.compress.repair.batchnorm import Reference, reestimate_
from rankfold.costs import Cost, Example, evaluating, latencies
from rankfold.costs.clock import once
from rankfold.costs.example import with_batch
from rankfold.linalg.brief import brief
from rankfold.objectives import Figure, Figures, Objective
from rankfold.pipeline.compression.measure import calibration_part, first_example
from rankfold.pipeline.quality.halves import GROUPS, few_of, sample_count
from rankfold.pipeline.quality.interval import fall
from rankfold.run.progress import Tell
from rankfold.sites import Form, SiteList, unwrap
from rankfold.sites.find import Where
from rankfold.train.breakdown import at_chance
from rankfold.train.evaluation import counted
from rankfold.zoo.data import parts_of

KEPT = (0.9, 0.75, 0.6, 0.45, 0.3)  # fractions of the FLOPs that are tried, one after the other while time is left
BATCHES = (1, 64)
FASTER = 0.95  # of the original's time, from which on a network is called faster: less is noise
WORTH = 0.05  # of a network: smaller parts are not worth a word
SHOWN = 5  # layers and reasons that are named


@dataclass(frozen=True)
class Saved:
    """What one layer gives: its new form and rank, and the shares of the whole network's FLOPs and parameters that
    this saves."""

    site: str
    form: str
    rank: int
    flops: float
    params: float


@dataclass(frozen=True)
class Tried:
    """One compressed network, not trained: its share of the FLOPs and parameters, how it answers validation samples,
    how much worse than the original that is with a 95 % ``interval`` (None where samples are too few to tell), and
    milliseconds by batch size, of it and of the original ``beside`` it, measured in turns."""

    flops: float
    params: float
    figure: Figure
    drop: float
    interval: tuple[float, float] | None
    latencies: Mapping[int, float]
    beside: Mapping[int, float]
    layers: tuple[Saved, ...]

    def speed(self, batch: int) -> float:
        """How many times as fast as the original."""
        return self.beside[batch] / self.latencies[batch]

    @property
    def faster(self) -> tuple[int, ...]:
        """The batch sizes at which it takes clearly less time than the original."""
        return tuple(batch for batch in self.latencies if self.latencies[batch] < FASTER * self.beside[batch])


@dataclass(frozen=True)
class Advice:
    """What was looked at, and what follows from it.

    Attributes:
        cost: of the original.
        sites: how many layers can be factored.
        covered: the shares of its parameters and FLOPs that lie in these.
        obstacles: the largest other parts, as (share of the parameters, name, reason).
        start: the judging figure of the original.
        tried: what was measured of each network that was made.
        allowed: how far the judging figure may fall, in its own unit.
        samples: for calibration and for judging.
        labelled: whether the data have targets.
        seconds: that the look took.
        unlearned: the original is no better than chance, so that nothing follows.

    Example:
        >>> figure, cost = rf.Figure("accuracy", 0.9, unit="fraction"), rf.Cost(100, 200, 400)
        >>> rf.Advice(cost, 1, (0.8, 0.9), (), figure, (), 0.01, (256, 256), True).best is None
        True
    """

    cost: Cost
    sites: int
    covered: tuple[float, float]
    obstacles: tuple[tuple[float, str, str], ...]
    start: Figure
    tried: tuple[Tried, ...]
    allowed: float
    samples: tuple[int, int]
    labelled: bool
    seconds: float = 0.0
    unlearned: bool = False

    __repr__ = brief

    @property
    def best(self) -> Tried | None:
        """The smallest network that was tried whose figure falls by no more than what is allowed."""
        good = [] if self.unlearned else [point for point in self.tried if point.drop <= self.allowed]
        return min(good, key=lambda point: point.flops, default=None)

    @property
    def latencies(self) -> Mapping[int, float]:
        """Milliseconds of the original by batch size: the median of what was measured beside each network."""
        batches = self.tried[0].beside if self.tried else ()
        return {batch: median(point.beside[batch] for point in self.tried) for batch in batches}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the sentences that follow from them."""
        from rankfold.pipeline.advice.words import sentences

        best = self.best
        return {
            "params": self.cost.params, "flops": self.cost.flops, "sites": self.sites,
            "covered_params": self.covered[0], "covered_flops": self.covered[1],
            "obstacles": [{"params": share, "name": name, "reason": why} for share, name, why in self.obstacles],
            "figure": self.start.name, "value": self.start.value, "allowed": self.allowed,
            "latency_ms": dict(self.latencies), "calibration_samples": self.samples[0],
            "validation_samples": self.samples[1],
            "tried": [
                {
                    "flops": p.flops, "params": p.params, "value": p.figure.value, "drop": p.drop,
                    "interval": p.interval, "latency_ms": dict(p.latencies), "original_ms": dict(p.beside),
                    "layers": [vars(layer) for layer in p.layers],
                }
                for p in self.tried
            ],
            "best_flops": None if best is None else best.flops, "advice": list(sentences(self)),
            "seconds": self.seconds,
        }  # fmt: skip


def advise(
    model: nn.Module,
    data: Any,
    *,
    seconds: float = 60.0,
    max_drop: float | None = None,
    objective: Objective | str | None = None,
    where: Where | None = None,
    batches: Sequence[int] = BATCHES,
    seed: int = 0,
    tell: Tell | None = None,
) -> Advice:
    """Look at ``model`` for about ``seconds``: what can be factored, what that costs in quality, what it gives in time.

    Networks are made by method ``project`` from a few hundred samples, BatchNorm statistics corrected, not trained;
    they are judged on validation samples, so that the test split stays closed. ``model`` is left as it is.

    Args:
        model: a trained network.
        data: with the parts ``train`` and ``validation`` (``rankfold.zoo.Data``, or any object with these), or a tuple
            of them, as in ``rankfold.pipeline.compress``.
        seconds: about how long to look.
        max_drop: how far the judging figure may fall, in points of a percentage or in its own unit; by default one
            point, or 2 % of the figure.
        objective: what outputs and targets mean; told from the data by default.
        where: narrows the sites, as in ``rankfold.sites``.
        batches: batch sizes at which networks are timed.
        seed: of the samples that are drawn.
        tell: progress.

    Returns:
        An ``Advice``; ``best`` is the network that is recommended, or None.

    Raises:
        ValueError: as ``rankfold.profile``.

    Cost: as many samples as a forward pass allows within ``seconds``, and at least 64: a large model takes longer.

    Example:
        >>> from types import SimpleNamespace
        >>> x = torch.randn(96, 16); y = (x[:, 0] > 0).long()
        >>> data = SimpleNamespace(train=(x[:64], y[:64]), validation=(x[64:], y[64:]))
        >>> found = rf.advise(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)), data, seconds=0.1)
        >>> found.sites, all(point.flops <= 1 for point in found.tried)
        (2, True)
    """
    begun, tell, root, data = time.perf_counter(), tell or Tell(), unwrap(model), parts_of(data)
    example = first_example(root, data.train)
    each = _seconds_of_one(root, example)
    taught, judged = (int(min(max(part * seconds / each, 64), most)) for part, most in ((0.05, 1024), (0.07, 2000)))
    calibration = calibration_part(data.train, taught, seed)
    known = profile(
        root, calibration, objective=objective, example=example, where=where,
        calibration=Calibration(samples=taught), progress=tell.progress,
    )  # fmt: skip
    validation, reference = few_of(data.validation, judged, seed), Reference(root)
    meaning = known.objective
    before = _sums(root, root, validation, meaning)
    start = fall(before, before).before
    allowed = _allowed(start.judged, max_drop)
    tried: list[Tried] = []
    for plan in _plans(known):
        if tried and time.perf_counter() - begun > 0.85 * seconds:
            break
        small = apply_(copy.deepcopy(root), plan, known)
        reestimate_(small, reference, calibration, samples=taught)
        met = fall(before, _sums(small, root, validation, meaning))
        timed = {
            batch: latencies({"new": small, "old": root}, example, batch=batch, rounds=9, seconds=1.0)
            for batch in batches
        }
        after, whole = plan.after, plan.before
        new, old = ({batch: each[name] for batch, each in timed.items()} for name in ("new", "old"))
        shares = after.flops / max(whole.flops, 1), after.params / max(whole.params, 1)
        tried.append(Tried(*shares, met.after.judged, met.drop, met.interval, new, old, _saved(plan, known)))
        tell.progress(f"trying smaller networks ({met.after.judged})", len(tried), len(KEPT))
    covered, obstacles = _parts(root, known.sites, known)
    return Advice(
        known.cost, len(known.sites.reducible), covered, obstacles, start.judged, tuple(tried), allowed,
        (known.samples, sample_count(validation)), bool(meaning is not None and meaning.labelled),
        time.perf_counter() - begun, start.chance is not None and at_chance(start.judged, start),
    )  # fmt: skip


def _seconds_of_one(root: nn.Module, example: Example) -> float:
    """Of one sample in a batch of sixteen."""
    few = with_batch(example, 16)
    with evaluating(root):
        once(root, few)
        return max(once(root, few) / 16, 1e-6)


def _plans(known: Profile) -> Iterator[Plan]:
    """Those that can be met and change something, the largest first; no two that decide alike."""
    seen = set[str]()
    for fraction in KEPT:
        try:
            plan = known.plan(Flops(fraction))
        except BudgetError:
            return
        if plan.changed and plan.decided not in seen:
            seen.add(plan.decided or "")
            yield plan


def _sums(network: nn.Module, root: nn.Module, validation: Any, objective: Objective | None) -> list[Figures]:
    """Of each batch, in batches small enough for groups of samples to be left out."""
    teacher = None if objective is not None and objective.labelled else root
    size = max(1, min(128, (len(validation) if hasattr(validation, "__len__") else 1024) // GROUPS))
    return counted(network, validation, size, role="validation", objective=objective, teacher=teacher, apart=True)


def _allowed(start: Figure, max_drop: float | None) -> float:
    if max_drop is None:
        return 0.01 if start.unit == "fraction" else 0.02 * (abs(start.value) or 1.0)
    return max_drop / 100 if start.unit == "fraction" else max_drop


def _saved(plan: Plan, known: Profile) -> tuple[Saved, ...]:
    """The layers that save most, the largest first."""
    made = []
    for entry in plan.changed:
        site = known.sites[entry.site]
        dense = known.counter.cost(site, Form.KEEP, 0, site.layer.has_bias)
        made.append(
            Saved(
                entry.site, str(entry.form), entry.rank,
                (dense.flops - entry.flops) / max(plan.before.flops, 1),
                (dense.params - entry.params) / max(plan.before.params, 1),
            )
        )  # fmt: skip
    return tuple(sorted(made, key=lambda saved: -saved.flops)[:SHOWN])


def _parts(
    root: nn.Module, found: SiteList, known: Profile
) -> tuple[tuple[float, float], tuple[tuple[float, str, str], ...]]:
    """The shares of parameters and FLOPs in layers that can be factored, and the largest parts outside of them."""
    whole = known.cost
    dense = sum(
        (known.counter.cost(site, Form.KEEP, 0, site.layer.has_bias) for site in found.reducible), Cost(0, 0, 0)
    )
    sizes = {name: parameter.numel() for name, parameter in root.named_parameters(remove_duplicate=False)}
    outside: defaultdict[str, tuple[int, str]] = defaultdict(lambda: (0, ""))
    named = [(name, why) for name, why in found.left_out if name in sizes]
    named += [(f"{site.name}.{site.layer.parameter}", site.note) for site in found if site.forms == {Form.KEEP}]
    for name, why in named:
        outside[why] = outside[why][0] + sizes.get(name, 0), outside[why][1] or name
    parts = sorted(((count / max(whole.params, 1), name, why) for why, (count, name) in outside.items()), reverse=True)
    shares = dense.params / max(whole.params, 1), dense.flops / max(whole.flops, 1)
    return shares, tuple(part for part in parts[:SHOWN] if part[0] >= WORTH)
