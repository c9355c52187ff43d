"""How many samples a batch holds, and parts of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rankfold.batches.listed import LABELS, Listed, labels_of, marked
from rankfold.batches.nested import mapped, tensors_in


def given(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) that a batch holds beside its targets, whatever a model takes of them."""
    if isinstance(batch, Mapping):
        return (), {key: value for key, value in batch.items() if key not in LABELS}
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def size_of(batch: Any) -> int:
    """How many samples a batch holds: the members of a list of samples (``Listed``), or the first axis of its first
    tensor. Where that is a single row, which may be one for all samples, other tensors tell."""
    batch = marked(batch)
    args, kwargs = given(batch)
    for value in (*args, *kwargs.values()):
        if isinstance(value, Listed):
            return len(value)
    tensors = [tensor for tensor in tensors_in((args, kwargs)) if tensor.dim()]
    if tensors:
        return _rows(tensors, labels_of(batch))
    raise TypeError(
        f"a batch of type {type(batch).__name__} holds no tensor whose first axis is that of the samples: give tensors "
        "(torch.as_tensor makes one of an array), alone, in tuples or in mappings"
    )


def divisible(inputs: tuple[tuple[Any, ...], Mapping[str, Any]], size: int) -> bool:
    """Whether a part of a batch of ``size`` is known to be as the whole: every tensor has a row for each sample, or one
    for all. Not so for patches of pictures beside the text of a sample, nor for graphs, whose edges name nodes."""
    args, kwargs = inputs
    apart = [value for value in (*args, *kwargs.values()) if not isinstance(value, Listed)]
    return all(not tensor.dim() or tensor.shape[0] in (1, size) for tensor in tensors_in(apart))


def _rows(inputs: list[Tensor], target: Any) -> int:
    """Where the first input has a single row: as many as another input and the targets have, or, without targets, as
    one that is otherwise as the first, such as tokens beside their positions."""
    first = inputs[0]
    if len(first) != 1:
        return len(first)
    if isinstance(target, Tensor) and target.dim():
        return next((len(each) for each in inputs if len(each) == len(target)), 1)
    return next((len(each) for each in inputs if len(each) != 1 and each.shape[1:] == first.shape[1:]), 1)


def samples_of(batch: Any, size: int, chosen: slice | Tensor) -> Any:
    """Some samples of a batch of ``size``: those members of lists of samples, and rows of every tensor with as many;
    other values as they are."""

    def take(x: Any) -> Any:
        if isinstance(x, Listed):
            return Listed(x[chosen] if isinstance(chosen, slice) else (x[index] for index in chosen.tolist()))
        if not x.dim() or x.shape[0] != size:
            return x
        return x[chosen if isinstance(chosen, slice) else chosen.to(x.device)]

    return mapped(batch, take, whole=Listed)
