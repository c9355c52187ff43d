"""Statistics and curves of a network whose weights stay on the disk: one of its blocks is in memory at a time.

    forward, block after block       what crosses each border is kept on the disk
    backward, the last block first   the gradients at a block's end give those at its sites, and at its beginning; with
                                     the moments of its sites, from the same activations, these are decomposed

The gradients are those of the whole network, as if it had been differentiated at once: each block is run again for
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import size_of, tensors_in
from rankfold.compress.affordable import moments_bytes
from rankfold.compress.gradients import Sums, gradient_moment
from rankfold.compress.layerwise.curves import Measured, OnDisk, joined, measured, read_part, write_part
from rankfold.compress.layerwise.kept import Kept
from rankfold.compress.layerwise.layers import partition
from rankfold.compress.methods.method import Method
from rankfold.compress.metric import Spreading, inside, read_inside, tapping, wide_inside
from rankfold.compress.planning.candidates import decompose
from rankfold.compress.spread import Spread
from rankfold.compress.statistics import assembled, gather
from rankfold.compress.tokens import Drawn, moment_for
from rankfold.objectives import Objective
from rankfold.observe import Pages, Replay, Samples, State, rebuilt
from rankfold.run.processes.memory import give_back
from rankfold.run.progress import Progress
from rankfold.sites import Site, SiteList

_METRIC = 5  # matrices of a metric: two halves, their mean, what that is drawn towards, and it in the decomposition


def measured_bytes(site: Site) -> int:
    """Memory of the moments, the metric and the decomposition of one site, and of its factors."""
    m, n = site.shape
    return moments_bytes(site) + site.groups * (8 * _METRIC * min(m, n) ** 2 + 10 * m * n)


def measure_in_blocks(
    root: nn.Module,
    pages: Pages,
    found: SiteList,
    method: Method,
    seen: Samples,
    objective: Objective,
    directory: Path,
    *,
    metric_samples: int = 1024,
    progress: Progress,
) -> Measured:
    """Curves of all reducible sites, and their metrics on the disk; the model must be opened and in eval mode. A site
    beyond the memory limit is decomposed without data.

    ``directory``: finished parts are kept there and read back; the activations, too, while it runs. Cost: for each
    block a pass over the samples forward, one for the moments of as many sites as fit, and one forward and backward
    over ``metric_samples``; of the disk what crosses all borders, and the metrics.
    """
    work = _Blocks(root, pages, seen, objective, Kept(directory / f"borders-{seen.team.rank}"), metric_samples)
    units = _units(pages, found, directory, seen.memory)
    ready = [_ready(unit) for unit in units]
    done: list[Measured] = []
    begun = next((index for index, known in enumerate(ready) if known is None), len(units))
    if begun < len(units):
        work.forward(partial(progress, "running block after block"))
        if not work.has_gradients(units[begun].number + 1):
            begun = 0
    for index, unit in enumerate(units):
        known = ready[index] if index < begun else None
        if known is None:
            pages.turn(unit.number)
            known = work.measured(unit, method)
            if seen.team.first:
                write_part(unit.file, known)
        if unit.backward:
            work.forget(unit.number + 1)
        done.append(replace(known, metrics={}))
        progress("measuring block after block", len(done), len(units))
    pages.let_go()
    work.forget(0)
    give_back()
    seen.team.summed(0.0)  # until the first process has written
    return replace(joined(done[::-1]), metrics=OnDisk(unit.file for unit in units))


@dataclass(frozen=True)
class _Unit:
    """Sites of one block that are measured together; ``backward``: the gradients go on from there to the next."""

    number: int
    sites: SiteList
    file: Path
    backward: bool


def _ready(unit: _Unit) -> Measured | None:
    """What an earlier call has measured of the sites of a unit, without the metrics, which stay on the disk."""
    known = read_part(unit.file, unit.sites)
    return None if known is None else replace(known, metrics={})


def _units(pages: Pages, found: SiteList, directory: Path, memory: int | None) -> list[_Unit]:
    """The last block first."""
    reducible, made = {site.name: site for site in found.reducible}, []
    for number, span in reversed(list(enumerate(pages.chain.spans))):
        here = [reducible[name] for group in span.groups for name in group if name in reducible]
        runs = partition(here, measured_bytes, memory) or [[]]
        for index, run in enumerate(runs):
            file = directory / f"measured-{number:04d}-{index:02d}.safetensors"
            made.append(_Unit(number, SiteList(tuple(run)), file, index + 1 == len(runs)))
    return made


@dataclass
class _Blocks:
    root: nn.Module
    pages: Pages
    seen: Samples
    objective: Objective
    kept: Kept
    metric_samples: int
    spread: Spread = field(default_factory=Spread)

    def __post_init__(self) -> None:
        chain = self.pages.chain
        self.spans = chain.spans
        self.replay = Replay(chain, self.root, frozenset(call.name for call in chain.calls if call.site))

    def forward(self, progress: Any) -> None:
        """Keep what crosses the borders. Behind the last one it is run only where the answers' spread is wanted."""
        for number, span in enumerate(self.spans):
            if span.end is None and self.objective.by_token:
                break
            self.pages.turn(number)
            with self.seen.team.agreed():
                for index, batch in self.seen.mine():
                    state, output = self.replay.run(span, index, batch, self.given(number, index))
                    if span.end is None:
                        self.spread.add(self.objective.answers(output, batch))
                    else:
                        self.kept.put_state(f"x{number + 1}-{index}", state)
            progress(number + 1, len(self.spans))
        self.spread = self.spread.joined(self.seen.team)

    def given(self, number: int, index: int) -> State:
        return {} if number == 0 else self.kept.state(f"x{number}-{index}")

    def run(self, number: int, index: int, batch: Any) -> Any:
        """One block over one batch."""
        state, output = self.replay.run(self.spans[number], index, batch, self.given(number, index))
        return output if self.spans[number].end is None else state

    def weighed(self) -> Iterator[tuple[int, int, Any]]:
        """The batches on which gradients are taken: number, number of the first sample, batch."""
        first = 0
        for index, batch in self.seen.batches():
            if first >= self.metric_samples:
                return
            if index in self.seen:
                yield index, first, batch
            first += size_of(batch)

    def has_gradients(self, number: int) -> bool:
        """Whether those at the beginning of a block are there, from an earlier call; behind the last one none are
        needed."""
        mine = all(self.kept.holds(f"g{number}-{index}") for index, _, _ in self.weighed())
        (lacking,) = self.seen.team.summed(float(not mine))
        return number == len(self.spans) or not lacking

    def forget(self, number: int) -> None:
        """Let go of what crosses the border before block ``number``."""
        for index, _ in self.seen.mine():
            self.kept.drop(f"x{number}-{index}")
            self.kept.drop(f"g{number}-{index}")

    def measured(self, unit: _Unit, method: Method) -> Measured:
        memory, some = self.seen.memory, unit.sites
        metrics = self.metrics(unit)
        statistics = None
        if memory is None or sum(map(measured_bytes, some.reducible)) <= memory:
            gathered = gather(self.root, self.seen, some, run=partial(self.run, unit.number))
            statistics = assembled(gathered, some, metrics, {}, self.objective.by_token)
            del gathered
        made = decompose(self.root, some, method, statistics, lambda what, done, total: None)
        found = measured(some, made, statistics, let_go=True)
        give_back()
        return found

    def metrics(self, unit: _Unit) -> Mapping[str, Tensor]:
        """D of each site, and on the disk the gradients at the beginning of the block, where they go on from there."""
        scale = 0.5
        if self.objective.by_token:
            inner = {site.name: site.matrix(self.root).float() for site in unit.sites.reducible if inside(site)}
            sums = Sums(moment=moment_for(inner, scale))
            estimate: Drawn | Spreading = Drawn(sums)
        else:
            inner = wide_inside(self.root, unit.sites)
            sums = Sums(moment=partial(gradient_moment, inner))
            estimate = Spreading(self.objective, self.spread, sums)
        with tapping(self.root, unit.sites) as taps, self.seen.team.agreed():
            for index, first, batch in self.weighed():
                taps.clear()
                given = rebuilt(self.given(unit.number, index), _leaf)
                total, counted = self._scalar(unit.number, index, first, batch, given, estimate)
                leaves = [x for x in tensors_in(given) if x.requires_grad] if unit.backward else []
                wanted = [zero for _, zero in taps] + leaves
                if not total.requires_grad or not wanted:
                    return {}
                gradients = torch.autograd.grad(total, wanted, allow_unused=True)
                pairs = [(site, g) for (site, _), g in zip(taps, gradients, strict=False) if g is not None]
                estimate.add(pairs, counted, index % 2)
                if unit.backward and unit.number:
                    self._keep(unit.number, index, given, gradients[len(taps) :], counted)
        return sums.metrics(self.seen.team, read_inside(self.root, unit.sites) | inner)

    def _scalar(
        self, number: int, index: int, first: int, batch: Any, given: State, estimate: Drawn | Spreading
    ) -> tuple[Tensor, float]:
        """What is differentiated, and how much it counts: of the last block the estimate, of another one what gives the
        gradients that are known at its end."""
        span = self.spans[number]
        with torch.enable_grad():
            state, output = self.replay.run(span, index, batch, given, graph=True)
            if span.end is None:
                return estimate.of(self.objective.answers(output, batch), first)
            known = self.kept.get(f"g{number + 1}-{index}")
            counted, outputs = float(known.pop(_COUNTED)), list(tensors_in(state))
            total = sum((outputs[int(key)] * g).sum() for key, g in known.items())
        return torch.as_tensor(total), counted

    def _keep(self, number: int, index: int, given: State, gradients: Any, counted: float) -> None:
        left, found = iter(gradients), {_COUNTED: torch.tensor(counted, dtype=torch.float64)}
        for place, tensor in enumerate(tensors_in(given)):
            gradient = next(left) if tensor.requires_grad else None
            if gradient is not None:
                found[str(place)] = gradient
        self.kept.put(f"g{number}-{index}", found)


_COUNTED = "counted"


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())
