"""Hooks on the modules of a model, by name, for the length of a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Seen = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
Coming = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def after(root: nn.Module, callbacks: Mapping[str, Seen]) -> Iterator[None]:
    """``callback(module, args, kwargs, output)`` after each call of a named module; what it returns, unless None,
    takes the place of the output. Only these hooks are removed at the end."""
    with ExitStack() as stack:
        for name, callback in callbacks.items():
            stack.callback(root.get_submodule(name).register_forward_hook(callback, with_kwargs=True).remove)
        yield


@contextmanager
def before(root: nn.Module, callbacks: Mapping[str, Coming]) -> Iterator[None]:
    """``callback(module, args, kwargs)`` before each call of a named module; a pair that it returns takes the place of
    the arguments."""
    with ExitStack() as stack:
        for name, callback in callbacks.items():
            stack.callback(root.get_submodule(name).register_forward_pre_hook(callback, with_kwargs=True).remove)
        yield


def first_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a call, positional or by name."""
    return args[0] if args else next(iter(kwargs.values()))
