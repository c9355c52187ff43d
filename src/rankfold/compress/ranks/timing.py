"""What every site takes by the clock, in any form at any rank: measured inside the network."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankfold.compress.planning.candidates import Candidate
from rankfold.costs import Example, evaluating, trace, with_batch
from rankfold.run.progress import Progress
from rankfold.sites import Call, Form, Site, SiteList, replace_

Timing = Callable[[Site, Form, int], float]
Timer = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[Any, float]]
Variant = tuple[Form, int]

FASTER = 0.95  # of the dense time: what is above is not measurably faster
SECONDS, TURNS = 10.0, 30  # after which no further turn begins, three at least


def timed(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, float]:
    """(output, seconds) of one call, waiting for an accelerator where there is one."""
    wait = torch.cuda.synchronize if any(p.is_cuda for p in layer.parameters()) else (lambda: None)
    wait()
    start = time.perf_counter()
    output = layer(*args, **kwargs)
    wait()
    return output, time.perf_counter() - start


def site_timing(
    root: nn.Module,
    sites: SiteList,
    candidates: Mapping[str, Sequence[Candidate]],
    example: Example,
    batch: int,
    tell: Progress,
    *,
    timer: Timer = timed,
) -> Timing:
    """Milliseconds of all calls of a site in one forward pass of ``batch`` samples, in any form at any rank.

    Every candidate is timed where it stands, with what the layers around it leave in caches and memory: the network
    runs with all sites dense, then all at their lowest rank, and so on over about ten ranks, again and again. Layers
    that are alike share their times. Between those ranks the time is interpolated, and it never falls as the rank
    grows. A rank that is not measurably faster than the dense layer costs at least as much, so that keeping wins.
    Sites without candidates, which are kept whatever happens, count as 0.

    Attention must be split; ``root`` is left as found. ``timer``: output and seconds of one call of a layer.
    Cost: four forward passes for each of those ranks, or more within ten seconds; memory: the factors at all of them.
    """
    calls = trace(root, example, sites)[1]
    todo = [site for site in sites if candidates.get(site.name) and calls.get(site.name)]
    switches: dict[str, Switch] = {}
    alike: dict[str, object] = {}
    for site in todo:
        module, found, shapes = root.get_submodule(site.name), candidates[site.name], tuple(calls[site.name])
        weight = site.weight(root)
        alike[site.name] = (repr(module), shapes, weight.dtype, weight.device, tuple((c.form, c.bias) for c in found))
        switches[site.name] = Switch(module, _variants(module, site, found, shapes), timer)
    place = next((p.device for p in root.parameters()), torch.device("cpu"))
    with evaluating(root), _in_place(root, switches):
        _run(root, list(switches.values()), with_batch(example, batch).to(place), tell)
    pooled: dict[object, dict[Variant, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, switch in switches.items():
        for variant, seconds in switch.seconds.items():
            pooled[alike[name]][variant] += seconds
    known = {key: _curves(seconds) for key, seconds in pooled.items()}

    def timing(site: Site, form: Form, rank: int) -> float:
        return known[alike[site.name]][form].at(rank) if site.name in switches else 0.0

    return timing


@dataclass(frozen=True)
class Curve:
    """Milliseconds of one layer in one form: as it is (``dense``), and at some ``ranks``; none for the dense form."""

    dense: float
    ranks: tuple[int, ...] = ()
    times: tuple[float, ...] = ()

    def at(self, rank: int) -> float:
        if not self.ranks:
            return self.dense
        time = float(np.interp(rank, self.ranks, self.times))
        if rank > self.ranks[-1]:  # the factors have more work to do than the dense layer
            time *= rank / self.ranks[-1]
        return time if time < FASTER * self.dense else max(time, self.dense)


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
    wanted = {1, 4, 8, highest, *(16 * b for b in blocks), *(16 * b + 1 for b in blocks[:4])}
    possible = [rank for rank in allowed if rank <= highest] or [min(allowed)]
    return sorted({min(possible, key=lambda p: abs(p - rank)) for rank in wanted if rank <= highest})


def draw_(layer: nn.Module, generator: torch.Generator) -> None:
    """Random weights under which activations neither vanish nor grow: either would change how fast kernels are."""
    for parameter in layer.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="linear", generator=generator)
        else:
            nn.init.zeros_(parameter)


def _variants(
    module: nn.Module, site: Site, found: Sequence[Candidate], calls: Sequence[Call]
) -> dict[Variant, nn.Module]:
    layer, variants = site.layer, {}
    generator = torch.Generator(next(module.parameters()).device).manual_seed(0)
    dense = layer.flops(Form.KEEP, 0, calls)
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator
        for candidate in found:
            ranks = candidate.ranks
            fewer = [rank for rank in ranks if layer.flops(candidate.form, rank, calls) <= dense]
            for rank in grid(max(fewer, default=1), ranks):
                variants[candidate.form, rank] = layer.skeleton(module, candidate.form, rank, candidate.bias)
    for variant in variants.values():
        draw_(variant.eval(), generator)
    return variants


@contextmanager
def _in_place(root: nn.Module, switches: Mapping[str, Switch]) -> Iterator[None]:
    pairs = [(root.get_submodule(name), switch) for name, switch in switches.items()]
    for module, switch in pairs:
        replace_(root, module, switch)
    try:
        yield
    finally:
        for module, switch in pairs:
            replace_(root, switch, module)


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
    from sklearn.isotonic import isotonic_regression  # heavy, and few commands time layers

    # the lower quartile: what else the machine does disturbs it less than the median
    times = {variant: 1e3 * float(np.quantile(values, 0.25)) for variant, values in seconds.items()}
    dense = times[Form.KEEP, 0]
    curves = {Form.KEEP: Curve(dense)}
    for form in {form for form, _ in times} - {Form.KEEP}:
        ranks = tuple(sorted(rank for other, rank in times if other is form))
        rising = isotonic_regression([times[form, rank] for rank in ranks])
        curves[form] = Curve(dense, ranks, tuple(map(float, rising)))
    return curves
