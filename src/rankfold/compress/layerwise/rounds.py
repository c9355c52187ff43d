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
from rankfold.compress.affordable import moments_bytes
from rankfold.compress.applying.apply import prepare_
from rankfold.compress.applying.layer import filled, place_
from rankfold.compress.layerwise.curves import Curve
from rankfold.compress.layerwise.layers import FittedNetwork, fit_layers, partition, refittable
from rankfold.compress.layerwise.task import Task
from rankfold.compress.methods.method import LayerwiseMethod
from rankfold.compress.metric import output_metrics
from rankfold.compress.planning.candidates import Candidate, decompose
from rankfold.compress.planning.entries import few_samples
from rankfold.compress.planning.fitted import Fitted
from rankfold.compress.planning.plan import Entry, Plan, decisions
from rankfold.compress.statistics import calibrate
from rankfold.costs import evaluating
from rankfold.objectives import Objective, Teacher
from rankfold.observe import PAGES, Samples
from rankfold.sites import Form, SiteList, opened, without_fused_attention
from rankfold.train.randomness import same_draws

if TYPE_CHECKING:
    from rankfold.compress.planning.profile import Profile

from rankfold.run.processes.memory import give_back
from rankfold.run.progress import Progress

Choose = Callable[[Mapping[tuple[str, Form], Tensor]], Plan]

METRIC_SAMPLES = 1024
_ANEW = "fitted anew, at its size, to make good what earlier layers have changed"


def fit(known: Profile, first: Plan, choose: Choose | None) -> Plan:
    """``first`` with the factors that fits give; its ranks are those of the best one on held-out samples.

    ``choose``: the plan for other prices; None keeps the ranks, and fits once. A further fit is made with ranks and
    output metrics from the one before, up to ``method.rounds``, as long as the outputs on held-out samples come nearer
    to the original's. Where the factors made in one shot are nearer there than any fit, they are kept. Where nothing
    changes, nothing is fitted. Cost of a fit: see ``fit_layers``.
    """
    if not first.changed:
        return first
    if getattr(known.needed_model(), PAGES, None) is not None:
        choose = None  # a network whose weights stay on the disk is gone through once
    give_back()  # what choosing the ranks took
    with known.calibration.team(known.needed_model().parameters()) as team:
        seen = replace(known.calibration.of(known.needed_data()), team=team)
        return _Fit(known, seen, known.objective or Teacher()).run(first, choose)


@dataclass(frozen=True, eq=False)
class _Round:
    plan: Plan
    made: FittedNetwork


