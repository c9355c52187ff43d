"""Hooks on the modules of a model for the length of a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

Seen = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
Coming = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]

_C = TypeVar("_C")
Watched = Mapping[str, _C | Sequence[_C]] | Mapping[nn.Module, _C | Sequence[_C]]


class Enough(BaseException):
    """Raised by a callback once all is seen: the rest of the forward pass is not needed.

    Not an ``Exception``, so that no model takes it for an error of its own. Whoever runs the pass suppresses it:
    ``with suppress(Enough): forward(root, batch)``.
    """


@contextmanager
def after(root: nn.Module | None, callbacks: Watched[Seen], *, last: bool = False) -> Iterator[None]:
    """``callback(module, args, kwargs, output)`` after each call of a module of ``root``, within the block.

    ``callbacks``: by the module's name or by the module itself (then ``root`` may be None); several for one of them are
    called in their order.
    What a callback returns, unless None, takes the place of the output. ``last``: behind the hooks that are there
    already, which may change what the layer itself gives, in place of ahead of them. Only these hooks are removed at
    the end. Raises ``AttributeError`` for a name that is no module.
    """
    found = list(_each(root, callbacks))
    with ExitStack() as stack:
        for module, callback in found if last else reversed(found):
            stack.callback(always_after_(module, callback, last=last).remove)
        yield


def always_after_(module: nn.Module, callback: Seen, *, last: bool = False) -> RemovableHandle:
    """``callback`` after every call of ``module`` from now on; see ``after``. Where it stays, it is copied and pickled
    with the module: a function of a module of Python."""
    return module.register_forward_hook(callback, with_kwargs=True, prepend=not last)


@contextmanager
def before(root: nn.Module | None, callbacks: Watched[Coming], *, first: bool = False) -> Iterator[None]:
    """``callback(module, args, kwargs)`` before each call of a module of ``root``; see ``after``.

    A pair that a callback returns takes the place of the arguments. ``first``: ahead of the hooks that are there
    already, which may move or widen the layer for its call.
    """
    with ExitStack() as stack:
        for module, callback in _each(root, callbacks):
            hook = module.register_forward_pre_hook(callback, with_kwargs=True, prepend=first)
            stack.callback(hook.remove)
        yield


def _each(root: nn.Module | None, callbacks: Watched[_C]) -> Iterator[tuple[nn.Module, _C]]:
    for place, given in callbacks.items():
        if isinstance(place, nn.Module):
            module = place
        elif root is not None:
            module = root.get_submodule(place)
        else:
            raise TypeError(f"{place}: the model has no module of this name")
        yield from ((module, callback) for callback in (given if isinstance(given, Sequence) else (given,)))


def first_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a call, positional or by name; None of a call without."""
    return args[0] if args else next(iter(kwargs.values()), None)


def with_first(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with ``value`` in the place of ``first_of``."""
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): value}
