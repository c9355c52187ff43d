"""Output metrics: how much the model's outputs move when the outputs of one layer do.

For a layer with outputs y, D = E[Σ_positions g gᵀ] with g = ∂(vᵀz)/∂y, where z are the answers of the objective, each
divided by its own deviation over the samples (class scores less their mean over the classes), and v has uncorrelated
entries of variance one: the Gauss–Newton matrix of the squared change of z. A layer error E then costs about
tr(D E H Eᵀ): the expected squared change of the outputs for one sample, as a fraction of their variance. It is the same
unit in every layer. (The Fisher metric of the softmax vanishes where a network is sure of its training samples, as it
usually is.)

The directions v of as many neighbouring rows as an answer has entries are orthogonal, so that their Σ v vᵀ is the
identity to rounding: where the outputs depend on a layer linearly, D is exact. What noise remains is estimated from two
halves of the samples, and D is drawn towards a multiple of the identity by as much as that noise is of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from warnings import warn

import torch
from torch import Tensor, nn

from rankfold.batches import cut_, forward, samples_of, size_of
from rankfold.compress.gradients import FULL, Sums, gradient_moment
from rankfold.compress.spread import Directions, Spread, measure_spread
from rankfold.costs import evaluating
from rankfold.objectives import Answer, Objective
from rankfold.observe import Samples, after, before, first_of
from rankfold.observe.passes import laid_out, layout_for, separable
from rankfold.observe.watch import with_first
from rankfold.run.progress import Progress
from rankfold.sites import Site, SiteList, opened

GRAPH = 16  # samples whose graph is in memory at once


def output_metrics(
    root: nn.Module,
    seen: Samples,
    sites: SiteList,
    objective: Objective,
    spread: Spread | None = None,
    progress: Progress | None = None,
    within: bool = True,
) -> dict[str, Tensor]:
    """D for every reducible site that gradients reach: (m, m), or (m,) above ``FULL`` outputs; or grouped.
    ``within``: of linear layers that have more outputs than that, and fewer inputs, WᵀDW (n, n), which is all of it.

    ``spread`` of the answers on these or more samples; measured in a pass of its own where it is not known. One forward
    and one backward pass in eval mode, ``GRAPH`` samples at a time. Parameters get no gradients. A model that
    cannot be differentiated gives no metrics. Leaves everything as found. With a team each process takes its share of
    the batches.
    """
    with evaluating(root), opened(root):
        spread = measure_spread(root, seen, objective) if spread is None else spread
        if not spread.names:
            return {}
        inner = wide_inside(root, sites) if within else {}
        sums = Sums(moment=partial(gradient_moment, inner))
        gathered = Gathering(root, seen, objective, (Spreading(objective, spread, sums),), progress)
        if not gathered.run(sites, spread.chunk, GRAPH):
            return {}
        return sums.metrics(seen.team, read_inside(root, sites) | inner)


def read_inside(root: nn.Module, sites: SiteList) -> dict[str, Tensor]:
    """W (m, n) of the sites whose gradients are taken at their inputs, and so are of WᵀDW."""
    return {site.name: site.matrix(root) for site in sites.reducible if site.layer.tapped == "input"}


def wide_inside(root: nn.Module, sites: SiteList) -> dict[str, Tensor]:
    """W (m, n) of the linear layers of more than ``FULL`` outputs of which WᵀDW is gathered."""
    return {site.name: site.matrix(root) for site in sites.reducible if inside(site) and site.shape[0] > FULL}


def inside(site: Site) -> bool:
    """Whether WᵀDW (n, n) can stand for D (m, m): it is all that the optimum needs, and smaller."""
    m, n = site.shape
    return (
        site.layer.convolution is None
        and not site.layer.lookup
        and not site.layer.experts
        and site.groups == 1
        and not site.layer.whole
        and m > n
    )


Taps = list[tuple[Site, Tensor]]


@contextmanager
def tapping(root: nn.Module, sites: SiteList) -> Iterator[Taps]:
    """Within the block every call of a reducible site has zeros added where its gradient is wanted (``tapped``: to its
    output or to its input); they are put into the list, which whoever runs a pass clears."""
    taps: Taps = []

    def tapped(site: Site, value: Tensor) -> Tensor:
        zero = torch.zeros_like(value, requires_grad=True)
        taps.append((site, zero))
        return value + zero

    def behind(site: Site) -> Callable[..., Tensor]:
        return lambda module, args, kwargs, output: tapped(site, output)

    def ahead(site: Site) -> Callable[..., Any]:
        return lambda module, args, kwargs: with_first(tapped(site, first_of(args, kwargs)), args, kwargs)

    found = [(site, root.get_submodule(site.name)) for site in sites.reducible]
    outputs = {module: behind(site) for site, module in found if site.layer.tapped == "output"}
    inputs = {module: ahead(site) for site, module in found if site.layer.tapped == "input"}
    with after(None, outputs), before(None, inputs):
        try:
            yield taps
        finally:
            cut_(root)


class Estimate(Protocol):
    """One scalar of the answers whose gradients are gathered."""

    def of(self, answers: Sequence[Answer], first: int) -> tuple[Tensor, float]:
        """The scalar for some samples, the first of which has number ``first``, and how much it counts."""
        ...

    def add(self, gradients: Sequence[tuple[Site, Tensor]], counted: float, half: int) -> None: ...


@dataclass
class Gathering:
    """Gradients of one or several scalars with respect to the outputs of all sites: one forward pass, and one backward
    pass for each scalar; with ``turns`` one in all, each scalar is taken of other samples."""

    root: nn.Module
    seen: Samples
    objective: Objective
    estimates: Sequence[Estimate]
    progress: Progress | None = None
    turns: bool = False

    def run(self, sites: SiteList, size: int, graph: int) -> bool:
        """Go over the samples, ``size`` of one half, then as many of the other, ``graph`` at a time; whether the model
        can be differentiated."""
        root, seen, earlier, done, checked = self.root, self.seen, 0, 0, False
        layout = layout_for(root, seen.data)
        with tapping(root, sites) as taps:
            for index, batch in seen.batches():
                count = size_of(batch)
                if not checked and count > min(size, graph):
                    checked = True
                    if not separable(root, batch):
                        size = graph = 1 << 62
                parts = chunks(batch, count, earlier, size) if size < count else iter([(earlier, batch)])
                for first, group in parts if index in seen else ():
                    number = first // size if size < count else index
                    for start, chunk in chunks(group, size_of(group), 0, graph):
                        taps.clear()
                        if not self._gradients(laid_out(chunk, layout), chunk, first + start, number, taps):
                            return False
                    done += size_of(group)
                    if self.progress is not None:
                        self.progress("weighing", done, seen.samples or done)
                earlier += count
        return True

    def _gradients(self, given: Any, chunk: Any, first: int, number: int, taps: Taps) -> bool:
        try:
            return self._taken(given, chunk, first, number, taps)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:  # of code that writes in place, or has no derivative
            words = " ".join(str(error).split())
            warn(
                f"this network cannot be differentiated ({words[:120]}{'…' * (len(words) > 120)}): its layers are "
                "compared by truncating each one by itself, in place of by gradients",
                stacklevel=2,
            )
            return False

    def _taken(self, given: Any, chunk: Any, first: int, number: int, taps: Taps) -> bool:
        with torch.enable_grad():
            answers = self.objective.answers(forward(self.root, given), chunk)
            if not taps or not any(answer.values.requires_grad for answer in answers):
                return False
            differentiate(self.estimates, answers, first, number, taps, self.turns)
        return True


def differentiate(
    estimates: Sequence[Estimate], answers: Sequence[Answer], first: int, number: int, taps: Taps, turns: bool
) -> None:
    """Add the gradients of all estimates, or with ``turns`` of the next one, for a part of the samples: of all parts it
    has this ``number``, and its first sample is number ``first``."""
    every = len(estimates) if turns else 1
    chosen = (estimates[number % every],) if turns else estimates
    for index, estimate in enumerate(chosen, 1):
        total, counted = estimate.of(answers, first)
        again, tapped = index < len(chosen), tuple(taps)  # a checkpoint calls its layers once more while it goes back
        found = torch.autograd.grad(total, [zero for _, zero in tapped], allow_unused=True, retain_graph=again)
        pairs = [(site, g) for (site, _), g in zip(tapped, found, strict=True) if g is not None]
        estimate.add(pairs, counted, number // every % 2)


@dataclass
class Spreading:
    """∂(vᵀz)/∂y: the squared change of the outputs over their variance, for one sample."""

    objective: Objective
    spread: Spread
    sums: Sums
    directions: Directions = field(default_factory=Directions)

    def of(self, answers: Sequence[Answer], first: int) -> tuple[Tensor, float]:
        total = torch.zeros((), device=answers[0].values.device)
        for index, (answer, scale) in enumerate(zip(self.spread.ordered(answers), self.spread.scales, strict=True)):
            z = answer.centred
            total = total + scale * (z * self.directions.of(z, index, first)).sum()
        return total, len(answers[0].values)

    def add(self, gradients: Sequence[tuple[Site, Tensor]], counted: float, half: int) -> None:
        self.sums.add(gradients, counted, half)


def chunks(batch: Any, count: int, before: int, size: int) -> Iterator[tuple[int, Any]]:
    """(number of its first sample, part of a batch); parts end where a multiple of ``size`` samples is complete."""
    start = 0
    while start < count:
        end = min(count, start + size - (before + start) % size)
        yield before + start, batch if end - start == count else samples_of(batch, count, slice(start, end))
        start = end
