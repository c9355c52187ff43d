"""Validation data in two halves: one searches, the other judges what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, Subset

from rankfold.batches import arguments, batches_of, divisible, is_hugging_face, samples_of, size_of
from rankfold.train import TrainingError, feed

GROUPS = 32  # of the judging half, from which an interval follows
_BATCH = 128


@dataclass(frozen=True, eq=False)
class Half:
    """Some of the validation samples, as ``rankfold.train.evaluate`` takes them, and how many they are."""

    data: Any
    samples: int

    @property
    def batch_size(self) -> int:
        """Of batches that can be put together into ``GROUPS`` groups of one size, or nearly."""
        return max(1, ceil(self.samples / (GROUPS * ceil(self.samples / (GROUPS * _BATCH)))))

    @property
    def cut(self) -> Any:
        """The data in batches of ``batch_size`` at most, whatever the batches that they come in."""
        return _Cut(self.data, self.batch_size)


@dataclass(frozen=True, eq=False)
class Halves:
    """Two parts of one data set without a sample in common; the larger one judges."""

    search: Half
    judge: Half


def halves(data: Any, seed: int = 0) -> Halves:
    """``data`` in two halves: drawn with ``seed`` where samples have an index (tensors, data sets, loaders over them).

    Of batches in a list, of an iterable data set and of a loader with batches of its own making every other batch goes
    to each half; they must come in the same order at every pass. A single batch is parted by its samples. Raises
    ``TrainingError`` for what is no data, is empty, can be read only once, or holds fewer than four samples.
    """
    feed.check(data, "validation", again=True)
    single = _single(data)
    if single is not None:
        data = [single]
    order = _once(_order(data))
    if order is not None:
        count, drawn = len(order), torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
        first, second = (part.sort().values for part in (drawn[: count // 2], drawn[count // 2 :]))
        parts = _chosen(data, order, first), _chosen(data, order, second)
    elif single is not None:
        size = size_of(single)
        drawn = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        parts = [samples_of(single, size, drawn[: size // 2])], [samples_of(single, size, drawn[size // 2 :])]
    else:
        parts = _Every(data, 1), _Every(data, 0)
    made = Halves(*(Half(part, sample_count(part)) for part in parts))
    if min(made.search.samples, made.judge.samples) < 2:
        raise TrainingError(
            "validation data: a search needs two halves of them, each of at least two samples or batches, and "
            f"only {made.search.samples + made.judge.samples} samples were given"
        )
    return made


def few_of(data: Any, most: int | None = None, seed: int = 0) -> Any:
    """``most`` samples of ``data``, drawn with ``seed``; all of them where there are no more, or by default.

    Those of a loader that draws are settled, so that two networks meet the same ones in the same order: its batches
    where it makes them its own way. Data come back as they are where every pass reads the same, or none has an index.
    """
    order = _order(data)
    if order is None:
        return data
    if most is None or len(order) <= most or isinstance(order[0], list):
        return _chosen(data, order, torch.arange(len(order))) if draws(data) else data
    drawn = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
    return _chosen(data, order, drawn[:most].sort().values)


def _single(data: Any) -> Any:
    """The one batch that the data are; None where they are more, or samples."""
    if isinstance(data, Mapping):
        return data
    if isinstance(data, list) and len(data) == 1 and feed.in_memory(data) is None:
        return data[0]
    return None


def _order(data: Any) -> Sequence[Any] | None:
    """Indices of the samples, or of a loader that makes batches its own way the lists of them; None where none has any.

    To be read once for all that is chosen: a sampler may draw others at the next look.
    """
    held = feed.in_memory(data)
    if held is not None:
        return range(len(held.inputs))
    if isinstance(data, DataLoader):
        return None if isinstance(data.dataset, IterableDataset) else _drawn(data)
    if isinstance(data, IterableDataset) or not (isinstance(data, Dataset) or is_hugging_face(data)):
        return None
    count = feed.length(data)
    return None if count is None else range(count)


def _once(order: Sequence[Any] | None) -> Sequence[Any] | None:
    """Without what a sampler draws again, which would stand in both halves."""
    repeats = isinstance(order, list) and len(order) > 0 and not isinstance(order[0], list)
    return sorted(set(order)) if repeats and order is not None else order


def _drawn(loader: DataLoader[Any]) -> list[Any]:
    with feed.undrawn(loader):
        found = [list(each) if isinstance(each, list | tuple) else int(each) for each in _source(loader)]
    return found if _makes_batches(loader) else sorted(found)


def _makes_batches(loader: DataLoader[Any]) -> bool:
    """Whether its own way, so that its batches stay as they are."""
    return loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler


def _source(loader: DataLoader[Any]) -> Any:
    """What says the order: of samples, or of batches where it makes them its own way."""
    return loader.batch_sampler if _makes_batches(loader) else getattr(loader.batch_sampler, "sampler", loader.sampler)


def draws(data: Any) -> bool:
    """Whether another pass may read others, or in another order."""
    return isinstance(data, DataLoader) and not isinstance(_source(data), SequentialSampler | Sequence)


def _chosen(data: Any, order: Sequence[Any], places: Tensor) -> Any:
    held = feed.in_memory(data)
    if held is not None:
        return _Held(held.inputs[places], None if held.labels is None else held.labels[places], held)
    chosen = [order[place] for place in places.tolist()]
    if is_hugging_face(data):
        return data.select(chosen)
    return _reading(data, chosen) if isinstance(data, DataLoader) else Subset(data, chosen)


def _reading(loader: DataLoader[Any], chosen: list[Any]) -> DataLoader[Any]:
    """The same loader, workers and all, of these indices of its data set alone, or of these batches of them."""
    batches: Any = loader.batch_sampler
    if _makes_batches(loader):
        batches = chosen
    elif batches is not None:
        batches = BatchSampler(chosen, batches.batch_size, drop_last=False)
    same = copy(loader)
    vars(same).update(sampler=chosen, batch_sampler=batches, _iterator=None)  # torch lets none be set by name
    return same


@dataclass(frozen=True, eq=False)
class _Held:
    """Samples in memory that are normalised as those they were taken from."""

    inputs: Tensor
    labels: Tensor | None
    origin: feed.InMemory

    def normalize(self, batch: Tensor) -> Tensor:
        return self.origin.normalize(batch)


@dataclass(frozen=True, eq=False)
class _Every:
    """Every other batch, from the first or from the second on."""

    data: Any
    start: int

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(batches_of(self.data, _BATCH)), self.start, None, 2)


@dataclass(frozen=True, eq=False)
class _Cut:
    """Batches of at most ``size`` samples, of data that may come in larger ones."""

    data: Any
    size: int

    def __iter__(self) -> Iterator[Any]:
        for batch in feed.ordered(self.data, self.size):
            count = size_of(batch)
            if count <= self.size or not divisible(arguments(batch), count):
                yield batch
                continue
            yield from (
                samples_of(batch, count, slice(start, start + self.size)) for start in range(0, count, self.size)
            )


def sample_count(part: Any) -> int:
    """How many samples they are, of data as ``halves`` takes them or of a part."""
    known = feed.samples(part)
    return sum(size_of(batch) for batch in part) if known is None else known
