"""What of a batch a model is called with."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rankfold.batches.listed import FED, LABELS
from rankfold.batches.misfit import mistakable


class LeftOut(UserWarning):
    """What a batch holds and the model does not take."""


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
    if isinstance(batch, Mapping):
        return (), _taken(_for_decoder(batch, model) | {k: v for k, v in batch.items() if k not in LABELS}, model)
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(inputs, Mapping):
        return (), _taken(dict(inputs), model)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def _for_decoder(batch: Mapping[str, Any], model: nn.Module | None) -> dict[str, Any]:
    """What models of two halves of transformers would feed their decoder with where a batch holds its labels alone."""
    shifted, labels = getattr(model, "prepare_decoder_input_ids_from_labels", None), batch.get("labels")
    if shifted is None or any(name in batch for name in FED) or not isinstance(labels, Tensor) or labels.dim() != 2:
        return {}
    return {"decoder_input_ids": shifted(labels)}


def _taken(named: dict[str, Any], model: nn.Module | None) -> dict[str, Any]:
    names = None if model is None else _inputs_of(model)
    left = [] if names is None else [key for key in named if key not in names]
    if not left or names is None or model is None:
        return named
    warnings.warn(
        f"{type(_inner(model)).__name__}.forward takes no argument {', '.join(map(str, left))}: this part of "
        "every batch is ignored",
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
