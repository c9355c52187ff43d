"""Passes over data: what is seen of them, and which samples are held back so that a forecast can be checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rankfold.batches import batches_of, samples_of, size_of
from rankfold.train.parallel import Team

# one sample in so many is held back; of few samples more, so that there is something to check on
_EVERY = ((64, 8), (16, 4), (2, 2))


@dataclass(frozen=True)
class Samples:
    """The first ``samples`` of ``data`` in batches of ``batch_size``. ``memory``: bytes that moments may take.

    With a ``team`` of several processes each one takes every ``team.size``-th batch.
    """

    data: Any
    samples: int | None = None
    batch_size: int = 128
    memory: int | None = None
    team: Team = field(default_factory=Team)

    def batches(self) -> Iterator[tuple[int, Any]]:
        """Every batch with its number, those of other processes included."""
        yield from enumerate(batches_of(self.data, self.batch_size, self.samples))

    def mine(self) -> Iterator[tuple[int, Any]]:
        """The batches of this process."""
        return ((index, batch) for index, batch in self.batches() if index in self)

    def __contains__(self, index: int) -> bool:
        """Whether the batch of this number is for this process."""
        return index % self.team.size == self.team.rank

    def first(self, samples: int) -> Samples:
        """At most so many of the same samples."""
        return replace(self, samples=samples if self.samples is None else min(samples, self.samples))

    @property
    def held_back(self) -> int:
        """One sample in so many is held back; 0 where there are not two."""
        seen = 0
        for _, batch in self.batches():
            seen += size_of(batch)
            if seen >= _EVERY[0][0]:
                break
        return next((every for least, every in _EVERY if seen >= least), 0)

    def parts(self) -> Iterator[tuple[bool, Any]]:
        """(held back, part of a batch) for the batches of this process: their samples told apart by their number."""
        every, seen = self.held_back, 0
        for index, batch in self.batches():
            size = size_of(batch)
            if index in self:
                yield from divided(batch, size, seen, every)
            seen += size

    def held_out(self) -> tuple[Any, ...]:
        """The parts that are held back, of all processes."""
        every, seen, found = self.held_back, 0, []
        for _, batch in self.batches():
            size = size_of(batch)
            found += [part for back, part in divided(batch, size, seen, every) if back]
            seen += size
        return tuple(found)

    def without_held_out(self) -> Samples:
        """The other samples."""
        return replace(self, data=_Fitted(self), samples=None)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """What ``Samples`` does not hold back, to be iterated any number of times."""

    seen: Samples

    def __iter__(self) -> Iterator[Any]:
        every, seen = self.seen.held_back, 0
        for _, batch in self.seen.batches():
            size = size_of(batch)
            yield from (part for back, part in divided(batch, size, seen, every) if not back)
            seen += size


def divided(batch: Any, size: int, seen: int, every: int) -> Iterator[tuple[bool, Any]]:
    """A batch of ``size`` samples, the first of which has number ``seen``, in its parts: (held back, part)."""
    if not every:
        yield False, batch
        return
    back = torch.arange(seen, seen + size) % every == every - 1
    for held, chosen in ((False, ~back), (True, back)):
        if bool(chosen.all()):
            yield held, batch
        elif bool(chosen.any()):
            yield held, samples_of(batch, size, chosen.nonzero().squeeze(1))
