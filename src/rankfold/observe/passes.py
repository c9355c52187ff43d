"""Passes over data: what is seen of them, which samples are held back so that a forecast can be checked, in which
layout images run (channels last is several times faster in convolutions on a CPU), and where samples lie in what a
layer gives, not always along its first axis: of two passes, of a few samples and of half of these, it is the axis that
became shorter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import arguments, batches_of, divisible, evaluating, forward, samples_of, size_of
from rankfold.linalg.brief import brief
from rankfold.objectives.answer import counting_tensors
from rankfold.observe.watch import after
from rankfold.run.processes.team import Team

# one sample in so many is held back; of few samples more, so that there is something to check on
_EVERY = ((64, 8), (16, 4), (2, 2))
_FEW = 8  # samples tell it
_OWN = RuntimeError, ValueError, TypeError, IndexError  # of a model of a fixed batch


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


@dataclass(frozen=True)
class Place:
    """The axis of a tensor along which the samples lie; ``inner``: of positions that it holds besides, those of one
    sample lie together no more: all samples follow at the first position, then all at the second."""

    axis: int = 0
    inner: bool = False

    def blocks(self, shape: torch.Size, samples: int) -> int:
        """How often all samples follow one another: a tensor of this shape is (blocks, samples, …) in that order, 0 if
        it is not."""
        each, rest = divmod(shape[self.axis], samples)
        return 0 if rest else prod(shape[: self.axis]) * (each if self.inner else 1)


@dataclass(frozen=True)
class Apart:
    """``outputs``: whether those for some samples are what they are for these alone. ``places`` of the samples in what
    modules give, by name; of those that do not tell there is none."""

    outputs: bool
    places: Mapping[str, Place]


def separable(root: nn.Module, batch: Any) -> bool:
    """Whether the outputs for some samples of a batch are what they are for these samples alone; not so for models
    whose first axis is time, for instance. Two forward passes of a few samples in eval mode."""
    return apart(root, batch, {}).outputs


@torch.no_grad()
def apart(root: nn.Module, batch: Any, modules: Mapping[str, nn.Module]) -> Apart:
    """``separable``, and the places of the samples in what ``modules`` by name give; the same two passes."""
    whole_size = size_of(batch)
    size = min(whole_size, _FEW)
    if size < 2:
        return Apart(True, dict.fromkeys(modules, Place()))
    if not divisible(arguments(batch), whole_size):
        return Apart(False, {})
    batch = samples_of(batch, whole_size, slice(0, size))
    few = (size + 1) // 2
    with suppress(*_OWN), evaluating(root):
        (whole, given), (part, less) = (
            _run(root, each, modules) for each in (batch, samples_of(batch, size, slice(few)))
        )
        same = (
            len(whole) == len(part)
            and all(
                a.shape == (size, *b.shape[1:])  # other axes may be samples too, as of CLIP's logits
                and torch.allclose(a[:few].float(), b.float(), rtol=1e-2, atol=1e-3)
                for a, b in zip(whole, part, strict=True)
            )
        )
        return Apart(same, dict(_places(given, less, size, few)))
    return Apart(False, {})


_Given = Mapping[str, list[Tensor]]


def _run(root: nn.Module, batch: Any, modules: Mapping[str, nn.Module]) -> tuple[list[Tensor], _Given]:
    given: dict[str, list[Tensor]] = {name: [] for name in modules}
    watching = {
        module: lambda _, args, kwargs, output, seen=given[name]: seen.append(output.detach().clone())
        for name, module in modules.items()
    }
    with after(None, watching):
        output = forward(root, batch)
    return [tensor for _, tensor in counting_tensors(output)], given


def _places(whole: _Given, part: _Given, size: int, few: int) -> Iterator[tuple[str, Place]]:
    for name in whole:
        calls = list(zip(whole[name], part[name], strict=False))
        found = {_place(a, b, size, few) for a, b in calls} if len(whole[name]) == len(part[name]) else {None}
        if len(found) == 1 and (place := found.pop()) is not None:
            yield name, place


def _place(whole: Tensor, part: Tensor, size: int, few: int) -> Place | None:
    """Where an axis of the samples holds positions besides, the values tell in which order."""
    for axis in range(whole.dim()):
        each, rest = divmod(whole.shape[axis], size)
        if rest or not each or part.shape != (*whole.shape[:axis], each * few, *whole.shape[axis + 1 :]):
            continue
        for place in (Place(axis), Place(axis, inner=True)):
            if each == 1 or _first(whole, place, size, few).allclose(part.flatten(), rtol=1e-2, atol=_faint(part)):
                return place
    return None


def _first(whole: Tensor, place: Place, size: int, few: int) -> Tensor:
    return whole.reshape(place.blocks(whole.shape, size), size, -1)[:, :few].flatten()


def _faint(values: Tensor) -> float:
    return 1e-3 * float(values.abs().max()) if values.numel() else 0.0
