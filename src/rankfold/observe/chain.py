"""A network as a chain of spans: between two borders everything is computed from what the first border gives.

The state at a border is what one call of a module gives, in a network with connections past it (from an encoder to a
decoder, within a UNet) what a few more give. What depends on the inputs alone is computed again, so it is no part of
it. Between two borders lies at least one group of sites that read the same tensor.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from rankfold.linalg.brief import brief
from rankfold.observe.calls import Call, Lived, Watched, watch_calls

MANY = 8  # groups in one span above which it is cut where several calls must be kept, too
CARRIED = 8  # calls beside the one at the border, at most


@dataclass(frozen=True)
class Border:
    """``call`` after which the network is cut; ``state``: the numbers of all calls whose outputs are kept there."""

    call: int
    state: tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """What lies between two borders; None for the beginning and the end of the network. ``groups``: names of the sites
    in it that read the same tensor one after another, in the order of their calls."""

    start: Border | None
    end: Border | None
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Chain:
    """``steady``: whether a pass can be cut between the calls, and goes on from there in the same way: all that is
    computed is seen being computed, and the calls are those of ``calls`` whatever the data."""

    calls: Sequence[Call]
    spans: tuple[Span, ...]
    steady: bool = True

    __repr__ = brief

    @property
    def skipped(self) -> frozenset[int]:
        """Calls that are not made where the pass begins behind them, though their outputs are not kept."""
        found: set[int] = set()
        for span in self.spans:
            if span.start is not None:
                found.update(self.past(span.start))
        return frozenset(found)

    def past(self, border: Border) -> Iterator[int]:
        """The outermost calls that have ended at ``border`` and depend on a site, except those that are its state."""
        ended, number = self.calls[border.call].end, 0
        while number < len(self.calls):
            call = self.calls[number]
            if call.changing and call.end <= ended:
                if number not in border.state:
                    yield number
                number = call.stop
            else:
                number += 1


def find_chain(root: nn.Module, batch: Any, sites: Collection[str], many: int = MANY) -> Chain:
    """The chain of ``root`` in eval mode with respect to ``sites``; of a network that cannot be cut, one span.

    ``batch``: few samples; it may lie on the meta device with ``root``. ``many``: groups in one span above which
    several calls may be kept at a border. Cost: one forward pass of it, a dozen times as long as without looking.
    """
    seen = watch_calls(root, batch, sites)
    groups = list(_groups(seen.calls))
    spans: list[Cut] = [(None, None, groups)] if groups else []
    crossing = _Crossing(seen)
    for carried in () if seen.whole else range(CARRIED + 1):
        cuts: list[Cut] = []
        for start, end, inside in spans:
            if carried and len(inside) <= many:
                cuts.append((start, end, inside))
            else:
                cuts += _cut(seen.calls, crossing, start, end, inside, carried)
        spans = cuts
    names = lambda inside: tuple(tuple(seen.calls[n].name for n in group) for group in inside)  # noqa: E731
    made = tuple(Span(start, end, names(inside)) for start, end, inside in spans)
    return Chain(seen.calls, made, seen.open and not seen.whole)


Groups = list[list[int]]
Cut = tuple[Border | None, Border | None, Groups]


def _groups(calls: Sequence[Call]) -> Iterator[list[int]]:
    """The first calls of all sites, those together that read the same tensor one after another."""
    run: list[int] = []
    known: set[str] = set()
    for number, call in enumerate(calls):
        if not call.site or call.name in known:
            continue
        known.add(call.name)
        if run and call.reads != calls[run[-1]].reads:
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _cut(
    calls: Sequence[Call], crossing: _Crossing, start: Border | None, end: Border | None, groups: Groups, carried: int
) -> Iterator[Cut]:
    """One span cut into those between the borders that keep at most ``carried`` calls beside their own."""
    last: dict[str, int] = {}
    for number, call in enumerate(calls):
        if call.site:
            last[call.name] = number
    kept: Groups = []
    until = 0
    for group, following in pairwise([*groups, []]):
        kept.append(group)
        until = max(until, *(calls[last[calls[n].name]].end for n in group))
        if not following:
            continue
        border = crossing.between(until, calls[following[0]].begin, carried)
        if border is not None:
            yield start, border, kept
            start, kept = border, []
    yield start, end, kept


class _Crossing:
    """Which tensors are needed behind a call and cannot be had from the inputs alone."""

    def __init__(self, seen: Watched) -> None:
        self.calls = seen.calls
        self.order = sorted(range(len(seen.calls)), key=lambda number: seen.calls[number].end)
        self.ends = [seen.calls[number].end for number in self.order]
        self.alive: list[list[tuple[int, Lived]]] = [[] for _ in self.order]  # at the end of each call, in that order
        for number, each in enumerate(seen.lived):
            for place in range(bisect_left(self.ends, each.written), bisect_left(self.ends, each.read)):
                self.alive[place].append((number, each))
        self.given: dict[int, list[int]] = {}
        for number, call in enumerate(seen.calls):
            for given in call.given:
                self.given.setdefault(given, []).append(number)

    def between(self, begin: int, end: int, carried: int) -> Border | None:
        """The border with the smallest state among the calls that end in between, of those the last one."""
        best: Border | None = None
        for place in range(bisect_left(self.ends, begin), bisect_left(self.ends, end)):
            number = self.order[place]
            state = self._state(place, carried) if self.calls[number].changing else None
            if state is not None and (best is None or len(state) <= len(best.state)):
                best = Border(number, state)
        return best

    def _state(self, place: int, carried: int) -> tuple[int, ...] | None:
        number = self.order[place]
        here, taken = self.calls[number], {number}
        for each, lived in self.alive[place]:
            if each in here.given:
                continue
            lost = lived.changing or any(self.calls[n].changing and self.calls[n].end <= here.end for n in lived.within)
            if not lost:
                continue
            givers = [n for n in self.given.get(each, ()) if self.calls[n].end <= here.end and self.calls[n].changing]
            if not givers:
                return None
            taken.add(max(givers, key=lambda n: self.calls[n].end))  # the outermost: it is not entered
            if len(taken) > carried + 1:
                return None
        return tuple(sorted(taken))
