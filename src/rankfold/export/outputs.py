"""What a model answers with, as graphs can give it: tensors under the model's own names."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from rankfold.objectives.answer import INTERNAL, named_tensors
from rankfold.sites import carry_hooks_


@contextmanager
def answering(root: nn.Module, change: Callable[[Any], Any], given: Collection[str]) -> Iterator[nn.Module]:
    """A twin of ``root`` that gives ``change`` of what ``root`` gives to whoever calls it, hooks of its own included.

    It shares parameters, which so keep their names, and parts. Keywords in ``given`` that would be part of ``**kwargs``
    are parameters there: torch looks for them in two ways. What calls assign to attributes of ``root`` is taken back.
    """
    kept, twin = dict(vars(root)), root.__class__.__new__(root.__class__)
    vars(twin).update({name: value for name, value in kept.items() if name != "_compiled_call_impl"})
    carry_hooks_(nn.Identity(), twin)  # none

    @functools.wraps(root.forward)
    def changed(*args: Any, **kwargs: Any) -> Any:
        return change(root(*args, **kwargs))

    signature = inspect.signature(root.forward)
    known = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    more = [name for name in given if name not in signature.parameters]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more]
    vars(changed)["__signature__"] = signature.replace(parameters=[*known, *named])
    twin.forward = changed
    try:
        yield twin
    finally:
        vars(root).clear()
        vars(root).update(kept)


def plain(output: Any) -> Any:
    """An output without caches and what is no tensor: objects with names as dicts, tuples and lists as tuples."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return _named(output)
    if hasattr(output, "_fields"):
        return _named(dict(zip(output._fields, output, strict=True)))
    if hasattr(output, "__dataclass_fields__"):
        return _named({name: getattr(output, name) for name in output.__dataclass_fields__})
    if isinstance(output, Sequence) and not isinstance(output, str | bytes):
        return tuple(plain(member) for member in output if named_tensors(member))
    return None


def _named(members: Mapping[Any, Any]) -> dict[str, Any]:
    kept = [(str(name), member) for name, member in members.items() if str(name) not in INTERNAL]
    names = _apart([name for name, _ in kept])
    return {name: plain(member) for name, (_, member) in zip(names, kept, strict=True) if named_tensors(member)}


def in_a_row(output: Any) -> tuple[Tensor, ...]:
    """Every tensor of ``plain``, in order; copies, so that an input that is handed on keeps its name as an input."""
    return tuple(tensor.clone() for _, tensor in named_tensors(output))


def names_of(output: Any, taken: Sequence[str]) -> list[str]:
    """A name for each of ``in_a_row``: the model's own, ``output`` or ``output_0`` … where it has none. None is in
    ``taken``, the names of inputs and of parameters, and no two are alike."""
    places = [place for place, _ in named_tensors(output)]
    names = [f"output_{place}" if place[:1].isdigit() else place or "output" for place in places]
    return _apart([f"output_{name}" if name in taken else name for name in names], taken)


def _apart(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """The names, with a number behind those that were there before."""
    found: list[str] = []
    for name in names:
        ways = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        found.append(next(way for way in ways if way not in {*found, *taken}))
    return found
