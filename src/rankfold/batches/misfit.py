"""Why a layer could not take its input: its name, what it takes and what came, told from where the call failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_CALL = "_call_impl"  # torch's own name of what every call of a module goes through
_SETTINGS = (
    "num_embeddings", "in_channels", "kernel_size", "num_features", "normalized_shape", "in_features", "input_size",
    "embed_dim",
)  # fmt: skip
_REAL = ", of floating-point numbers"
_FAULTS = (RuntimeError, IndexError, ValueError, TypeError, AssertionError)


class InputError(ValueError):
    """An input does not fit a layer of the model; one line: which layer, what it takes, what came."""


Named = Callable[[], Iterable[tuple[str, nn.Module]]]  # as ``model.named_modules``


@contextmanager
def explained(named: Named) -> Iterator[None]:
    """Errors of calls of a model inside, as ``InputError`` where a layer was given what does not fit it.

    ``named``: gives the layers by name. Costs nothing where nothing fails; whatever else fails is raised as it was.
    """
    try:
        yield
    except InputError:
        raise
    except _FAULTS as error:
        said = misfit(named, error)
        if not said:
            raise
        raise InputError(said) from error


def misfit(named: Named, error: BaseException) -> str:
    """One line about the innermost module whose call raised ``error``; "" where it was given what it takes."""
    found: tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]] | None = None
    trace = error.__traceback__
    while trace is not None:
        names = trace.tb_frame.f_locals
        if trace.tb_frame.f_code.co_name == _CALL and isinstance(names.get("self"), nn.Module):
            found = names["self"], names.get("args", ()), names.get("kwargs", {})
        trace = trace.tb_next
    if found is None:
        return ""
    given, args, kwargs = found
    module = getattr(given, "ordinary", given)  # of a layer in training, the one that it stands for
    x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    takes = None if x is None or x.is_nested else _takes(module, x)
    if x is None or not takes:
        return ""
    name = next((path for path, other in named() if other is given), "")
    title = f"{name} ({type(module).__name__})" if name else type(module).__name__
    shape = "×".join(map(str, x.shape)) or "a single number"
    kind = str(x.dtype).removeprefix("torch.")
    size: Any = getattr(module, "kernel_size", None)
    axes = len(size) if isinstance(size, tuple) else 0
    alone = ", with a batch axis (a list is one of batches: torch.stack its samples)" * (x.dim() < 2 + axes)
    told = f"give inputs like those the network was trained on{alone}"
    if takes.endswith(_REAL):
        told += " (x.float(), scaled as they were in training)"
    return f"{title} takes {takes}, and was given {shape} of {kind}: {told}"


def mistakable(model: nn.Module, batch: Any) -> str:
    """One line where a model takes any number of inputs, and what is taken as targets looks like one of them: numbers
    with an axis beside that of the samples; else ""."""
    if not isinstance(batch, tuple | list) or len(batch) < 2 or not isinstance(batch[0], Tensor):
        return ""
    other = batch[1]
    if not isinstance(other, Tensor) or not other.is_floating_point() or other.dim() < 2:
        return ""
    return (
        f"{type(model).__name__}.forward takes any number of inputs: the first member of every batch is taken as its "
        "input and the second as targets. Where they are inputs together, give ((a, b), targets), or ((a, b),) without "
        "targets"
    )


def _takes(module: nn.Module, x: Tensor) -> str:
    """What ``module`` takes in words, where ``x`` is something else; "" where it fits, or where that is not known."""
    if callable(own := getattr(module, "takes", None)):  # a layer of ours that stands for one of torch
        return own(x)
    if not type(module).__module__.startswith("torch."):  # a stranger's may take something else than its settings say
        return ""
    settings: dict[str, Any] = {name: getattr(module, name, None) for name in _SETTINGS}
    size, channels, ids = settings["kernel_size"], settings["in_channels"], settings["num_embeddings"]
    whole = not (x.is_floating_point() or x.is_complex())
    if isinstance(ids, int):
        fits = whole and (x.is_meta or not x.numel() or (int(x.min()) >= 0 and int(x.max()) < ids))
        return "" if fits else f"whole numbers from 0 to {ids - 1}"
    if isinstance(channels, int) and isinstance(size, tuple):
        axes = len(size)
        fits = x.dim() in (axes + 1, axes + 2) and x.shape[-axes - 1] == channels
        return _numbers(fits, whole, f"(samples, {channels} channels{', size' * axes})")
    if isinstance(settings["num_features"], int):
        count = settings["num_features"]
        return _numbers(x.dim() > 1 and x.shape[1] == count, whole, f"{count} channels in the second axis")
    if isinstance(settings["normalized_shape"], tuple):
        last = settings["normalized_shape"]
        fits = tuple(x.shape[-len(last) :]) == last
        return _numbers(fits, whole, f"{'×'.join(map(str, last))} values in the last axes")
    if isinstance(settings["input_size"], int) and 0 in x.shape[:-1]:
        return "sequences of at least one step"
    for width in (settings["in_features"], settings["input_size"], settings["embed_dim"]):
        if isinstance(width, int):
            return _numbers(bool(x.dim()) and x.shape[-1] == width, whole, f"{width} values in the last axis")
    return ""


def _numbers(fits: bool, whole: bool, words: str) -> str:
    """What a layer takes that computes with real numbers, where the shape does not fit, or whole numbers came."""
    return "" if fits and not whole else words + _REAL * (fits and whole)
