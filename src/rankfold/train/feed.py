"""Labelled data of any kind as batches: shuffled anew in every epoch to train, in order to evaluate."""

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from rankfold.batches import batches_of, labels_of
from rankfold.train.augment import augment
from rankfold.train.errors import TrainingError
from rankfold.train.recipe import Augment


@runtime_checkable
class InMemory(Protocol):
    """Samples held as tensors, such as `rankfold.zoo.Split`: taken by index, normalised as they are taken."""

    @property
    def inputs(self) -> Tensor: ...  # (N, …), any dtype

    @property
    def labels(self) -> Tensor: ...  # (N,)

    def normalize(self, batch: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class _Pair:
    inputs: Tensor
    labels: Tensor

    def normalize(self, batch: Tensor) -> Tensor:
        return batch


def in_memory(data: Any) -> InMemory | None:
    """`data` as tensors to be indexed, if that is what it is: a split, a TensorDataset, a pair of tensors."""
    if isinstance(data, InMemory):
        return data
    pair = data.tensors if isinstance(data, TensorDataset) else data
    if isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair):
        return _Pair(*pair)
    return None


def check(data: Any, role: str) -> None:
    """TrainingError, naming `role`, if `data` is empty, of unknown length or wrongly labelled."""
    tensors = in_memory(data)
    if tensors is not None:
        if len(tensors.inputs) != len(tensors.labels):
            raise TrainingError(
                f"{role} data: {len(tensors.inputs)} inputs but {len(tensors.labels)} labels; "
                "give one label for every input"
            )
        _check_kind(tensors.labels, role)
        if tensors.labels.numel() and int(tensors.labels.min()) < 0:
            raise TrainingError(
                f"{role} data: label {int(tensors.labels.min())} is negative: classes count from 0; renumber them, or "
                "leave those samples out"
            )
    elif not isinstance(data, Sized) or isinstance(data, Mapping):
        raise TrainingError(
            f"{role} data: a {type(data).__name__} has no usable length; give a torch Dataset, a DataLoader "
            "over one, a list of batches, or a pair of tensors (inputs, labels)"
        )
    count = len(tensors.labels) if tensors is not None else len(data)
    if count == 0:
        raise TrainingError(f"{role} data: it is empty; give at least one labelled sample")


def labels(batch: Any, role: str) -> Tensor:
    """Class indices (B,) or (B, T) int64 of a batch; TrainingError if there are none."""
    found = labels_of(batch)
    if found is None:
        raise TrainingError(
            f"{role} data: a batch holds no labels; give batches (inputs, labels), or mappings with a key labels"
        )
    _check_kind(found, role)
    return found.long()


def check_range(found: Tensor, classes: int, role: str) -> None:
    """TrainingError if a label is not in 0 … classes − 1."""
    if found.numel() and (int(found.min()) < 0 or int(found.max()) >= classes):
        wrong = int(found.min()) if int(found.min()) < 0 else int(found.max())
        raise TrainingError(
            f"{role} data: label {wrong} is outside 0 … {classes - 1}, the model has {classes} outputs; "
            "renumber the labels or widen the last layer"
        )


def ordered(data: Any, batch_size: int) -> Iterator[Any]:
    """Every sample once, in the data's own order; a DataLoader keeps its own batches."""
    tensors = in_memory(data)
    if tensors is None:
        yield from batches_of(data, batch_size)
        return
    for start in range(0, len(tensors.labels), batch_size):
        part = slice(start, start + batch_size)
        yield tensors.normalize(tensors.inputs[part]), tensors.labels[part]


@dataclass(frozen=True, eq=False)
class Feed:
    """Training data. `len` is the batches of an epoch; DataLoaders and lists of batches keep their own.

    Other data are cut into full batches, so that no tiny one disturbs batch normalisation; which samples fall
    in the remainder changes with every epoch.
    """

    data: Any
    batch_size: int
    augment: Augment | None

    def __len__(self) -> int:
        if self.is_batched:
            return len(self.data)
        tensors = in_memory(self.data)
        count = len(tensors.labels) if tensors is not None else len(self.data)
        return max(count // self.batch_size, 1)

    def epoch(self, generator: torch.Generator) -> Iterator[Any]:
        """The batches of one epoch; order and augmentation drawn from `generator` (on the CPU)."""
        tensors = in_memory(self.data)
        if tensors is None:
            yield from (self._augmented(batch, generator) for batch in self._loader(generator))
            return
        order = torch.randperm(len(tensors.labels), generator=generator)
        for index in order[: len(self) * self.batch_size].split(self.batch_size):
            # Before normalisation, so that what enters at the border is black, as in training elsewhere.
            raw, target = self._augmented((tensors.inputs[index], tensors.labels[index]), generator)
            yield tensors.normalize(raw), target

    def generators(self) -> list[torch.Generator]:
        """The generators that the user's own loader draws from."""
        parts = [self.data, getattr(self.data, "sampler", None)]
        parts.append(getattr(getattr(self.data, "batch_sampler", None), "sampler", None))
        found = [getattr(part, "generator", None) for part in parts]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    @property
    def is_batched(self) -> bool:
        """Whether the data come in batches of their own."""
        if in_memory(self.data) is not None:
            return False
        return not isinstance(self.data, Dataset) or isinstance(self.data, IterableDataset)

    def _loader(self, generator: torch.Generator) -> Any:
        if self.is_batched:
            return self.data
        whole = len(self.data) >= self.batch_size
        return DataLoader(self.data, self.batch_size, shuffle=True, drop_last=whole, generator=generator)

    def _augmented(self, batch: Any, generator: torch.Generator) -> Any:
        if self.augment is None:
            return batch
        if not isinstance(batch, tuple | list) or not isinstance(batch[0], Tensor):
            raise TrainingError(
                f"train data: augmentation needs batches (images, labels), got a {type(batch).__name__}: "
                "use augment=None"
            )
        return augment(batch[0], self.augment, generator), *batch[1:]


def _check_kind(found: Tensor, role: str) -> None:
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TrainingError(
            f"{role} data: labels must be class indices (integers), got {found.dtype}: convert them with .long()"
        )
