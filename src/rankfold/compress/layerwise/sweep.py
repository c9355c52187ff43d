"""Passes through a network that is a chain of blocks, block after block, with what is kept at the borders in between.

The original's activations and the compressed network's go along side by side. Within a block

    the original runs once: what its sites give is kept, and the block's output
    for each group of sites that read one tensor the compressed block runs up to it, and its pairs are gathered
    the compressed block runs to its end: its output

so that a block costs groups + 2 passes, however many blocks there are. A pass of the compressed block goes on where the
one before was cut: at the group that has been fitted since. All of them together compute the block once, and what lies
between a layer and the addition behind it once more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import forward, size_of, two_halves
from rankfold.compress.layerwise.kept import Kept
from rankfold.compress.layerwise.looking import Looking, Seen, There, counted, recorded
from rankfold.compress.layerwise.pairs import FOLDS, JUDGING, WATCHING, Collected, Pairs, bundles, paired
from rankfold.compress.layerwise.preactivations import Followed
from rankfold.linalg import Moments
from rankfold.objectives import Evaluation, Objective
from rankfold.observe import Chain, Replay, Samples, Span, State, Tape, Taping
from rankfold.observe.halves import WHOLE, halves
from rankfold.observe.passes import laid_out, layout_for
from rankfold.sites import Site


@dataclass
class Passes:
    """Runs of one block of one network over the batches: ``fitting``, and over held-out ones alone ``held_out``; of
    ``blocks`` with ``groups`` in all."""

    blocks: int = 0
    groups: int = 0
    fitting: int = 0
    held_out: int = 0

    def __str__(self) -> str:
        return (
            f"{self.blocks} blocks with {self.groups} groups of layers: {self.fitting} passes of a block to fit, "
            f"{self.held_out} over held-out samples"
        )


@dataclass
class Sweep:
    """``seen``: the samples to fit to; ``judges``: batches that are held back; ``rows``: how many of each site to keep;
    ``before``: whether moments of the original's inputs are gathered, too; ``beyond``: sites whose pairs would take too
    much memory: of these, and of those that cannot be paired, moments at their smaller side are gathered instead;
    ``watched``: batches that go along to see how good both networks are on them, and decide nothing."""

    original: nn.Module
    current: nn.Module
    chain: Chain
    sites: dict[str, Site]
    seen: Samples
    judges: Sequence[Any]
    kept: Kept
    rows: int = 0
    before: bool = False
    beyond: frozenset[str] = frozenset()
    watched: Sequence[Any] = ()
    passes: Passes = field(default_factory=Passes)

    def __post_init__(self) -> None:
        names = frozenset(call.name for call in self.chain.calls if call.site)
        self.theirs = Replay(self.chain, self.original, names)
        self.ours = Replay(self.chain, self.current, names, self.theirs.shapes)
        self.layout = layout_for(self.original, self.seen.data)
        first = next(batch for _, batch in self.seen.batches())
        self.halves = halves(self.original, first, self.sites) if two_halves(first, self.original) else WHOLE
        self.samples = sum(size_of(batch) for _, batch in self.seen.batches()) if self.rows else 0
        self.alone = len(list(zip(range(2), self.seen.batches(), strict=False))) < 2
        self.tapes: dict[str, Tape] = {}
        self.crossed = False  # whether what the original has at the end of the block is known
        self.followed: dict[str, Followed] = {}
        self.moments: dict[str, Moments] = {}
        self.aside: dict[str, Moments] = {}
        self.waiting: set[str] = set()  # sites whose moments will still be asked for
        self.joined: set[tuple[int, str]] = set()  # of which of these all processes have told theirs
        self.shared: Mapping[str, str] = {}
        self.passes.blocks = len(self.chain.spans)
        self.passes.groups = sum(len(span.groups) for span in self.chain.spans)

    def batches(self) -> Iterator[tuple[int, int | None, Any]]:
        """The batches of this process: number, the part that its rows are for (None: all in turn), and the batch."""
        count = 0
        for number, batch in self.seen.batches():
            count = number + 1
            if number in self.seen:
                yield number, None if self.alone else number % FOLDS, batch
        for number, batch in enumerate((*self.judges, *self.watched), count):
            part = JUDGING if number - count < len(self.judges) else WATCHING
            if number in self.seen if part == JUDGING else self.seen.team.first:
                yield number, part, batch

    def run_original(self, span: Span, groups: Sequence[Sequence[str]]) -> None:
        """One pass of the original's block; what the sites of ``groups`` give is kept. Where these are not all, another
        pass goes on from there."""
        names = [name for group in groups for name in group]
        some = len(groups) < len(span.groups)
        last = self.crossed or span.end is None
        self.passes.fitting += 1
        self.moments.clear()
        self.aside.clear()
        self.joined.clear()
        self.waiting = set(names)
        found = (bundle for group in groups for bundle in bundles([self.sites[name] for name in group]))
        self.shared = {site.name: bundle[0].name for bundle in found for site in bundle}
        looking = Looking(
            self.original, [self.sites[name] for name in names], self._calls(names) if last else None, self.halves
        )
        with self.seen.team.agreed():
            for index, part, batch in self.batches():
                cut = frozenset(names) if some else frozenset()
                state, _ = self._run(self.theirs, span, index, batch, "x", looking, cut)
                if not last:
                    self.kept.put_state(f"{'next' if some else 'x'}-{index}", state)
                self._record(looking, index, part, batch)
        self.crossed = True

    def _calls(self, names: Sequence[str]) -> int | None:
        """How often these sites are called in a pass, where that is known."""
        return sum(call.name in names for call in self.chain.calls) if self.chain.steady else None

    def _record(self, looking: Looking, index: int, part: int | None, batch: Any) -> None:
        tensors: dict[str, Tensor] = {}
        taken, done = looking.taken(), set[tuple[int, str]]()
        for name, seen in taken.items() if part != WATCHING else ():
            site = self.sites[name]
            found = None if name in self.beyond else recorded(site, self.original.get_submodule(name), seen)
            if found is None:
                self._set_aside(site, seen, part, batch, done)
                continue
            there, inputs = found
            tensors |= {f"{name}|{key}": value for key, value in there.tensors().items()}
            if there.followed is not None:
                self.followed[name] = there.followed
            if self.before and part != JUDGING:
                self._count_in(self.moments, site, [(rows, counted(rows, seen, batch)) for rows in inputs], done)
        self.kept.put(f"rows-{index}", tensors)

    def _set_aside(self, site: Site, seen: Seen, part: int | None, batch: Any, done: set[tuple[int, str]]) -> None:
        """Count in the rows at the side that the site's moments are taken at, of the samples to fit to."""
        module = self.original.get_submodule(site.name)
        if part != JUDGING:
            given = (site.layer.rows(module, x, y) for x, y in zip(seen.inputs, seen.outputs, strict=True))
            self._count_in(self.aside, site, [(rows, counted(rows, seen, batch)) for rows in given], done)

    def _count_in(
        self, into: dict[str, Moments], site: Site, given: Sequence[tuple[Tensor, Tensor | None]],
        done: set[tuple[int, str]],
    ) -> None:  # fmt: skip
        """The rows of one batch, once for all sites that share them; ``done``: for which ones they are in already."""
        key = self._key(into, site.name)
        if (id(into), key) in done:
            return
        done.add((id(into), key))
        for rows, counts in given:
            if key not in into:
                into[key] = Moments(
                    rows.shape[-1], rows.shape[0] if rows.dim() == 3 else None, rows.device, single=True
                )
            into[key].update(rows if counts is None else rows[counts])

    def let_go(self, names: Collection[str]) -> None:
        """These sites are fitted: moments that no other one waits for take no room any longer."""
        self.waiting -= set(names)
        for into in (self.moments, self.aside):
            for key in set(into) - {self._key(into, name) for name in self.waiting}:
                del into[key]

    def aside_of(self, name: str) -> Moments | None:
        """The moments of such a site, from all processes."""
        return self._together(self.aside, name)

    def pairs(self, span: Span, group: Sequence[str], folds: int = FOLDS) -> dict[str, Pairs]:
        """One pass of the compressed block up to ``group``, whose sites are not compressed yet: their pairs, of the
        samples to fit to in so many parts."""
        sites = [self.sites[name] for name in group]
        found = Collected(sites, self.rows, self.samples)
        self.passes.fitting += 1
        looking = Looking(self.current, sites, self._calls(group), self.halves)
        self.ours.look()
        with self.seen.team.agreed():
            for index, part, batch in self.batches():
                if part == WATCHING:
                    continue
                self._run(self.ours, span, index, batch, "y", looking, frozenset(group))
                tensors, rows = self.kept.get(f"rows-{index}"), {}
                for name, here in looking.taken().items():
                    prefix = f"{name}|"
                    own = {key[len(prefix) :]: x for key, x in tensors.items() if key.startswith(prefix)}
                    module = self.current.get_submodule(name)
                    there = There.of(own, self.followed.get(name))
                    pair = paired(self.sites[name], module, there, here, batch)
                    if pair is not None:
                        rows[name] = pair
                shared = tuple(range(folds)) if part is None else (part if part == JUDGING else part % folds,)
                found.add(rows, shared, size_of(batch))
        return {
            name: replace(each, before=self._moments(name)) for name, each in found.together(self.seen.team).items()
        }

    def _moments(self, name: str) -> Moments | None:
        """Of the original's inputs, from all processes."""
        return self._together(self.moments, name) if self.before else None

    def _key(self, into: dict[str, Moments], name: str) -> str:
        """Under which name the moments of a site stand: rows of inputs are those of all that read them."""
        shared = into is self.moments or self.sites[name].layer.side == "input"
        return self.shared.get(name, name) if shared else name

    def _together(self, into: dict[str, Moments], name: str) -> Moments | None:
        key = self._key(into, name)
        if (id(into), key) not in self.joined:
            self.joined.add((id(into), key))
            shares = [each for each in self.seen.team.gathered(into.get(key)) if each is not None]
            for first, *others in [shares] if shares else ():
                for other in others:
                    first.merge(other)
                into[key] = first
        return into.get(key)

    def run_current(self, span: Span) -> None:
        """One pass of the compressed block, with all that was fitted in it: on to the next one."""
        self.passes.fitting += 1
        self.ours.look()
        with self.seen.team.agreed():
            for index, _, batch in self.batches() if span.end is not None else ():  # behind the last nothing is fitted
                state, _ = self._run(self.ours, span, index, batch, "y")
                self.kept.put_state(f"y-{index}", state)
                if f"next-{index}" in self.kept.forms:
                    self.kept.move(f"next-{index}", f"x-{index}")
                self.kept.drop(f"rows-{index}")
        for key in self.tapes:
            self.kept.drop(key)
        self.tapes.clear()
        self.crossed = False

    def _run(
        self,
        replay: Replay,
        span: Span,
        index: int,
        batch: Any,
        stream: str,
        looking: Looking | None = None,
        cut: frozenset[str] = frozenset(),
    ) -> tuple[State, Any]:
        """``stream`` x: what the original has, y: what the compressed network has. It is run from where it was cut
        last, and cut anew where the first of the sites ``cut`` is called."""
        given = {} if span.start is None else self.kept.state(f"{stream}-{index}")
        key, taping = f"cut-{stream}-{index}", None
        if key in self.tapes or (cut and self.chain.steady):
            values = self.kept.row(key) if key in self.tapes else ()
            taping = Taping(self.tapes.get(key, Tape()), values, cut)
        found = replay.run(span, index, laid_out(batch, self.layout), given, looking, taping=taping)
        if taping is not None and taping.taken is not None:
            self.tapes[key], values = taping.taken
            self.kept.put_row(key, values)
        return found

    @torch.no_grad()
    def losses(self, objective: Objective, others: Sequence[nn.Module]) -> list[float]:
        """Divergence of the held-out outputs from the original's, mean over the samples: of the compressed network,
        whose last block is run, and of ``others``, which are run whole. Everything must have been fitted."""
        last, totals, samples = self.chain.spans[-1], [0.0] * (1 + len(others)), 0
        self.passes.held_out += 2 + len(others) * len(self.chain.spans)
        with self.seen.team.agreed():
            for index, part, batch in self.batches():
                if part != JUDGING:
                    continue
                wanted = self._run(self.theirs, last, index, batch, "x")[1]
                found = [self._run(self.ours, last, index, batch, "y")[1], *(forward(each, batch) for each in others)]
                for number, output in enumerate(found):
                    totals[number] += float(objective.divergence(output, wanted, batch).sum())
                samples += size_of(batch)
        *totals, count = self.seen.team.summed(*totals, samples)
        return [total / max(count, 1) for total in totals]

    @torch.no_grad()
    def scores(self, objective: Objective) -> tuple[Evaluation, Evaluation] | None:
        """How good the original and the compressed network are on what was watched, which went along in the first
        process; as ``losses``."""
        return self.seen.team.shared(lambda: self._scored(objective)) if self.watched else None

    def _scored(self, objective: Objective) -> tuple[Evaluation, Evaluation]:
        last, sums = self.chain.spans[-1], (objective.figures(), objective.figures())
        self.passes.held_out += 2
        for index, part, batch in self.batches():
            if part == WATCHING:
                theirs = self._run(self.theirs, last, index, batch, "x")[1]
                taught = theirs if objective.compares else None
                for each, output in zip(sums, (theirs, self._run(self.ours, last, index, batch, "y")[1]), strict=True):
                    each.add(output, batch, taught)
        return sums[0].result(), sums[1].result()
