"""Data of any kind as batches: shuffled anew in every epoch to train, in order to evaluate."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, TensorDataset

from rankfold.batches import Columns, batches_of, collated, is_hugging_face, labels_of, size_of
from rankfold.train.augment import augment
from rankfold.train.errors import TrainingError
from rankfold.train.recipe import Augment


@runtime_checkable
class InMemory(Protocol):
    """Samples held as tensors, such as `rankfold.zoo.Split`: taken by index, normalised as they are taken."""

    @property
    def inputs(self) -> Tensor: ...  # (N, …), any dtype

    @property
    def labels(self) -> Tensor | None: ...  # (N, …), any dtype

    def normalize(self, batch: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class _Held:
    inputs: Tensor
    labels: Tensor | None

    def normalize(self, batch: Tensor) -> Tensor:
        return batch


def in_memory(data: Any) -> InMemory | None:
    """`data` as tensors to be indexed, if that is what it is: a split, a tensor or a pair of them, a TensorDataset."""
    if isinstance(data, InMemory):
        return data
    if isinstance(data, Tensor):
        return _Held(data, None)
    parts = data.tensors if isinstance(data, TensorDataset) else data
    if isinstance(parts, tuple) and len(parts) in (1, 2) and all(isinstance(part, Tensor) for part in parts):
        return _Held(parts[0], parts[1] if len(parts) == 2 else None)
    return None


def length(data: Any) -> int | None:
    """Samples of a data set, batches of a loader or list; None where they do not know."""
    if isinstance(data, Mapping):
        return 1
    try:
        return len(data)
    except TypeError:
        return None


def samples(data: Any) -> int | None:
    """How many samples one pass over ``data`` reads, also of a pair, a loader or batches; None where only a pass
    tells."""
    held = in_memory(data)
    if held is not None:
        return len(held.inputs)
    if isinstance(data, DataLoader):
        batches = data.batch_sampler
        if isinstance(data.dataset, IterableDataset) or not isinstance(batches, BatchSampler):
            return None
        drawn = length(batches.sampler)
        return drawn if drawn is None or not batches.drop_last else drawn - drawn % batches.batch_size
    if isinstance(data, Mapping | tuple | list):
        return sum(map(size_of, batches_of(data)))
    known = isinstance(data, Dataset) or is_hugging_face(data) or hasattr(data, "batches")
    return length(data) if known else None


def check(data: Any, role: str, *, again: bool = False) -> None:
    """TrainingError, naming `role`, if `data` is empty, no data at all, or its labels are more or fewer than its
    inputs; with `again`, which needs several passes, also if it can be read only once."""
    tensors = in_memory(data)
    if tensors is not None:
        if tensors.labels is not None and len(tensors.inputs) != len(tensors.labels):
            raise TrainingError(
                f"{role} data: there are {len(tensors.inputs)} inputs and {len(tensors.labels)} labels: give one "
                "label for every input"
            )
        count: int | None = len(tensors.inputs)
    elif data is None or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise TrainingError(
            f"{role} data: give a torch Dataset, a DataLoader, a list of batches, or tensors (inputs, targets), "
            f"not a {type(data).__name__}"
        )
    elif again and isinstance(data, Iterator):
        raise TrainingError(
            f"{role} data: a {type(data).__name__} can be read only once, and every epoch reads it: give list(it), a "
            "data set or a loader"
        )
    else:
        count = length(data)
    if count == 0:
        raise TrainingError(f"{role} data: it is empty; give at least one sample")


def misread(data: Any) -> str:
    """What may have been meant by data without targets that were taken for batches; empty where nothing tells."""
    inputs, targets = data if isinstance(data, tuple | list) and len(data) == 2 else (None, None)
    if not isinstance(inputs, Tensor) or not inputs.dim():
        return ""
    if isinstance(data, list) and isinstance(targets, Tensor) and len(targets) == len(inputs):
        return "a list is taken for batches, here two without targets: give inputs and their targets as a tuple, (x, y)"
    if not isinstance(targets, Tensor) and length(targets) == len(inputs):
        words = isinstance(targets, tuple | list) and isinstance(targets[0], str)
        return (
            f"the targets of a pair must be a tensor, and are a {type(targets).__name__}{' of text' * words}: "
            f"{'number the classes, ' * words}give torch.tensor(targets); any other pair is taken for two batches"
        )
    return ""


def ordered(data: Any, batch_size: int) -> Iterator[Any]:
    """Every sample once, in the data's own order; a DataLoader keeps its own batches."""
    tensors = in_memory(data)
    if tensors is None:
        yield from batches_of(data, batch_size)
        return
    for start in range(0, len(tensors.inputs), batch_size):
        part = slice(start, start + batch_size)
        yield _batch(tensors, tensors.normalize(tensors.inputs[part]), part)


