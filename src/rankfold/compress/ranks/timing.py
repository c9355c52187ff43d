"""What every site takes by the clock, in any form at any rank: from the machine's table, or measured in the network."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankfold.compress.planning.candidates import Candidate
from rankfold.costs import Example, evaluating, trace
from rankfold.costs.curve import Curve, curves
from rankfold.costs.decoding import Phase, phased, tokens_in
from rankfold.costs.machine import arithmetic
from rankfold.costs.table import LatencyTable, Spot
from rankfold.run.progress import Progress
from rankfold.sites import Call, Form, LinearLayer, Site, SiteList, replace_

Timer = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[Any, float]]
Variant = tuple[Form, int]

ALIKE = 2  # of layers that are alike, so many are timed
SECONDS, TURNS = 10.0, 30  # after which no further turn begins, three at least


def timed(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, float]:
    """(output, seconds) of one call, waiting for an accelerator where there is one."""
    wait = torch.cuda.synchronize if any(p.is_cuda for p in layer.parameters()) else (lambda: None)
    wait()
    start = time.perf_counter()
    output = layer(*args, **kwargs)
    wait()
    return output, time.perf_counter() - start


@dataclass(frozen=True)
class Place:
    """One site as the clock sees it; sites alike have the same. ``spot``: of one call, of which there are ``count``."""

    spot: Spot
    count: int
    forms: tuple[tuple[Form, bool], ...]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of all calls of a site in one forward pass, in any form at any rank: ``timing(site, form, rank)``.

    Sites that are kept whatever happens count as 0. ``said``: where the times come from, in words.
    """

    places: Mapping[str, Place]
    curves: Mapping[Place, Mapping[Form, Curve]]
    said: str = ""

    def __call__(self, site: Site, form: Form, rank: int) -> float:
        place = self.places.get(site.name)
        return 0.0 if place is None else self.curves[place][form].at(rank)


def site_timing(
    root: nn.Module,
    sites: SiteList,
    candidates: Mapping[str, Sequence[Candidate]],
    example: Example,
    batch: int,
    tell: Progress,
    *,
    phase: Phase = "forward",
    table: LatencyTable | None = None,
    timer: Timer = timed,
) -> Timing:
    """Milliseconds of all calls of a site in one forward pass of ``batch`` samples, in any form at any rank.

    What ``table`` knows, of the very layer or by its law of linear ones, is taken from there; what had to be timed is
    noted in it. Every other candidate is timed where it stands, with what the layers around it leave in caches and
    memory: the network runs with all sites dense, then all at their lowest rank, and so on over about ten ranks, again
    and again. Layers that are alike share their times, and ``ALIKE`` of them are timed. Between those ranks the time is
    interpolated, and it never falls as the rank grows. A rank that is not measurably faster than the dense layer costs
    at least as much, so that keeping wins. ``phase``: of a language model, reading the prompt or one token after it.

    Attention must be split; ``root`` is left as found. ``timer``: output and seconds of one call of a layer.
    Cost: nothing where the table knows all; else four forward passes for each of those ranks, or more within ten
    seconds; memory: the factors of ``ALIKE`` sites of each kind at all of them.
    """
    calls = trace(root, tokens_in(example, phase), sites)[1]
    todo = [site for site in sites if candidates.get(site.name) and calls.get(site.name)]
    places = {s.name: _place(root, s, candidates[s.name], calls[s.name], batch, example.samples) for s in todo}
    ranks = {site.name: _ranks(site, candidates[site.name], calls[site.name]) for site in todo}
    known, said = _tabled(table, todo, places, ranks)
    switches: dict[str, Switch] = {}
    for site in todo:
        alike = sum(places[name] == places[site.name] for name in switches)
        if places[site.name] not in known and alike < ALIKE:
            variants = _variants(root.get_submodule(site.name), site, candidates[site.name], ranks[site.name])
            switches[site.name] = Switch(root.get_submodule(site.name), variants, timer)
    if switches:
        device = next((p.device for p in root.parameters()), torch.device("cpu"))
        module, given = phased(root, example.to(device), phase, batch)
        with evaluating(root), _in_place(root, switches):
            _run(module, list(switches.values()), given.to(device), tell)
        known |= _noted(table, places, switches)
    return Timing(places, known, said)


