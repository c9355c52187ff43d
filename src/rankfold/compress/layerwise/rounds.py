"""Layer-after-layer fits until they stop helping: fit, choose ranks anew from the errors that were met, fit again.

What judges are held-out samples, and the network that was factored in one shot takes part: with few samples it is often
the better one on new inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rankfold.batches import copied, forward
from rankfold.compress.layerwise.in_parts import Curve
from rankfold.compress.layerwise.layers import FittedNetwork, fit_layers, partition, refittable
from rankfold.compress.methods.method import LayerwiseMethod
from rankfold.compress.metric import output_metrics
from rankfold.compress.planning.apply import filled, place_, prepare_
from rankfold.compress.planning.candidates import Candidate, decompose
from rankfold.compress.planning.entries import few_samples
from rankfold.compress.planning.fitted import Fitted
from rankfold.compress.planning.plan import Entry, Plan, decisions
from rankfold.compress.statistics import calibrate, moments_bytes
from rankfold.costs import evaluating
from rankfold.objectives import Objective, Teacher
from rankfold.observe import Samples
from rankfold.sites import Form, SiteList, opened, without_fused_attention

if TYPE_CHECKING:
    from rankfold.compress.planning.profile import Profile

from rankfold.run.progress import Progress

Choose = Callable[[Mapping[tuple[str, Form], Tensor]], Plan]

METRIC_SAMPLES = 1024


def fit(known: Profile, first: Plan, choose: Choose | None) -> Plan:
    """``first`` with the factors that fits give; its ranks are those of the best one on held-out samples.

    ``choose``: the plan for other prices; None keeps the ranks, and fits once. A further fit is made with ranks and
    output metrics from the one before, up to ``method.rounds``, as long as the outputs on held-out samples come nearer
    to the original's. Where the factors made in one shot are nearer there than any fit, they are kept. Where nothing
    changes, nothing is fitted. Cost of a fit: see ``fit_layers``.
    """
    if not first.changed:
        return first
    with known.calibration.team(known.needed_model()) as team:
        seen = replace(known.calibration.of(known.needed_data()), team=team)
        return _Fit(known, seen, known.objective or Teacher()).run(first, choose)


@dataclass(frozen=True, eq=False)
class _Round:
    loss: float
    plan: Plan
    made: FittedNetwork


@dataclass(frozen=True, eq=False)
class _Fit:
    known: Profile
    seen: Samples
    objective: Objective

    def run(self, first: Plan, choose: Choose | None) -> Plan:
        known, root, method = self.known, self.known.needed_model(), self.method
        one_shot = bool(getattr(method, "one_shot", False))
        judged = (method.rounds > 1 and choose is not None) or one_shot
        judges = self.seen.judges(root) if judged else ()
        fitted = self.seen.without_judges() if judges else self.seen
        rounds = method.rounds if choose is not None and judges else 1
        plan, metrics, best = first, known.metrics, None
        lost: list[float] = []
        for number in range(rounds):
            made = self._fitted(plan, fitted, metrics, number, rounds)
            loss = divergence(root, made.network, judges, self.objective) if judges else 0.0
            lost.append(loss)
            if best is not None and not loss < best.loss:
                break
            best = _Round(loss, plan, made)
            if number + 1 == rounds or choose is None or not made.losses:
                break
            again = output_metrics(made.network, fitted.first(METRIC_SAMPLES), known.sites, self.objective)
            metrics, plan = {**metrics, **again}, choose(dict(made.losses))
        assert best is not None
        if one_shot:
            kept = self._in_one_shot(first, judges, fitted, best.loss)
            if kept is not None:
                return kept
        if len(lost) < 2:
            return self._ended(best.plan, best.made)
        said = ", ".join(f"{loss:.4g}" for loss in lost)
        note = f"divergence of held-out outputs after each fit: {said}; that of fit {lost.index(best.loss) + 1} is kept"
        return self._ended(best.plan, best.made, note)

    @property
    def method(self) -> LayerwiseMethod:
        return self.known.method  # type: ignore[return-value]  # who calls this has asked ``fits_layers``

    def _ended(self, plan: Plan, made: FittedNetwork, *notes: str) -> Plan:
        before = [note for note in plan.notes if note not in few_samples(plan.entries)]
        return replace(
            plan, entries=made.entries, decided=decisions(made.entries), factors=made.fitted,
            notes=(*before, *few_samples(made.entries), *notes),
        )  # fmt: skip

    def _fitted(
        self, plan: Plan, fitted: Samples, metrics: Mapping[str, Tensor], number: int, rounds: int
    ) -> FittedNetwork:
        known, root = self.known, self.known.needed_model()
        entries = self._with_refits(plan)
        place = None if known.directory is None else known.directory / f"fit-{number}-{decisions(entries)}"
        tell = partial(_telling, known.tell, number, rounds)
        return fit_layers(
            root, entries, known.sites, self.method, fitted, metrics, known.absorbers, directory=place, progress=tell
        )

    def _with_refits(self, plan: Plan) -> tuple[Entry, ...]:
        """Layers that stay dense are fitted anew where that is free: where a bias, or a BatchNorm, takes the shift."""
        if not self.method.kept:
            return plan.entries
        entries, known, root = [], self.known, self.known.needed_model()
        with opened(root):
            for entry in plan.entries:
                site = known.sites[entry.site]
                free = site.layer.has_bias or known.absorbers.get(site.name) is not None
                if entry.form is Form.KEEP and free and refittable(root, site) and site.name in known.absorbers:
                    entry = replace(entry, form=Form.DENSE, note="; ".join(filter(None, (entry.note, "fitted anew"))))
                entries.append(entry)
        return tuple(entries)

    def _in_one_shot(self, plan: Plan, judges: Sequence[Any], fitted: Samples, reached: float) -> Plan | None:
        """The plan with the factors of the decompositions, unless fits have ``reached`` less on samples new to both.

        Where nothing can be held back to tell, these factors.
        """
        if not judges:
            told = (
                "nothing could be held back to judge a fit layer after layer by (one batch of samples that cannot be "
            )
            return self._ended(
                plan, self._one_shot(plan, self.seen), f"{told}parted): the factors of one shot are kept"
            )
        root = self.known.needed_model()
        loss = divergence(root, self._one_shot(plan, fitted).network, judges, self.objective)
        if reached < loss:
            return None
        told = f"fitting layer after layer is no nearer on held-out samples ({reached:.4g}) than one shot ({loss:.4g})"
        return self._ended(plan, self._one_shot(plan, self.seen), f"{told}, which is kept")

    def _one_shot(self, plan: Plan, seen: Samples) -> FittedNetwork:
        """The network with the factors of the decompositions on ``seen``; those of the profile where they are kept."""
        known, root = self.known, self.known.needed_model()
        network, fitted = copied(root), {}
        prepare_(network, plan.changed)
        with opened(root):
            for entry, candidate in self._candidates(plan, seen):
                absorber = None if entry.bias else known.absorbers.get(entry.site)
                fitted[entry.site] = Fitted(candidate.decomposition.factors(entry.rank), absorber)
                new = filled(root, known.sites[entry.site], entry, fitted[entry.site])
                place_(network, entry.site, new, fitted[entry.site])
        return FittedNetwork(network, plan.entries, fitted, {})

    def _candidates(self, plan: Plan, seen: Samples) -> Iterator[tuple[Entry, Candidate]]:
        """Of every changed site what is decomposed on ``seen``, a few at a time where memory is bounded; attention must
        be split."""
        known, root = self.known, self.known.needed_model()
        entries = {entry.site: entry for entry in plan.changed}
        ready = {name: known.candidate(name, entry.form) for name, entry in entries.items()}
        if seen is self.seen and not any(
            each is None or isinstance(each.decomposition, Curve) for each in ready.values()
        ):
            yield from ((entry, ready[name]) for name, entry in entries.items())  # type: ignore[misc]
            return
        for run in partition([known.sites[name] for name in entries], moments_bytes, seen.memory):
            part, statistics = SiteList(tuple(run)), None
            if seen.memory is None or sum(map(moments_bytes, run)) <= seen.memory:
                statistics = calibrate(
                    root, seen.data, part, samples=seen.samples, batch_size=seen.batch_size,
                    objective=self.objective, team=seen.team,
                )  # fmt: skip
            made = decompose(root, part, known.method, statistics, lambda what, done, total: None).candidates
            for site in run:
                entry = entries[site.name]
                yield entry, next(each for each in made[site.name] if each.form is entry.form)


@torch.no_grad()
def divergence(
    original: nn.Module, model: nn.Module, batches: Sequence[Any], objective: Objective | None = None
) -> float:
    """Mean over the samples of how far the outputs of ``model`` are from those of ``original``; see
    ``Objective.divergence``."""
    objective, total, samples = objective or Teacher(), 0.0, 0
    with evaluating(original), evaluating(model), without_fused_attention():
        for batch in batches:
            found = objective.divergence(forward(model, batch), forward(original, batch), batch)
            total += float(found.sum())
            samples += len(found)
    return total / max(samples, 1)


def _telling(progress: Progress, number: int, rounds: int, what: str, done: int, total: int) -> None:
    progress(what if rounds == 1 else f"{what}, fit {number + 1} of at most {rounds}", done, total)