@dataclass(frozen=True, eq=False)
class _Fit:
    known: Profile
    seen: Samples
    objective: Objective

    def run(self, first: Plan, choose: Choose | None) -> Plan:
        known, method = self.known, self.method
        one_shot = bool(getattr(method, "one_shot", False))
        judged = (method.rounds > 1 and choose is not None) or one_shot
        judges = self.seen.judges(known.needed_model()) if judged else ()
        if one_shot and not judges:
            return self._ended(
                self._shot(first),
                "no samples could be held back to compare the fit layer after layer with one shot (there is one "
                "batch, which cannot be split): the factors of one shot are kept",
            )
        fitted = self.seen.without_judges() if judges else self.seen
        rounds = method.rounds if choose is not None and judges else 1
        plan, metrics, best = first, known.metrics, None
        made: list[_Round] = []
        for number in range(rounds):
            made.append(_Round(plan, self._fitted(plan, fitted, judges, metrics, number, rounds)))
            last = made[-1].made
            if best is not None and not last.loss < best.made.loss:
                break
            best = made[-1]
            if number + 1 == rounds or choose is None or not last.losses:
                break
            again = output_metrics(last.network, fitted.first(METRIC_SAMPLES), known.sites, self.objective)
            metrics, plan = {**metrics, **again}, choose(dict(last.losses))
        assert best is not None
        shot = made[0].made.alone
        if shot is not None and not best.made.loss < shot:
            loss = best.made.loss
            told = (
                f"on held-out samples fitting layer after layer is no nearer to the original ({loss:.4g}) than one "
                f"shot ({shot:.4g})"
            )
            return self._ended(self._shot(first), f"{told}, which is kept")
        if len(made) < 2:
            return self._ended(best)
        said = ", ".join(f"{each.made.loss:.4g}" for each in made)
        kept = made.index(best) + 1
        return self._ended(best, f"divergence of held-out outputs after each fit: {said}; that of fit {kept} is kept")

    @property
    def method(self) -> LayerwiseMethod:
        return self.known.method  # type: ignore[return-value]  # who calls this has asked ``fits_layers``

    def _ended(self, best: _Round, *notes: str) -> Plan:
        plan, made = best.plan, best.made
        before = [note for note in plan.notes if note not in few_samples(plan.entries)]
        return replace(
            plan, entries=made.entries, decided=decisions(made.entries), statistics=None,
            factors=made.fitted if getattr(self.known.needed_model(), PAGES, None) is None else None,
            notes=(*before, *few_samples(made.entries), *made.notes, *notes),
        )  # fmt: skip

    def _fitted(
        self,
        plan: Plan,
        fitted: Samples,
        judges: Sequence[Any],
        metrics: Mapping[str, Tensor],
        number: int,
        rounds: int,
    ) -> FittedNetwork:
        known, entries = self.known, self._with_refits(plan)
        place = None if known.directory is None else known.directory / f"fit-{number}-{decisions(entries)}"
        task = Task(
            known.needed_model(), known.sites, self.method, fitted, self.objective, metrics, known.absorbers, judges,
            known.by_token, place, partial(_telling, known.tell, number, rounds),
        )  # fmt: skip
        return fit_layers(task, entries)

    def _with_refits(self, plan: Plan) -> tuple[Entry, ...]:
        """Layers that stay dense are fitted anew where that is free: where a bias, or a BatchNorm, takes the shift, or
        where there is no shift."""
        if not self.method.kept:
            return plan.entries
        entries, known, root = [], self.known, self.known.needed_model()
        with opened(root):
            for entry in plan.entries:
                site = known.sites[entry.site]
                free = site.layer.has_bias or known.absorbers.get(site.name) is not None or known.by_token
                if entry.form is Form.KEEP and free and refittable(root, site) and site.name in known.absorbers:
                    entry = replace(entry, form=Form.DENSE, note="; ".join(filter(None, (entry.note, _ANEW))))
                entries.append(entry)
        return tuple(entries)

    def _shot(self, plan: Plan) -> _Round:
        """The network with the factors of the decompositions on all samples; those of the profile, if it has them."""
        known, root = self.known, self.known.needed_model()
        network, fitted = copied(root), {}
        prepare_(network, plan.changed)
        with opened(root):
            for entry, candidate in self._candidates(plan):
                absorber = None if entry.bias else known.absorbers.get(entry.site)
                fitted[entry.site] = Fitted(candidate.decomposition.factors(entry.rank), absorber)
                new = filled(root, known.sites[entry.site], entry, fitted[entry.site])
                place_(network, [(entry.site, new, fitted[entry.site])])
        return _Round(plan, FittedNetwork(network, plan.entries, fitted, {}))

    def _candidates(self, plan: Plan) -> Iterator[tuple[Entry, Candidate]]:
        """Of every changed site what is decomposed, a few at a time in bounded memory; attention must be split."""
        known, root, seen = self.known, self.known.needed_model(), self.seen
        entries = {entry.site: entry for entry in plan.changed}
        ready = {name: known.candidate(name, entry.form) for name, entry in entries.items()}
        if not any(each is None or isinstance(each.decomposition, Curve) for each in ready.values()):
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
        for number, batch in enumerate(batches):
            with same_draws(model, number):
                now = forward(model, batch)
            with same_draws(original, number):
                found = objective.divergence(now, forward(original, batch), batch)
            total += float(found.sum())
            samples += len(found)
    return total / max(samples, 1)


def _telling(progress: Progress, number: int, rounds: int, what: str, done: int, total: int) -> None:
    progress(what if rounds == 1 else f"{what}, fit {number + 1} of at most {rounds}", done, total)
