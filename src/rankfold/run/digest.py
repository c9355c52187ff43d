"""What data are, by their content: a hash over samples of a split, so that a finished run is not handed out for others.

A sample here and there, not all of them: data sets that differ in many places are told apart, one changed pixel in the
middle of a million images is not. Labels in memory are hashed whole.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from rankfold.batches import LABELS, batches_of

SAMPLES = 64  # of a split, or all where there are no more
_WHOLE = 1 << 24  # bytes of labels that are hashed whole
_ITEMS = 1 << 16  # values of a list within one sample


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


def digest(data: Any) -> str | None:
    """How many samples ``data`` has, its type, and 16 hexadecimal digits of what is in it; None for None.

    ``data``: a tensor, a pair or mapping of tensors, a data set, a loader (its data set is read, not the loader, whose
    order and generator stay as they are), a list of samples or batches, anything with ``batches(size)``. The first, the
    last and evenly spaced samples between them are hashed, ``SAMPLES`` in all, inputs and targets. Random augmentation
    is drawn from a fixed seed, and all generators are left as found; where a sample is another one at every look even
    so, labels in memory alone tell. What can be read only once is known by its type. Cost: two looks at 64 samples.
    """
    if data is None:
        return None
    name = f"{_length(data)} of {type(data).__name__}"
    if isinstance(data, Iterator):
        return name
    first, second = (_hashed(data) for _ in range(2))
    return f"{name} {first if first == second else _hashed(data, labels_alone=True)}"


def _length(data: Any) -> int | str:
    try:
        return len(data)
    except TypeError:  # also of a loader over data without a length
        return "?"


def _hashed(data: Any, labels_alone: bool = False) -> str:
    hashed = hashlib.sha256()
    with _fixed(), torch.no_grad():
        _feed_labels(hashed, data)
        if not labels_alone:
            for sample in _samples(data):
                _feed(hashed, sample)
    return hashed.hexdigest()[:16]


def _samples(data: Any) -> Iterator[Any]:
    if isinstance(data, DataLoader):
        yield f"batches of {data.batch_size}"
        yield from _samples(data.dataset)
        return
    tensors = _parallel(data)
    if tensors:
        count = next(iter(tensors.values())).shape[0]
        for name, tensor in tensors.items():
            yield name, tuple(tensor.shape), tensor[torch.tensor(_spread(count), device=tensor.device)]
        return
    if _indexed(data):
        chosen = _spread(len(data))
        rows = max(1, SAMPLES // max(1, len(chosen)))
        for index in chosen:
            item = data[index]
            # a list holds batches, of which some rows are enough; a data set holds samples
            yield _cut(item, rows) if isinstance(data, list | tuple) else item
        return
    if isinstance(data, IterableDataset):
        yield from islice(iter(data), SAMPLES)
    elif hasattr(data, "batches") or isinstance(data, Iterable):
        for batch in islice(batches_of(data, SAMPLES), SAMPLES):
            yield _cut(batch, SAMPLES)


def _parallel(data: Any) -> dict[str, Tensor]:
    """Tensors of one length that hold the samples themselves; empty where data are something else."""
    found: Any = {}
    if isinstance(data, Tensor):
        found = {"": data}
    elif isinstance(data, Mapping):
        found = dict(data)
    elif isinstance(data, tuple) or hasattr(data, "tensors"):
        found = dict(enumerate(getattr(data, "tensors", data)))
    alike = found and all(isinstance(value, Tensor) and value.dim() for value in found.values())
    if not alike or len({value.shape[0] for value in found.values()}) > 1:
        return {}
    return {str(name): value for name, value in found.items()}


def _indexed(data: Any) -> bool:
    return isinstance(data, Sequence) or (
        hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping)
    )


def _spread(count: int) -> list[int]:
    """The first, the last and evenly spaced numbers between them."""
    if count <= SAMPLES:
        return list(range(count))
    return sorted({round(i * (count - 1) / (SAMPLES - 1)) for i in range(SAMPLES)})


def _cut(batch: Any, rows: int) -> Any:
    """The first, last and middle rows of every tensor of a batch."""
    if isinstance(batch, Tensor) and batch.dim() and batch.shape[0] > rows:
        count = batch.shape[0]
        return batch[torch.tensor([(i * count) // rows for i in range(rows - 1)] + [count - 1], device=batch.device)]
    if isinstance(batch, Mapping):
        return {key: _cut(value, rows) for key, value in batch.items()}
    return [_cut(value, rows) for value in batch] if isinstance(batch, tuple | list) else batch


def _feed_labels(hashed: _Hash, data: Any) -> None:
    data = data.dataset if isinstance(data, DataLoader) else data
    for name in (*LABELS, "tensors"):
        values = getattr(data, name, None)
        values = values[-1] if name == "tensors" and isinstance(values, tuple) and values else values
        if (isinstance(values, Tensor | np.ndarray) and values.nbytes <= _WHOLE) or (
            isinstance(values, list) and len(values) <= _ITEMS
        ):
            _feed(hashed, values)


def _feed(hashed: _Hash, value: Any) -> None:
    """Hash one value and its kind, whatever it is made of."""
    if isinstance(value, Tensor):
        hashed.update(f"{value.dtype}{tuple(value.shape)}".encode())
        plain = value.detach()
        if plain.layout is torch.strided and not plain.is_meta and not plain.is_quantized:
            flat = plain.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            hashed.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    elif isinstance(value, np.ndarray):
        hashed.update(f"{value.dtype}{value.shape}".encode())
        hashed.update(np.ascontiguousarray(value).tobytes() if value.dtype != object else repr(value.tolist()).encode())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            hashed.update(f"{key}:".encode())
            _feed(hashed, item)
    elif isinstance(value, tuple | list):
        hashed.update(f"{len(value)}[".encode())
        for item in value[:_ITEMS]:
            _feed(hashed, item)
    elif isinstance(value, bytes):
        hashed.update(value)
    elif value is None or isinstance(value, str | int | float | complex | np.generic):
        hashed.update(f"{type(value).__name__} {value!r};".encode())
    elif hasattr(value, "tobytes"):  # an image of PIL
        hashed.update(f"{getattr(value, 'mode', '')}{getattr(value, 'size', '')}".encode())
        hashed.update(value.tobytes())
    else:
        hashed.update(type(value).__name__.encode())


@contextmanager
def _fixed() -> Iterator[None]:
    """Every global generator that augmentation draws from at one state, and as it was afterwards."""
    python, old_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002, what transforms draw from
    with torch.random.fork_rng(devices=[]):
        try:
            torch.default_generator.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            yield
        finally:
            random.setstate(python)
            np.random.set_state(old_numpy)  # noqa: NPY002
