"""Coherence: what a layer's error costs where the positions of a sample are taken together.

The price tr(D E H Eᵀ) of an error E in a weight adds up positions (pixels, tokens) as if what goes wrong at one had
nothing to do with what goes wrong at another, and gradients as if they had nothing to do with inputs. To second order
the cost is

    E (Σ_positions g · δ)²,     δ = E x + shift: how far the layer's output moves,  g = ∂(vᵀz)/∂y as in the metric

a square of a sum over the positions of a sample. Behind a mean over positions the errors of all of them point one way
and the cost is many times the price; where they cancel it is a fraction of it. The ratio of the two, the coherence of a
site at a rank, is measured on a few samples: one forward pass, a backward pass for each draw of v, and the layer in
place of the old one run on what that was given. Nothing is stored of a gradient but its product with δ.

Layers of a single position keep their price: there the ratio takes out the damping of the metric alone, and whoever
chooses ranks without it loses where much is lost (two linear layers around a tanh at half of their parameters, four
seeds: .28 to .43 of the outputs' variance in place of .23 to .31).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankfold.batches import forward, size_of
from rankfold.compress.effect import spread_ranks
from rankfold.compress.gradients import Sums
from rankfold.compress.metric import GRAPH, Estimate, Gathering, Spreading
from rankfold.compress.planning.candidates import Candidate
from rankfold.compress.ratios import Point, ratios
from rankfold.compress.spread import Directions, Spread, measure_spread
from rankfold.compress.tokens import NUMBERS
from rankfold.costs import evaluating
from rankfold.objectives import Answer, Objective
from rankfold.observe import Samples, after
from rankfold.observe.passes import Place, apart
from rankfold.run.progress import Progress
from rankfold.sites import Form, Joint, Site, SiteList

SAMPLES, DRAWS = 128, 2  # on which it is measured, and times that v is drawn for each
SEVERAL = 4  # times fewer samples with twice the draws, where a sample has several answers: these differ less
RANKS = 4  # of one decomposition at which it is measured
NARROW = 12  # ranks up to which all are measured
HELD = 1 << 26  # bytes of new layers in memory at once, or as many as the model has; more take several passes
SMALL = 0.005  # error of the last of them, or above

Prices = Mapping[tuple[str, Form], Tensor]


def coherences(
    root: nn.Module,
    seen: Samples,
    candidates: Sequence[Candidate],
    prices: Prices,
    objective: Objective,
    *,
    spread: Spread | None = None,
    progress: Progress | None = None,
) -> dict[tuple[str, Form], Tensor]:
    """For each candidate (k + 1,) factors by which its price at rank 0..k is to be multiplied; those that cannot be
    measured are left out. The model must be ``opened``.

    ``prices`` are tr(D E H Eᵀ) in squared change of the answers, whose ``spread`` is measured where it is not known. A
    group of sites has that of its members, weighed by what each costs. Cost: on up to ``SAMPLES`` samples one forward
    pass, ``DRAWS`` backward passes, and ``RANKS`` runs of each new layer.
    """
    spread = measure_spread(root, seen.first(SAMPLES), objective) if spread is None else spread
    several = bool(spread.names) and spread.row_shape[0] > 1
    few, draws = seen.first(SAMPLES // SEVERAL if several else SAMPLES), 2 * DRAWS if several else DRAWS
    first: dict[_Key, Candidate] = {}
    for candidate in candidates:
        if not isinstance(candidate.site, Joint) and _measurable(root, candidate.site):
            first.setdefault(_key(candidate), candidate)  # forms that share a decomposition share what it costs
    points = costs_of(root, few, list(first.values()), objective, spread=spread, draws=draws, progress=progress)
    known = {
        key: ratios(first[key].relative_errors, prices[first[key].site.name, first[key].form], each)
        for key, each in points.items()
    }
    found = {(c.site.name, c.form): known[_key(c)] for c in candidates if _key(c) in known}
    return found | dict(_of_groups(candidates, prices, found))


_Key = tuple[str, Form, Form | None]


def _key(candidate: Candidate) -> _Key:
    """What a decomposition is of; of a form that rounds its factors it is another one."""
    form = candidate.form
    base = form if form.over_base else form.decomposed
    return candidate.site.name, base, None if form.exact else form


def _measurable(root: nn.Module, site: Site) -> bool:
    """Whether a new layer can be run in place of the old one; weights of one byte multiply nothing by themselves."""
    if site.layer.tapped != "output" or site.layer.experts:
        return False
    return site.layer.weight(root.get_submodule(site.name)).element_size() > 1


def _of_groups(
    candidates: Sequence[Candidate], prices: Prices, known: Mapping[tuple[str, Form], Tensor]
) -> Iterator[tuple[tuple[str, Form], Tensor]]:
    of_site = {c.site.name: c for c in reversed(candidates) if (c.site.name, c.form) in known}
    for candidate in candidates:
        members = getattr(candidate.site, "names", ()) if isinstance(candidate.site, Joint) else ()
        if not members or not all(name in of_site for name in members):
            continue
        at, above, below = candidate.relative_errors.numpy(), 0.0, 1e-300
        for name in members:
            member = of_site[name]
            errors, own = member.relative_errors.numpy()[::-1], prices[name, member.form].numpy()[::-1]
            ratio = known[name, member.form].numpy()[::-1]
            above = above + np.interp(at, errors, own * ratio)
            below = below + np.interp(at, errors, own)
        yield (candidate.site.name, candidate.form), torch.from_numpy(np.asarray(above / below))


def costs_of(
    root: nn.Module,
    seen: Samples,
    candidates: Sequence[Candidate],
    objective: Objective,
    *,
    spread: Spread | None = None,
    ranks: Callable[[Candidate], Sequence[int]] | None = None,
    draws: int = DRAWS,
    progress: Progress | None = None,
) -> dict[_Key, list[Point]]:
    """By what each candidate's decomposition is of, what its error costs at some ranks (``ranks``; by default ``RANKS``
    of them), to second order and without any assumption on positions or inputs. Empty where the network cannot be
    differentiated or its outputs cannot be compared. Where the new layers take more memory than the model, and than
    ``HELD``, they are tried in several passes."""
    first = next(islice(_parts(seen), 1), None)
    candidates = list({_key(candidate): candidate for candidate in reversed(candidates)}.values())
    if first is not None and ranks is None:
        spread_out = _several(root, [candidate.site for candidate in candidates], first)
        candidates = [candidate for candidate in candidates if candidate.site.name in spread_out]
    if first is None or not candidates:
        return {}
    with evaluating(root), torch.no_grad():
        spread = measure_spread(root, seen, objective) if spread is None else spread
        names = {candidate.site.name for candidate in candidates}
        told = apart(root, first, {name: root.get_submodule(name) for name in names})
    if not spread.names:
        return {}
    rows, entries = spread.row_shape
    graph = max(1, min(GRAPH, NUMBERS // max(rows * entries, 1)))
    chosen = [(candidate, rank) for candidate in candidates for rank in (ranks or _spread)(candidate)]
    found: dict[_Key, list[Point]] = {}
    for part in _affordable(root, chosen):
        trials: dict[str, list[_Trial]] = {}
        for candidate, rank in part:
            new = layer_of(root, candidate, rank, draft=True)
            trials.setdefault(candidate.site.name, []).append(_Trial(_key(candidate), rank, new))
        shared = _Shared(trials, told.places if told.outputs else {})
        drawn = [_Drawn(shared, _scalar(objective, spread, draw), draw + 1 == draws) for draw in range(draws)]
        sites = SiteList(tuple({candidate.site.name: candidate.site for candidate, _ in part}.values()))
        gathered = Gathering(root, seen, objective, drawn, progress)
        with evaluating(root), shared.watching(root, sites):
            if not gathered.run(sites, graph, graph):
                return {}
        for key, points in shared.points(seen, float(draws)).items():
            found.setdefault(key, []).extend(points)
    return found


@torch.no_grad()
def _several(root: nn.Module, sites: Sequence[Site], batch: Any) -> set[str]:
    """The sites that have several positions in a sample; the others' belong to no other. One forward pass."""
    values: dict[str, int] = {}

    def watch(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            values[site.name] = values.get(site.name, 0) + output.numel()

        return hook

    with evaluating(root), after(None, {root.get_submodule(site.name): watch(site) for site in sites}):
        forward(root, batch)
    size = size_of(batch)
    return {site.name for site in sites if values.get(site.name, 0) > site.shape[0] * site.groups * size}


def _affordable(root: nn.Module, chosen: Sequence[tuple[Candidate, int]]) -> Iterator[list[tuple[Candidate, int]]]:
    """The new layers in groups that take no more memory than the model, or than ``HELD``."""
    limit = max(HELD, sum(p.numel() * p.element_size() for p in root.parameters()))
    part: list[tuple[Candidate, int]] = []
    taken = 0
    for candidate, rank in chosen:
        layer = candidate.site.layer
        size = (
            layer.params(candidate.form, rank, True)
            * layer.weight(root.get_submodule(candidate.site.name)).element_size()
        )
        if part and taken + size > limit:
            yield part
            part, taken = [], 0
        part.append((candidate, rank))
        taken += size
    if part:
        yield part


def _spread(candidate: Candidate) -> Sequence[int]:
    """Of a layer of few ranks, which costs little, as good as all: from one to the next much can change."""
    count = RANKS if len(candidate.ranks) > NARROW else NARROW
    return spread_ranks(candidate.relative_errors.numpy(), candidate.ranks, count, SMALL)


def _parts(seen: Samples) -> Iterator[Any]:
    return (batch for _, batch in replace(seen, batch_size=GRAPH).batches())


def _scalar(objective: Objective, spread: Spread, draw: int) -> Estimate:
    return Spreading(objective, spread, Sums(), Directions(offset=(draw + 1) << 20))


@dataclass(frozen=True, eq=False)
class _Trial:
    made: _Key
    rank: int
    layer: nn.Module
    squares: list[Tensor] = field(default_factory=list)  # of the samples of one chunk, summed over the draws


@dataclass
class _Shared:
    """What all draws of one forward pass share. ``places``: of the samples in what a layer gives, where these are apart
    and that is known."""

    trials: Mapping[str, Sequence[_Trial]]
    places: Mapping[str, Place]
    calls: dict[str, list[tuple[Any, Any, Tensor]]] = field(default_factory=dict)
    gradients: list[dict[str, list[Tensor]]] = field(default_factory=list)  # of each draw
    samples: int = 0
    counted: float = 0.0

    @contextmanager
    def watching(self, root: nn.Module, sites: SiteList) -> Iterator[None]:
        def watch(site: Site) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
                if torch.is_grad_enabled():  # and not one of the passes that try layouts and samples
                    self.calls.setdefault(site.name, []).append((args, kwargs, output.detach()))

            return hook

        with after(None, {root.get_submodule(site.name): watch(site) for site in sites}):
            yield

    @torch.no_grad()
    def settle(self) -> None:
        """Contract the gradients of every draw with what each new layer changes, and forget them."""
        for name, calls in self.calls.items():
            draws = [each[name] for each in self.gradients if len(each.get(name, ())) == len(calls)]
            if not draws:
                continue
            for trial in self.trials.get(name, ()):
                sums: list[Any] = [0.0] * len(draws)
                for index, (args, kwargs, output) in enumerate(calls):
                    moved = trial.layer(*args, **kwargs) - output
                    for draw, found in enumerate(draws):
                        sums[draw] = sums[draw] + self._summed(found[index].to(moved), moved, self.places.get(name))
                trial.squares.append(torch.stack([each.square() for each in sums]).sum(0).cpu())
        self.calls.clear()
        self.gradients.clear()

    def _summed(self, gradient: Tensor, moved: Tensor, place: Place | None) -> Tensor:
        """Of each sample the sum over its positions; of all samples together, where they lie in one another: as
        directions of different samples are independent, squares of the two are the same in expectation."""
        precise = torch.promote_types(moved.dtype, torch.float32)
        product = gradient.to(precise) * moved.to(precise)
        blocks = 0 if place is None else place.blocks(moved.shape, self.samples)
        if blocks != 1:
            blocks, groups = (blocks, self.samples) if blocks else (1, 1)
            return product.reshape(blocks, groups, -1).sum((0, 2), dtype=torch.float64)
        inner = tuple(range(1, product.dim()))  # summed where they lie: no copy, in whatever order of axes
        rows = product.sum(inner, dtype=torch.float64) if inner else product.double()
        return rows.reshape(self.samples, -1).sum(1)

    def points(self, seen: Samples, divisor: float) -> dict[_Key, list[Point]]:
        """From all processes."""
        mine = [(t.made, t.rank, t.squares) for name in sorted(self.trials) for t in self.trials[name]]
        counted, squares = self.counted, [each for _, _, each in mine]
        if seen.team.size > 1:  # every process has the same trials in the same order
            shares: list[Any] = [None] * seen.team.size
            dist.all_gather_object(shares, (squares, counted))
            counted = sum(share[1] for share in shares)
            squares = [[part for share in shares for part in share[0][index]] for index in range(len(mine))]
        found: dict[_Key, list[Point]] = {}
        for (made, rank, _), parts in zip(mine, squares, strict=True):
            if not parts:
                continue
            every = torch.cat(parts)
            total, count = float(every.sum()), len(every)
            spread = float(every.std()) * count**0.5 / total if count > 1 and total > 0 else 1.0
            found.setdefault(made, []).append(Point(rank, total / (divisor * counted), spread))
        return found


@dataclass
class _Drawn:
    """One draw of v: the scalar of ``inner``, whose gradients wait for the last draw of the same forward pass."""

    shared: _Shared
    inner: Estimate
    last: bool

    def of(self, answers: Sequence[Answer], first: int) -> tuple[Tensor, float]:
        self.shared.samples = len(answers[0].values)
        return self.inner.of(answers, first)

    def add(self, gradients: Sequence[tuple[Site, Tensor]], counted: float, half: int) -> None:
        found: dict[str, list[Tensor]] = {}
        for site, gradient in gradients:
            found.setdefault(site.name, []).append(gradient)
        self.shared.gradients.append(found)
        if self.last:
            self.shared.counted += counted
            self.shared.settle()


@torch.no_grad()
def layer_of(root: nn.Module, candidate: Candidate, rank: int, *, draft: bool = False) -> nn.Module:
    """The new layer in eval mode, with the bias that a layer of its own or a BatchNorm after it would carry; the model
    must be ``opened``. ``draft``: with the factors that ``errors`` are of, where a method would go on to improve them.
    """
    site, made = candidate.site, candidate.decomposition
    old: Any = root.get_submodule(site.name)
    factors = getattr(made, "draft", made.factors)(rank) if draft else made.factors(rank)
    new: Any = site.layer.skeleton(old, candidate.form, rank, bias=site.layer.takes_bias)
    site.layer.write_(new, candidate.form, factors)
    bias: Tensor | None = new.bias
    if bias is not None:
        start = old.bias.detach().double() if site.layer.has_bias else torch.zeros_like(bias, dtype=torch.float64)
        bias.data.copy_(start if factors.shift is None else start + factors.shift.to(start))
    return new.eval()