def _batch(tensors: InMemory, inputs: Tensor, part: Any) -> tuple[Tensor, ...]:
    return (inputs,) if tensors.labels is None else (inputs, tensors.labels[part])


@contextmanager
def undrawn(*data: Any) -> Iterator[None]:
    """Within the block ``data`` may be read: what torch's generator, and those of the loaders, draw next is afterwards
    what it was."""
    kept = [(each, each.get_state()) for part in data for each in Feed(part, 1, None).generators()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for generator, state in kept:
                generator.set_state(state)


@dataclass(frozen=True, eq=False)
class Feed:
    """Training data. `len` is the batches of an epoch; DataLoaders and lists of batches keep their own.

    Other data are cut into full batches, so that no tiny one disturbs batch normalisation; which samples fall
    in the remainder changes with every epoch. Where the data do not know how many they are, an epoch is counted first.
    """

    data: Any
    batch_size: int
    augment: Augment | None

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        tensors = in_memory(self.data)
        known = len(tensors.inputs) if tensors is not None else length(self.data)
        if known is None:
            return max(sum(1 for _ in self._loader(torch.Generator())), 1)
        if self.is_batched:
            return known
        cut = -(-known // self.batch_size) if isinstance(self.data, IterableDataset) else known // self.batch_size
        return max(cut, 1)

    def epoch(self, generator: torch.Generator) -> Iterator[Any]:
        """The batches of one epoch; order and augmentation drawn from `generator` (on the CPU)."""
        tensors = in_memory(self.data)
        if isinstance(self.data, DataLoader) and self.data.persistent_workers:
            self.data._iterator = None  # its workers would go on from the random states of the epoch before
        if tensors is None:
            yield from (self._augmented(batch, generator) for batch in self._loader(generator))
            return
        order = torch.randperm(len(tensors.inputs), generator=generator)
        for index in order[: len(self) * self.batch_size].split(self.batch_size):
            # Before normalisation, so that what enters at the border is black, as in training elsewhere.
            raw, *target = self._augmented(_batch(tensors, tensors.inputs[index], index), generator)
            yield tensors.normalize(raw), *target

    def generators(self) -> list[torch.Generator]:
        """The generators that the user's own loader draws from."""
        parts = [self.data, getattr(self.data, "sampler", None)]
        parts.append(getattr(getattr(self.data, "batch_sampler", None), "sampler", None))
        found = [getattr(part, "generator", None) for part in parts]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    @property
    def is_batched(self) -> bool:
        """Whether the data come in batches of their own."""
        return in_memory(self.data) is None and not isinstance(self.data, Dataset) and not is_hugging_face(self.data)

    def _loader(self, generator: torch.Generator) -> Any:
        if isinstance(self.data, Mapping):
            return [self.data]
        if self.is_batched or isinstance(self.data, IterableDataset):
            return batches_of(self.data, self.batch_size)
        data = Columns(self.data) if is_hugging_face(self.data) else self.data
        whole = len(data) >= self.batch_size
        asked: dict[str, Any] = {"drop_last": whole, "generator": generator, "collate_fn": collated}
        return DataLoader(data, self.batch_size, shuffle=True, **asked)

    def _augmented(self, batch: Any, generator: torch.Generator) -> Any:
        if self.augment is None:
            return batch
        if not isinstance(batch, tuple | list) or not isinstance(batch[0], Tensor):
            raise TrainingError(
                f"train data: augmentation needs batches (images, labels), got a {type(batch).__name__}: "
                "use augment=None"
            )
        target = labels_of(batch)
        if isinstance(target, Tensor) and target.dim() > 2:
            raise TrainingError(
                f"train data: augmentation moves images, and not targets of shape {tuple(target.shape)} with "
                "them: use augment=None"
            )
        return augment(batch[0], self.augment, generator), *batch[1:]
