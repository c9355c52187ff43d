"""Samples held in memory, and the three parts of a data set."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from rankfold.zoo.errors import ZooError
from rankfold.zoo.pictures import Pictures
from rankfold.zoo.samples import Samples

VALIDATION_SEED = 0


@dataclass(frozen=True, eq=False)
class Split:
    """N samples: `inputs` (N, …) as stored, `labels` (N,) int64, or other targets (N, …); indexed like torch's Dataset.

    `inputs` are a tensor, or `Pictures` that are decoded when they are indexed.

    uint8 inputs (N, C, H, W) or (N, H, W) are pixels, normalised when they are taken: (pixel / scale − mean) / std,
    with `mean`, `std` (C,) float32. Inputs of another dtype, and vectors (N, K), are taken as they are.
    """

    inputs: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    scale: float = 255.0

    def __repr__(self) -> str:
        """Sizes alone: the samples themselves would fill the screen."""
        shape = ", ".join(map(str, self.inputs.shape))
        return f"Split({len(self):,} samples, inputs ({shape}) {str(self.inputs.dtype).removeprefix('torch.')})"

    def normalize(self, batch: Tensor) -> Tensor:
        """Stored samples (B, …) to what a model takes: float32 for pixels, unchanged otherwise."""
        if batch.dtype != torch.uint8 or batch.ndim < 3:
            return batch
        channels = (-1, *(1,) * (batch.ndim - 2))
        return (batch.float() / self.scale - self.mean.view(channels)) / self.std.view(channels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Sample `index` normalised, without batch dimension, and its label (a scalar int64 tensor)."""
        return self.normalize(self.inputs[index].unsqueeze(0)).squeeze(0), self.labels[index]

    def batches(self, batch_size: int, shuffle: bool = False, generator: torch.Generator | None = None) -> "Batches":
        """Normalised (inputs, labels) batches, to be iterated any number of times; the last may be smaller.

        `shuffle` draws a new order from `generator` at every iteration; ValueError without one.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if shuffle and generator is None:
            raise ValueError("shuffle=True needs a torch.Generator")
        return Batches(self, batch_size, generator if shuffle else None)

    def subset(self, indices: Tensor | Sequence[int]) -> "Split":
        """The samples at `indices` (K,) int64, in that order, copied; pictures read when asked for stay so."""
        inputs: Any = self.inputs.part(indices) if isinstance(self.inputs, Pictures) else self.inputs[indices]
        return replace(self, inputs=inputs, labels=self.labels[indices])

    def take(self, count: int, generator: torch.Generator) -> "Split":
        """`count` samples drawn without replacement; ValueError if there are fewer."""
        if not 0 < count <= len(self):
            raise ValueError(f"{count} samples cannot be taken of {len(self)}")
        return self.subset(torch.randperm(len(self), generator=generator)[:count])


class _Subsets(Protocol):
    @property
    def labels(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor, /) -> Self: ...


_Part = TypeVar("_Part", bound=_Subsets)


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of a split; with a generator, each iteration in a new random order."""

    split: Split
    batch_size: int
    generator: torch.Generator | None

    def __len__(self) -> int:
        return ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        split = self.split
        if self.generator is None:
            order = torch.arange(len(split))
        else:
            order = torch.randperm(len(split), generator=self.generator)
        for indices in order.split(self.batch_size):
            yield split.normalize(split.inputs[indices]), split.labels[indices]


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: `train` to learn from, `validation` to choose on, `test` to report once; None where there is none.

    Each a Split; of a factory's data also `rankfold.zoo.samples.Samples`, a DataLoader or batches. `classes` is None
    where the labels are not known, or are none of classes. `objective`: what outputs and targets mean, where the
    factory says so. `cut`: of text, its `length` in tokens and number of `windows`, where they were asked for.
    """

    name: str
    train: Any
    validation: Any
    test: Any
    classes: int | None
    objective: Any = None
    cut: Mapping[str, int] = field(default_factory=dict)

    @property
    def channels(self) -> int | None:
        """Channels of the images; None of other inputs."""
        return self.train.inputs.shape[1] if isinstance(self.train, Split) and self.train.inputs.ndim == 4 else None

    def needed(self, part: str) -> Any:
        """The part called so; ``ZooError`` where there is none."""
        found = getattr(self, part)
        if found is None:
            raise ZooError(
                f"{self.name}: there is no {part} part: give --split validation, or let the factory return "
                "(train, validation, test)"
            )
        return found

    def amount(self, part: str) -> str:
        """How much there is in `part`, for a person: samples, or of a DataLoader its batches."""
        found = getattr(self, part)
        try:
            count = len(found)
        except TypeError:
            return f"the {part} data"
        return f"{count} {part} {'samples' if isinstance(found, Split | Samples) else 'batches'}"


def of_classes(labels: Tensor) -> bool:
    """Whether there is one class for each sample."""
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    return labels.dim() == 1 and whole and bool((labels >= 0).all())


def hold_out(split: _Part, count: int) -> tuple[_Part, _Part]:
    """`split` without `count` samples, and those samples: always the same, in the classes' proportions.

    Where targets are no classes, a class has fewer than two samples, or a part fewer than the classes, proportions
    cannot be kept and the choice is uniform. Both parts keep the order of `split`. ZooError unless 0 < count <
    len(split).
    """
    return parted(split, held_indices(split.labels, len(split), count))


def held_indices(labels: Tensor | None, samples: int, count: int) -> Tensor:
    """The indices that ``hold_out`` holds out of so many samples, ascending; `labels` (N,) where they have any."""
    if not 0 < count < samples:
        raise ZooError(f"{count} samples cannot be held out of {samples}")
    from sklearn.model_selection import train_test_split  # a second to import: only where a choice is made

    proportional = False
    if labels is not None and of_classes(labels):
        sizes = labels.bincount()
        sizes = sizes[sizes > 0]
        proportional = bool(sizes.min() >= 2) and len(sizes) <= min(count, samples - count)
    _, held = train_test_split(
        torch.arange(samples).numpy(),
        test_size=count,
        random_state=VALIDATION_SEED,
        stratify=labels.numpy() if proportional and labels is not None else None,
    )
    return torch.from_numpy(held).sort().values


def parted(split: _Part, held: Tensor) -> tuple[_Part, _Part]:
    """`split` without the samples at `held` (K,), and those."""
    rest = torch.ones(len(split), dtype=torch.bool)
    rest[held] = False
    return split.subset(rest.nonzero().squeeze(1)), split.subset(held)
