"""Sweeps until they stop helping: fit, choose ranks anew from the errors that were met, fit again; the best is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, forward
from rankfold.compress.layerwise.survey import Survey
from rankfold.compress.layerwise.sweep import Samples, Swept, refittable, sweep
from rankfold.compress.methods.method import SweepMethod
from rankfold.compress.metric import output_metrics
from rankfold.compress.planning.plan import Entry, Plan, decisions
from rankfold.compress.sensitivity import change, outcome
from rankfold.costs import evaluating
from rankfold.run.progress import Progress
from rankfold.sites import Form, SiteList, split_attention, without_fused_attention

Choose = Callable[[Mapping[tuple[str, Form], Tensor]], Plan]

JUDGES = 8  # one batch in so many is not fitted to, but decides between sweeps
METRIC_SAMPLES = 1024


def fit(
    root: nn.Module,
    first: Plan,
    choose: Choose | None,
    found: SiteList,
    method: SweepMethod,
    seen: Samples,
    known: Survey,
    *,
    directory: Path | None = None,
    progress: Progress,
) -> Plan:
    """``first`` with the factors that sweeps over the network give; its ranks are those of the best sweep.

    ``choose``: the plan for other prices; None keeps the ranks, and makes one sweep. A further sweep is made with ranks
    and output metrics from the one before, up to ``method.rounds``, as long as the outputs on held-out batches come
    nearer to the original's. Cost of a sweep: see ``sweep``.
    """
    rounds = method.rounds if choose is not None else 1
    fitted, judges = _parted(seen) if rounds > 1 else (seen, ())
    rounds = rounds if judges else 1  # nothing can be held out of one batch
    plan, metrics, prices = first, known.metrics, {}
    best: tuple[float, Plan, Swept] | None = None
    lost: list[float] = []
    for number in range(rounds):
        entries = _with_refits(root, plan, found, known, method)
        place = None if directory is None else directory / f"sweep-{number}-{decisions(entries)}"
        tell = partial(_sweeping, progress, number, rounds)
        swept = sweep(root, entries, found, method, fitted, metrics, known.absorbers, directory=place, progress=tell)
        loss = divergence(root, swept.network, judges) if judges else 0.0
        lost.append(loss)
        if best is not None and not loss < best[0]:
            break
        best = loss, plan, swept
        if number + 1 == rounds or choose is None or not swept.losses:
            break
        with split_attention(swept.network):
            metrics = metrics | output_metrics(
                swept.network, fitted.data, found, METRIC_SAMPLES, fitted.batch_size, None, fitted.team
            )
        prices = dict(swept.losses)
        plan = choose(prices)
    assert best is not None
    notes = best[1].notes
    if len(lost) > 1:
        said = ", ".join(f"{loss:.4g}" for loss in lost)
        kept = lost.index(best[0]) + 1
        notes = (*notes, f"divergence of held-out outputs after each sweep: {said}; that of sweep {kept} is kept")
    _, plan, swept = best
    entries = swept.entries
    return replace(plan, entries=entries, decided=decisions(entries), factors=swept.fitted, notes=notes)


@torch.no_grad()
def divergence(original: nn.Module, model: nn.Module, batches: Any) -> float:
    """Mean over all positions of what the outputs of ``model`` lose: KL divergence in nats, or squared change of a
    single output as a fraction of its mean square."""
    total, rows = 0.0, 0
    with evaluating(original), evaluating(model), without_fused_attention():
        for batch in batches:
            then = outcome(forward(original, batch))
            total += change(outcome(forward(model, batch)), then)
            rows += len(then)
    return total / max(rows, 1)


def _sweeping(progress: Progress, number: int, rounds: int, what: str, done: int, total: int) -> None:
    progress(what if rounds == 1 else f"{what}, sweep {number + 1} of at most {rounds}", done, total)


def _parted(seen: Samples) -> tuple[Samples, tuple[Any, ...]]:
    """What is fitted to, and the batches that judge: every ``JUDGES``-th, or the last of fewer; none of one."""
    count = sum(1 for _ in islice(batches_of(seen.data, seen.batch_size, seen.samples), JUDGES))
    if count < 2:
        return seen, ()
    others = _Others(seen, min(JUDGES, count))
    judges = islice(batches_of(seen.data, seen.batch_size, seen.samples), others.every - 1, None, others.every)
    return replace(seen, data=others, samples=None), tuple(judges)


class _Others:
    """Every batch that does not judge, to be iterated any number of times."""

    def __init__(self, seen: Samples, every: int) -> None:
        self.seen, self.every = seen, every

    def __iter__(self):
        for index, batch in enumerate(batches_of(self.seen.data, self.seen.batch_size, self.seen.samples)):
            if index % self.every != self.every - 1:
                yield batch


def _with_refits(root: nn.Module, plan: Plan, found: SiteList, known: Survey, method: SweepMethod) -> tuple[Entry, ...]:
    """Layers that stay dense are fitted anew where that is free: where a bias, or a BatchNorm, takes the shift."""
    if not method.kept:
        return plan.entries
    entries = []
    with split_attention(root):
        for entry in plan.entries:
            site = found[entry.site]
            free = site.layer.has_bias or known.absorbers.get(site.name) is not None
            if entry.form is Form.KEEP and free and refittable(root, site) and site.name in known.absorbers:
                entry = replace(entry, form=Form.DENSE, note="; ".join(filter(None, (entry.note, "fitted anew"))))
            entries.append(entry)
    return tuple(entries)
