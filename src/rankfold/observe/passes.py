"""Passes over data: what is seen of them, which samples are held back so that a forecast can be checked, and in which
layout images run: channels last is several times faster in convolutions on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import arguments, batches_of, evaluating, forward, samples_of, size_of
from rankfold.linalg.brief import brief
from rankfold.observe.apart import separable
from rankfold.run.processes.team import Team

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

    __repr__ = brief

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
        """One sample in so many is held back; 0 where there are not two. Data that can be read only once are not read
        for this: one in eight."""
        if isinstance(self.data, Iterator):
            return _EVERY[0][1]
        seen = 0
        for _, batch in self.batches():
            seen += size_of(batch)
            if seen >= _EVERY[0][0]:
                break
        return next((every for least, every in _EVERY if seen >= least), 0)

    def judges(self, root: nn.Module) -> tuple[Any, ...]:
        """Whole batches that are held back, one in eight or the last of fewer; of a single batch some samples, where
        the model treats samples one by one. None where nothing can be held back."""
        few = list(islice(self.batches(), _EVERY[0][1]))
        if len(few) > 1:
            every = len(few)
            return tuple(batch for index, batch in self.batches() if index % every == every - 1)
        if not few or not separable(root, few[0][1]):
            return ()
        return tuple(part for back, part in divided(few[0][1], self.held_back) if back)

    def without_judges(self) -> Samples:
        """The other batches, or the other samples of a single one."""
        return replace(self, data=_Others(self), samples=None)


@dataclass(frozen=True, eq=False)
class _Others:
    """What does not judge, to be iterated any number of times."""

    seen: Samples

    def __iter__(self) -> Iterator[Any]:
        every = len(list(islice(self.seen.batches(), _EVERY[0][1])))
        if every == 1:
            for _, batch in self.seen.batches():
                yield from (part for back, part in divided(batch, self.seen.held_back) if not back)
            return
        yield from (batch for index, batch in self.seen.batches() if index % every != every - 1)


def held(size: int, seen: int, every: int) -> Tensor:
    """(size,) whether each sample of a batch is held back; the first one has number ``seen``."""
    if not every:
        return torch.zeros(size, dtype=torch.bool)
    return torch.arange(seen, seen + size) % every == every - 1


def divided(batch: Any, every: int) -> Iterator[tuple[bool, Any]]:
    """A batch in its parts: (held back, part)."""
    size = size_of(batch)
    back = held(size, 0, every)
    for side, chosen in ((False, ~back), (True, back)):
        if bool(chosen.any()):
            yield side, samples_of(batch, size, chosen.nonzero().squeeze(1))


def fitting_layout(model: nn.Module, batch: Any) -> torch.memory_format:
    """Channels last, unless `model` cannot take it (a `.view` over the channels), or there is no image; one forward of
    two of `batch`."""
    if laid_out(batch, torch.channels_last) is batch:
        return torch.contiguous_format
    with evaluating(model):
        try:
            for few in batches_of([batch], limit=2):
                forward(model, laid_out(few, torch.channels_last))
        except RuntimeError:
            # Whatever else is wrong with model or batch is raised where it is used in its own layout.
            return torch.contiguous_format
    return torch.channels_last


def layout_for(model: nn.Module, data: Any) -> torch.memory_format:
    """`fitting_layout` for the first of `data`; their own layout where they can be read only once, or are empty."""
    if isinstance(data, Iterator):
        return torch.contiguous_format
    for few in batches_of(data, limit=2):
        return fitting_layout(model, few)
    return torch.contiguous_format


def laid_out(batch: Any, layout: torch.memory_format) -> Any:
    """The inputs of `batch` without its labels, in `layout` if they are one image batch (B, C, H, W)."""
    args, kwargs = arguments(batch)
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or args[0].ndim != 4:
        return batch
    return (args[0].contiguous(memory_format=layout),)
