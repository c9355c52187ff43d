"""How a batch of any data loader is fed to a model, and where its targets are."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rankfold.batches.listed import FED as FED
from rankfold.batches.listed import LABELS as LABELS
from rankfold.batches.listed import Listed as Listed
from rankfold.batches.listed import labels_of as labels_of
from rankfold.batches.listed import marked as marked
from rankfold.batches.misfit import InputError as InputError
from rankfold.batches.misfit import explained as explained
from rankfold.batches.misfit import mistakable
from rankfold.batches.nested import changed as changed
from rankfold.batches.nested import mapped as mapped
from rankfold.batches.nested import moved as moved
from rankfold.batches.nested import tensors_in as tensors_in
from rankfold.batches.place import place_of as place_of
from rankfold.batches.samples import divisible as divisible
from rankfold.batches.samples import given
from rankfold.batches.samples import samples_of as samples_of
from rankfold.batches.samples import size_of as size_of

Model = TypeVar("Model", bound=nn.Module)
_STATE = 1 << 20  # numbers in a buffer; what is larger is taken for a weight, and not copied


class LeftOut(UserWarning):
    """What a batch holds and the model does not take."""


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode inside; every module's own mode restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode and no gradients inside; every module's own mode restored afterwards."""
    with in_eval_mode(model), torch.no_grad():
        yield model


@contextmanager
def as_found(model: nn.Module | None) -> Iterator[None]:
    """Buffers of up to a million numbers are afterwards what they were before, also where a forward pass has put others
    into their places. Cost: a copy of them."""
    states = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module in (() if model is None else model.modules())
        for name, buffer in module._buffers.items()
        if type(buffer) is Tensor and buffer.layout is torch.strided and not buffer.is_meta and buffer.numel() <= _STATE
    ]
    try:
        yield
    finally:
        with torch.inference_mode():  # also buffers that were made in it
            for buffers, name, buffer, before in states:
                buffers[name] = buffer
                if not buffer.equal(before):
                    buffer.copy_(before)


def copied(model: Model, memo: Mapping[int, Any] = MappingProxyType({})) -> Model:
    """A deep copy, also of a model that keeps outputs of its last call, or weights computed for it, with their graph:
    these without it. ``memo``: what takes the place of which tensor or module, by its id."""
    kept = (tensor for module in model.modules() for tensor in tensors_in(list(vars(module).values())))
    known: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in kept if tensor.grad_fn is not None}
    return copy.deepcopy(model, {**known, **memo})


def cut_(model: nn.Module) -> None:
    """Have a model that keeps outputs of its last call keep them without their graph, so that it can be copied."""
    for module in model.modules():
        for name, value in vars(module).items():
            if any(tensor.grad_fn is not None for tensor in tensors_in(value)):
                vars(module)[name] = mapped(value, lambda x: x if x.grad_fn is None else x.detach())


