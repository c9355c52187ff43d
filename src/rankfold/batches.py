"""How a batch of any data loader is fed to a model, and where its labels and the model's logits are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

LABELS = ("labels", "label", "targets", "target")


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of the model for a batch: a tensor, ``(inputs, labels)``, ``(inputs,)`` or a mapping.

    In a mapping the labels are left out; in a pair the second member is taken as labels. An input that is itself a
    tuple or mapping is spread over the arguments.
    """
    if isinstance(batch, Mapping):
        return (), {key: value for key, value in batch.items() if key not in LABELS}
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def labels_of(batch: Any) -> Tensor | None:
    """The labels of a batch, or None."""
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABELS if key in batch), None)
    if isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[1], Tensor):
        return batch[1]
    return None


def logits_of(output: Any) -> Tensor:
    """The tensor that a loss is taken of: the output itself, its ``logits``, or the first tensor in it."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if hasattr(output, "logits"):
        return output.logits
    members = output.values() if isinstance(output, Mapping) else output
    if isinstance(output, Mapping | tuple | list) and any(isinstance(member, Tensor) for member in members):
        return next(member for member in members if isinstance(member, Tensor))
    raise TypeError(
        f"the model returned {type(output).__name__}; a tensor, something with logits, "
        "or a tuple or mapping that holds a tensor was expected"
    )


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor inside changed; mappings become dicts, tuples and lists keep their type."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside ``value``, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def moved(value: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """Every tensor inside ``value`` on ``device``, and floating ones in ``dtype`` where it is given."""

    def move(x: Tensor) -> Tensor:
        return x.to(device, dtype) if dtype is not None and x.is_floating_point() else x.to(device)

    return mapped(value, move)


def forward(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch, on the model's device and in its floating dtype."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    args, kwargs = arguments(batch)
    if parameter is not None:
        args = moved(args, parameter.device, parameter.dtype)
        kwargs = moved(kwargs, parameter.device, parameter.dtype)
    return model(*args, **kwargs)


def size_of(batch: Any) -> int:
    """How many samples a batch holds: the first axis of its first tensor."""
    args, kwargs = arguments(batch)
    for tensor in tensors_in((args, kwargs)):
        if tensor.dim():
            return tensor.shape[0]
    raise TypeError(f"a batch of {type(batch).__name__} holds no tensor with a batch axis")


def check_rereadable(data: Any) -> None:
    """``ValueError`` for data that can be read only once, where several passes are needed."""
    if isinstance(data, Iterator):
        raise ValueError(
            f"the data is a {type(data).__name__}, which can be read only once, and several passes are needed: "
            "give a list of batches, a data set or a loader"
        )


def batches_of(data: Any, batch_size: int = 256, limit: int | None = None) -> Iterator[Any]:
    """Batches of ``data`` up to ``limit`` samples: a data loader, an iterable of batches, a tensor, or samples.

    Objects with ``batches(batch_size)`` (the splits of ``rankfold.zoo``) and ``torch.utils.data.Dataset`` are cut
    into batches in their own order.
    """
    seen = 0
    for batch in _batches(data, batch_size):
        size = size_of(batch)
        if limit is not None and seen + size > limit:
            batch, size = _first(batch, limit - seen, size), limit - seen
        if size:
            yield batch
        seen += size
        if limit is not None and seen >= limit:
            return


def _batches(data: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(data, Tensor):
        return data.split(batch_size)
    if isinstance(data, Mapping) or (
        isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    ):
        return [data]
    if hasattr(data, "batches"):
        return data.batches(batch_size)
    if type(data).__module__.partition(".")[0] == "datasets" and hasattr(data, "with_format"):  # Hugging Face
        if not hasattr(data, "__len__"):
            raise ValueError("a streamed data set gives single samples: give a DataLoader over it, or batches")
        return _hugging_face(data, batch_size)
    if isinstance(data, torch.utils.data.Dataset) and not isinstance(data, torch.utils.data.IterableDataset):
        return torch.utils.data.DataLoader(data, batch_size=batch_size)
    return data


def _hugging_face(data: Any, batch_size: int) -> Iterator[dict[str, Any]]:
    """Batches of the numeric columns of a ``datasets.Dataset``; text must be tokenized first."""
    formatted = data.with_format("torch")
    for start in range(0, len(data), batch_size):
        rows = formatted[start : start + batch_size]
        batch = {key: value for key, value in rows.items() if isinstance(value, Tensor)}
        if not batch:
            raise ValueError(
                f"the data set has no column of equally shaped numbers, only {', '.join(rows)}: tokenize and pad it, "
                "or give a DataLoader with a collate_fn"
            )
        yield batch


def samples_of(batch: Any, size: int, chosen: slice | Tensor) -> Any:
    """Some samples of a batch of ``size``: those rows of every tensor with as many; other values as they are."""

    def take(x: Tensor) -> Tensor:
        if not x.dim() or x.shape[0] != size:
            return x
        return x[chosen if isinstance(chosen, slice) else chosen.to(x.device)]

    return mapped(batch, take)


def _first(value: Any, count: int, size: int) -> Any:
    return samples_of(value, size, slice(count))