def _tabled(
    table: LatencyTable | None,
    todo: Sequence[Site],
    places: Mapping[str, Place],
    ranks: Mapping[str, Mapping[Form, Sequence[int]]],
) -> tuple[dict[Place, Mapping[Form, Curve]], str]:
    """What the table knows of these sites, and a sentence on it."""
    known: dict[Place, Mapping[Form, Curve]] = {}
    if table is None:
        return known, ""
    exactly = 0
    for place, site in {places[site.name]: site for site in todo}.items():
        forms = ranks[site.name]
        found = table.exact(place.spot, list(forms))
        exactly += found is not None
        found = found or table.by_law(place.spot, site.layer, forms)
        if found is not None:
            known[place] = {form: curve.times_calls(place.count) for form, curve in found.items()}
    return known, _said(table, len(set(places.values())), len(known), exactly)


def _noted(
    table: LatencyTable | None, places: Mapping[str, Place], switches: Mapping[str, Switch]
) -> dict[Place, Mapping[Form, Curve]]:
    """The curves of what was timed, of layers alike together; they are kept in the table where there is one."""
    pooled: dict[Place, dict[Variant, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, switch in switches.items():
        for variant, seconds in switch.seconds.items():
            pooled[places[name]][variant] += seconds
    found: dict[Place, Mapping[Form, Curve]] = {place: _curves(seconds) for place, seconds in pooled.items()}
    if table is not None:
        for place, forms in found.items():
            table.add(place.spot, {form: curve.times_calls(1 / place.count) for form, curve in forms.items()})
        try:
            table.save()
        except (OSError, ValueError) as error:  # a place where nothing can be written, or one that another job holds
            warnings.warn(f"the times of layers could not be kept for the next plan: {error}", stacklevel=2)
    return found


def _said(table: LatencyTable, kinds: int, known: int, exactly: int) -> str:
    if not known:
        return ""
    laws = [law for law in table.laws.values() if law is not None]
    off = f", off by {100 * max(law.error for law in laws):.0f} % in the median" if laws else ""
    by_law = f", {known - exactly} by its law{off}" if known > exactly else ""
    return f"layer times of {known} of {kinds} kinds of layer from {table.file}{by_law}"


def _place(
    root: nn.Module, site: Site, found: Sequence[Candidate], calls: Sequence[Call], batch: int, samples: int
) -> Place:
    """Where a site stands. Linear layers are told by their size and number of rows, others by how they print and are
    called."""
    module, how = root.get_submodule(site.name), arithmetic(site.weight(root))
    forms = tuple((each.form, each.bias) for each in found)
    rows = {prod(call.output) // site.shape[0] * batch // samples for call in calls}
    plain = isinstance(site.layer, LinearLayer) and type(site.layer) is LinearLayer and len(rows) == 1
    if plain and not site.layer.lookup and not site.layer.experts:
        return Place(Spot.linear(site.kind, site.shape, rows.pop(), how), len(calls), forms)
    device = str(site.weight(root).device)
    return Place(Spot(" ".join(repr(module).split()), f"{[*calls]} of {samples}, {batch}, {device}", how), 1, forms)


def _ranks(site: Site, found: Sequence[Candidate], calls: Sequence[Call]) -> dict[Form, list[int]]:
    """The ranks to time of each form: those with at most the FLOPs of the dense layer; over a base, which has these
    alone and is read faster, all."""
    layer, ranks = site.layer, {}
    dense = layer.flops(Form.KEEP, 0, calls)
    for candidate in found:
        over_base = candidate.form.over_base
        timed = [r for r in candidate.ranks if over_base or layer.flops(candidate.form, r, calls) <= dense]
        ranks[candidate.form] = grid(max(timed, default=1), candidate.ranks)
    return ranks


class Switch(nn.Module):
    """Stands where a site stands; one of its layers runs, and the seconds of each are kept."""

    def __init__(self, dense: nn.Module, variants: Mapping[Variant, nn.Module], timer: Timer) -> None:
        super().__init__()
        self.names: list[Variant] = [(Form.KEEP, 0), *variants]
        self.layers: tuple[Any, ...] = (dense, *variants.values())  # a tuple: they are no submodules
        self.timer, self.now, self.spent = timer, 0, 0.0
        self.seconds: dict[Variant, list[float]] = {name: [] for name in self.names}

    @property
    def weight(self) -> Tensor:
        return self.layers[self.now].weight

    @property
    def bias(self) -> Tensor | None:
        return self.layers[self.now].bias

    def turn_to(self, level: int) -> None:
        self.now, self.spent = level % len(self.names), 0.0

    def keep(self) -> None:
        self.seconds[self.names[self.now]].append(self.spent)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, seconds = self.timer(self.layers[self.now], args, kwargs)
        self.spent += seconds
        return output


def grid(highest: int, allowed: Sequence[int]) -> list[int]:
    """The ranks to time, of those ``allowed`` up to ``highest``.

    Kernels work on blocks of 16 channels, so the time may jump behind each of the first few multiples.
    """
    blocks = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    possible = [rank for rank in allowed if rank <= highest] or [min(allowed)]
    wanted = {possible[0], 1, 4, 8, highest, *(16 * b for b in blocks), *(16 * b + 1 for b in blocks[:4])}
    return sorted({min(possible, key=lambda p: abs(p - rank)) for rank in wanted if rank <= highest})


def draw_(layer: nn.Module, generator: torch.Generator) -> None:
    """Random weights under which activations neither vanish nor grow: either would change how fast kernels are."""
    for parameter in layer.parameters():
        if not parameter.numel():  # a pair of rank 0 over a base
            continue
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="linear", generator=generator)
        else:
            nn.init.zeros_(parameter)


def _variants(
    module: nn.Module, site: Site, found: Sequence[Candidate], ranks: Mapping[Form, Sequence[int]]
) -> dict[Variant, nn.Module]:
    generator = torch.Generator(next(module.parameters()).device).manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator
        variants = {
            (each.form, rank): site.layer.skeleton(module, each.form, rank, each.bias)
            for each in found
            for rank in ranks[each.form]
        }
    for variant in variants.values():
        draw_(variant.eval(), generator)
    return variants


@contextmanager
def _in_place(root: nn.Module, switches: Mapping[str, Switch]) -> Iterator[None]:
    parts: dict[nn.Module, nn.Module] = {root.get_submodule(name): switch for name, switch in switches.items()}
    replace_(root, parts)
    try:
        yield
    finally:
        replace_(root, {switch: module for module, switch in parts.items()})


def _run(root: nn.Module, switches: Sequence[Switch], example: Example, tell: Progress) -> None:
    levels = max((len(switch.names) for switch in switches), default=0)
    begun = time.perf_counter()
    for turn in range(-1, TURNS):  # before the first, one turn that does not count
        for level in range(levels):
            for switch in switches:
                switch.turn_to(level)
            root(*example.args, **example.kwargs)
            for switch in switches if turn >= 0 else ():
                switch.keep()
        tell("timing layers", turn + 2, TURNS + 1)
        if turn >= 2 and time.perf_counter() - begun > SECONDS:
            return


def _curves(seconds: Mapping[Variant, Sequence[float]]) -> dict[Form, Curve]:
    # the lower quartile: what else the machine does disturbs it less than the median
    times = {variant: 1e3 * float(np.quantile(values, 0.25)) for variant, values in seconds.items()}
    dense = times.pop((Form.KEEP, 0))
    return curves(dense, times)