def arguments(batch: Any, model: nn.Module | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of the model for a batch: a tensor, ``(inputs, targets)``, ``(inputs,)`` or a mapping.

    In a mapping the targets are left out; in a pair the second member is taken as targets. An input that is itself a
    tuple or mapping is spread over the arguments. With ``model``, what the signature of its ``forward`` does not name
    is left out of a mapping too, which a warning (``LeftOut``) tells once. Raises ``TypeError`` where that is not what
    it takes.
    """
    args, kwargs = _arguments(batch, model)
    if model is not None:
        _check_count(model, args, kwargs, batch)
    return args, kwargs


def two_halves(batch: Any, model: nn.Module) -> bool:
    """Whether ``model`` is fed an input for a decoder beside that for an encoder."""
    return any(isinstance(arguments(batch, model)[1].get(name), Tensor) for name in FED)


def _arguments(batch: Any, model: nn.Module | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = given(batch)
    more = _for_decoder(batch, model) if isinstance(batch, Mapping) else {}
    return args, _taken(more | kwargs, model, labels_of(batch) is None)


def _for_decoder(batch: Mapping[str, Any], model: nn.Module | None) -> dict[str, Any]:
    """What models of two halves of transformers would feed their decoder with where a batch holds its labels alone."""
    shifted, labels = getattr(model, "prepare_decoder_input_ids_from_labels", None), batch.get("labels")
    if shifted is None or any(name in batch for name in FED) or not isinstance(labels, Tensor) or labels.dim() != 2:
        return {}
    return {"decoder_input_ids": shifted(labels)}


def _taken(named: dict[str, Any], model: nn.Module | None, unlabelled: bool) -> dict[str, Any]:
    names = _inputs_of(model) if named and model is not None else None
    left = [] if names is None else [key for key in named if key not in names]
    if not left or names is None or model is None:
        return named
    target = f"; if {'it' if len(left) == 1 else 'one'} is the target, call it {LABELS[0]}" * unlabelled
    warnings.warn(
        f"{type(_inner(model)).__name__}.forward takes no argument {', '.join(map(str, left))}: this part of "
        f"every batch is ignored{target}",
        LeftOut,
        stacklevel=2,
    )
    return {key: value for key, value in named.items() if key in names}


def _inputs_of(model: nn.Module) -> set[str] | None:
    """Names that ``forward`` takes; None where it takes any, or does not say."""
    inner = _inner(model)
    try:
        parameters = inspect.signature(inner.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    # models of transformers take any name, and have named the inputs of their own
    return None if any_name and not (names and hasattr(inner, "main_input_name")) else names


def _inner(model: nn.Module) -> nn.Module:
    """The module inside of what torch wraps around it to compile it or to run it in parallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def unmasked(named: Any) -> Any:
    """A mapping of inputs, alone or in a pair, without its masks; anything else as it is. Code of a model looks into
    the values of masks to see whether it may leave them out; which modules are called with which shapes does not depend
    on it."""
    if isinstance(named, tuple) and named and isinstance(named[0], Mapping):
        return (unmasked(named[0]), *named[1:])
    return {k: x for k, x in named.items() if "mask" not in k} if isinstance(named, Mapping) else named


def forward(model: nn.Module, batch: Any, begun: Callable[[], None] = lambda: None) -> Any:
    """The model's output for a batch, on the model's device and in its floating dtype. ``begun`` is called when the
    inputs are ready.

    Raises ``TypeError`` for a batch with fewer inputs than the model needs, and ``InputError`` that names the layer for
    one whose inputs do not fit it.
    """
    args, kwargs = arguments(batch, model)
    if (place := place_of(model.modules())) is not None:
        args, kwargs = (moved(part, place.device, place.dtype) for part in (args, kwargs))
    begun()
    with explained(model.named_modules):
        return model(*args, **kwargs)


def inputs_of(model: nn.Module, batch: Any) -> Any:
    """What the model is called with for a batch, on its device and in its precision: a mapping of keyword arguments, or
    a tuple of positional ones."""
    args, kwargs = arguments(batch, model)
    given, place = kwargs or args, place_of(model.modules())
    return given if place is None or place.is_meta else moved(given, place.device, place.dtype)


def first_inputs(model: nn.Module, data: Any) -> Any:
    """``inputs_of`` the first two samples."""
    if data is None:
        raise ValueError("an input of the model is needed to count its cost: give example=, or data=")
    for batch in batches_of(data, 2, 2):
        return inputs_of(model, batch)
    raise ValueError("the data is empty: give at least one batch")


def _check_count(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Any) -> None:
    inner = _inner(model)
    try:
        signature = inspect.signature(inner.forward)
    except (TypeError, ValueError):
        return
    if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()) and (said := mistakable(inner, batch)):
        warnings.warn(said, LeftOut, stacklevel=2)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        if isinstance(batch, Mapping):
            given = f"a batch that holds {', '.join(map(str, batch)) or 'nothing'}"
            parts = "train" in batch and "train" not in signature.parameters
            remedy = (
                "these are the parts of a data set: give one of them, as data['train']"
                if parts
                else (
                    f"the model takes {', '.join(signature.parameters)}: give the inputs these names (names of targets "
                    f"are {', '.join(LABELS)})"
                )
            )
        else:
            given = f"a batch of {len(batch)}" if isinstance(batch, tuple | list) else "a batch of one tensor"
            remedy = (
                "give batches of the form (inputs, targets); several inputs are a tuple or mapping of their "
                "own: ((a, b), targets), or ((a, b),) without targets; a list that is one input is its only member: "
                "(([a, b],), targets), and so is a mapping: (({'a': a},), targets)"
            )
        raise TypeError(f"{type(inner).__name__}.forward: {error}. It was called with {given}: {remedy}") from None


