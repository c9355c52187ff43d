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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from warnings import warn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankfold.batches import forward, samples_of, size_of
from rankfold.costs import evaluating
from rankfold.objectives import Answer, Objective, ObjectiveError
from rankfold.observe import Samples, after, before, first_of
from rankfold.observe.passes import laid_out, layout_for, separable
from rankfold.observe.watch import with_first
from rankfold.run.processes.team import Team
from rankfold.run.progress import Progress
from rankfold.sites import Site, SiteList, opened

FULL = 1024  # outputs up to which the whole matrix is kept; above, its diagonal
ORTHOGONAL = 512  # entries of an answer up to which directions are made orthogonal: a table of as many squared
CHUNK = 32  # samples of one half, then as many of the other
GRAPH = 16  # samples whose graph is in memory at once
SEED = 0


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
        yield taps


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
        except RuntimeError as error:  # of code that writes in place, or has no derivative
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
        again = index < len(chosen)
        found = torch.autograd.grad(total, [zero for _, zero in taps], allow_unused=True, retain_graph=again)
        pairs = [(site, g) for (site, _), g in zip(taps, found, strict=True) if g is not None]
        estimate.add(pairs, counted, number // every % 2)


@dataclass
class Spreading:
    """∂(vᵀz)/∂y: the squared change of the outputs over their variance, for one sample."""

    objective: Objective
    spread: Spread
    sums: Sums
    directions: Directions = field(default_factory=lambda: Directions())  # which is defined below

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


@dataclass
class Spread:
    """How far each answer deviates from its mean over the samples, summed as the samples come.

    ``names`` of the answers in an order that does not depend on how the model hands them out: by their shapes, then by
    their values on the first samples.
    """

    names: list[str] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    totals: list[Tensor] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    samples: int = 0
    row_shape: tuple[int, int] = (1, 1)  # rows of a sample and entries of a row, of the first answer

    def ordered(self, answers: Sequence[Answer]) -> list[Answer]:
        known = {answer.name: answer for answer in answers}
        try:
            return [known[name] for name in self.names]
        except KeyError as error:
            raise ObjectiveError(
                f"the model's output had {error} in the first batch and does not have it in another"
            ) from None

    def add(self, answers: Sequence[Answer], samples: int) -> None:
        if not self.names:
            first = sorted(answers, key=lambda a: (tuple(a.values.shape[1:]), float(a.values.double().sum())))
            self.names = [answer.name for answer in first]
            self.energies, self.rows = [0.0] * len(first), [0] * len(first)
            self.totals = [torch.zeros(a.values.shape[-1], dtype=torch.float64) for a in first]
            shape = first[0].values.shape
            self.row_shape = (shape[1:-1].numel(), shape[-1])
        for index, answer in enumerate(self.ordered(answers)):
            rows = answer.centred.detach().reshape(-1, answer.values.shape[-1])
            self.energies[index] += float(rows.square().sum(dtype=torch.float64))
            self.totals[index] = self.totals[index] + rows.sum(0, dtype=torch.float64).cpu()
            self.rows[index] += len(rows) if answer.counted is None else int(answer.counted.sum())
        self.samples += samples

    def joined(self, team: Team) -> Spread:
        """That of all processes."""
        if team.size == 1:
            return self
        shares: list[Any] = [None] * team.size
        dist.all_gather_object(shares, self)
        first, *others = [share for share in shares if share.names] or [self]
        for other in others:
            for index in range(len(first.names)):
                first.energies[index] += other.energies[index]
                first.totals[index] = first.totals[index] + other.totals[index]
                first.rows[index] += other.rows[index]
            first.samples += other.samples
        return first

    @property
    def scales(self) -> list[float]:
        """For each answer 1 / its deviation for one sample, over the root of their number; 0 for one that is zero."""
        found = []
        for energy, total, rows in zip(self.energies, self.totals, self.rows, strict=True):
            varies = energy - float(total.square().sum()) / max(rows, 1)
            varies = varies if varies > 1e-9 * energy else energy
            found.append((self.samples / varies / len(self.names)) ** 0.5 if varies > 0 else 0.0)
        return found

    @property
    def chunk(self) -> int:
        """Samples at a time: ``CHUNK``, or near it a multiple of the directions that are orthogonal to one another."""
        rows, entries = self.row_shape
        return entries * max(1, round(CHUNK / entries)) if rows == 1 and entries <= 4 * CHUNK else CHUNK


@torch.no_grad()
def measure_spread(root: nn.Module, seen: Samples, objective: Objective) -> Spread:
    """One pass in eval mode. Empty where the model's outputs cannot be compared."""
    spread = Spread()
    for _, batch in seen.mine():
        try:
            spread.add(objective.answers(forward(root, batch), batch), size_of(batch))
        except ObjectiveError:
            return Spread()
    return spread.joined(seen.team)


class Directions:
    """Random directions of variance one for numbered rows; of as many neighbours as a row has entries orthogonal."""

    def __init__(self, offset: int = 0) -> None:
        self.tables: dict[tuple[int, int], Tensor] = {}
        self.offset = offset  # other directions for another number

    def of(self, z: Tensor, answer: int, start: int) -> Tensor:
        """A direction for every row of ``z`` (N, …, C), whose first sample has number ``start``."""
        size, answer = z.shape[-1], answer + self.offset
        count = z.numel() // max(size, 1)
        first = start * z.shape[1:-1].numel()
        if size > ORTHOGONAL:
            drawn = torch.randn(count, size, generator=generator_of(answer, first))
        else:
            groups = range(first // size, (first + count - 1) // size + 1)
            table = torch.cat([self._group(size, answer, group) for group in groups])
            drawn = table[first - groups[0] * size :][:count]
        return drawn.reshape(z.shape).to(z)

    def _group(self, size: int, answer: int, group: int) -> Tensor:
        key = (size, answer)
        if key not in self.tables:
            square = torch.randn(size, size, generator=generator_of(answer, -1), dtype=torch.float64)
            self.tables[key] = (torch.linalg.qr(square)[0] * size**0.5).float()
        generator = generator_of(answer, group)
        signs = torch.randint(0, 2, (2, size), generator=generator) * 2.0 - 1
        order = torch.randperm(size, generator=generator)
        return self.tables[key][order] * signs[0] * signs[1].unsqueeze(1)


def generator_of(answer: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((SEED + answer) * 1_000_003 + number + 1)


@dataclass
class Sums:
    """Σ g gᵀ of each site, or what ``moment`` makes of its gradients, in two halves of the chunks; formed in float64,
    kept as exact as the gradients are (at least float32): of a large model they are several times its weights."""

    halves: tuple[dict[str, Tensor], dict[str, Tensor]] = field(default_factory=lambda: ({}, {}))
    samples: list[float] = field(default_factory=lambda: [0, 0])
    moment: Callable[[Site, Tensor], Tensor] = field(default_factory=lambda: partial(gradient_moment, {}))

    def add(self, gradients: Sequence[tuple[Site, Tensor]], samples: float, half: int) -> None:
        mine = self.halves[half]
        self.samples[half] += samples
        for site, gradient in gradients:
            moment = self.moment(site, gradient).to(torch.promote_types(gradient.dtype, torch.float32))
            mine[site.name] = mine[site.name] + moment if site.name in mine else moment

    def metrics(self, team: Team, towards: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """D of each site, drawn towards a multiple of the identity, or of WᵀW for W in ``towards``; the sums are let go
        of one by one, as all of them take several times the memory of the result."""
        halves, samples = self.halves, self.samples
        if team.size > 1:
            shares: list[Any] = [None] * team.size
            dist.all_gather_object(shares, (halves, samples))
            halves = tuple(_summed([share[0][i] for share in shares]) for i in (0, 1))  # type: ignore[assignment]
            samples = [sum(share[1][i] for share in shares) for i in (0, 1)]
        found = {}
        for name in dict.fromkeys((*halves[0], *halves[1])):
            counts = [samples[i] for i in (0, 1) if name in halves[i] and samples[i]]
            sums = [half.pop(name, None) for half in halves]
            means = [total / n for total, n in zip(sums, samples, strict=True) if total is not None and n]
            if all(bool(mean.isfinite().all()) for mean in means):
                weight = (towards or {}).get(name)
                found[name] = shrunk(means, counts, None if weight is None else weight.double().mT @ weight.double())
        return found


def _summed(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part[name] for part in parts if name in part) for name in names}  # type: ignore[misc]


def gradient_moment(inner: Mapping[str, Tensor], site: Site, gradient: Tensor) -> Tensor:
    """Σ g gᵀ over the rows of gradients, or its diagonal above ``FULL`` outputs; Σ (g W)ᵀ(g W) for W in ``inner``."""
    rows = site.layer.output_rows(gradient).double()
    if site.name in inner:
        rows = rows @ inner[site.name].to(rows)
    return rows.mT @ rows if rows.shape[-1] <= FULL or site.layer.tapped == "input" else rows.square().sum(-2)


def shrunk(means: Sequence[Tensor], samples: Sequence[float], towards: Tensor | None = None) -> Tensor:
    """The mean of two estimates (…, m, m), or diagonals (m,), drawn towards μI by the share of noise in its structure.

    What both halves say beyond a multiple of the identity is signal, what they differ in is noise: with A, B the halves
    less μI, 1 − λ = ⟨A, B⟩ / (⟨A, B⟩ + ‖A − B‖²/4), the λ that one half would choose for the other in least squares,
    at twice the samples. ``towards``: what WᵀDW is drawn to in place of the identity, WᵀW.
    """
    kept_as, means = means[0].dtype, [mean.double() for mean in means]
    whole = sum(m * n for m, n in zip(means, samples, strict=True)) / sum(samples)
    assert isinstance(whole, Tensor)
    if len(means) < 2:
        return whole.to(kept_as)
    if towards is not None:
        identity = towards.to(whole)
        level = whole.trace() / identity.trace().clamp_min(torch.finfo(whole.dtype).tiny)
    elif whole.dim() == 1:
        identity, level = torch.ones_like(whole), whole.mean()
    else:
        identity = torch.eye(whole.shape[-1], dtype=whole.dtype, device=whole.device)
        level = whole.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    a, b = (mean - level * identity for mean in means)
    signal, noise = float((a * b).sum()), float((a - b).square().sum()) / 4
    kept = signal / (signal + noise) if signal > 0 else 0.0
    return (level * identity + kept * (whole - level * identity)).to(kept_as)