def check_rereadable(data: Any) -> None:
    """``ValueError`` for data that can be read only once, where several passes are needed."""
    if isinstance(data, Iterator):
        raise ValueError(
            f"the data are a {type(data).__name__}, which can be read only once, and several passes are needed: "
            "give a list of batches, a data set or a loader"
        )


def batches_of(data: Any, batch_size: int = 256, limit: int | None = None) -> Iterator[Any]:
    """Batches of ``data`` up to ``limit`` samples: a data loader, an iterable of batches, a tensor, or samples. The
    last one is cut, where it is ``divisible``.

    Objects with ``batches(batch_size)`` (the splits of ``rankfold.zoo``) and ``torch.utils.data.Dataset`` are cut
    into batches in their own order, and so is a list of pairs whose targets are single numbers; of an
    ``IterableDataset`` too single samples are expected, as torch has it. Where
    yours gives whole batches, wrap it in ``DataLoader(data, batch_size=None)``. ``ValueError`` for a limit below 1.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, Integral) or limit < 1):
        raise ValueError(f"samples must be at least 1, a whole number, got {limit!r}")
    return _limited(data, batch_size, limit)


def _limited(data: Any, batch_size: int, limit: int | None) -> Iterator[Any]:
    seen = 0
    for batch in map(marked, _batches(data, batch_size)):
        size = size_of(batch)
        if limit is not None and seen + size > limit and (seen == limit or divisible(arguments(batch), size)):
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
    if is_hugging_face(data):
        if not hasattr(data, "__len__"):
            raise ValueError(
                "a streamed data set gives single samples, not batches: give a DataLoader over it, or a list of batches"
            )
        return _hugging_face(data, batch_size)
    if isinstance(data, torch.utils.data.Dataset) or _are_pairs(data):
        return torch.utils.data.DataLoader(data, batch_size=batch_size, collate_fn=collated)
    return data


def collated(samples: list[Any]) -> Any:
    """Single samples as a batch, as torch makes one; ``ValueError`` with the remedy for those that fit into none."""
    try:
        return torch.utils.data.default_collate(samples)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{len(samples)} samples of the data set do not fit into one batch ({' '.join(str(error).split())}): give "
            "a DataLoader over it with a collate_fn of your own, which pads them to one shape; where the model takes "
            "a list of samples, one that gives (([a, b],), targets)"
        ) from None


def _are_pairs(data: Any) -> bool:
    """Whether a list holds single samples with one number each as target, and so no batches."""
    first = data[0] if isinstance(data, list) and data else None
    target = first[1] if isinstance(first, tuple | list) and len(first) == 2 else None
    return isinstance(target, int | float) or (isinstance(target, Tensor) and not target.dim())


def is_hugging_face(data: Any) -> bool:
    """Whether it is a data set of the library ``datasets``."""
    return type(data).__module__.partition(".")[0] == "datasets" and hasattr(data, "with_format")


class Columns(torch.utils.data.Dataset):
    """The numeric columns of a ``datasets.Dataset``, sample by sample."""

    def __init__(self, data: Any) -> None:
        self.data = data.with_format("torch")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value for key, value in self.data[index].items() if isinstance(value, Tensor)}


def _hugging_face(data: Any, batch_size: int) -> Iterator[dict[str, Any]]:
    """Batches of the numeric columns of a ``datasets.Dataset``; text must be tokenized first."""
    formatted = data.with_format("torch")
    for start in range(0, len(data), batch_size):
        rows = formatted[start : start + batch_size]
        batch = {key: value for key, value in rows.items() if isinstance(value, Tensor)}
        if not batch:
            raise ValueError(
                f"the data set has no column of numbers of equal shape, but {', '.join(rows)}: tokenize and pad "
                "it, or give a DataLoader with a collate_fn"
            )
        yield batch


def _first(value: Any, count: int, size: int) -> Any:
    return samples_of(value, size, slice(count))
