"""Modules that hide their matrices, taken apart into layers that hold one each, for the moment or for good.

What hides matrices is known by one ``Opener`` each: ``sites/kinds/attention.py``, ``sites/kinds/recurrent.py``,
``sites/kinds/experts.py``.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from rankfold.sites.kinds import attention, experts, recurrent
from rankfold.sites.opener import Opener

_OPENERS: tuple[Opener, ...] = (attention.OPENER, *recurrent.OPENERS, experts.OPENER)


def opener_of(module: nn.Module) -> Opener | None:
    """Who takes this module apart; None for one that hides nothing."""
    return next((opener for opener in _OPENERS if opener.takes(module)), None)


def why_closed(module: nn.Module) -> str | None:
    """Why a module that hides matrices cannot be taken apart; None where it can, and for any other module."""
    opener = opener_of(module)
    return None if opener is None else opener.why_not(module)


def replace_(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put ``new[old]`` wherever ``old`` (the very object) hangs in ``model``: a shared module has several places, and a
    forward may take its layers, or their methods, from a plain list beside them. Cost: one walk through the model."""
    seen, waiting, walked = {model}, [model] if new else [], set[int]()
    while waiting:
        parent = waiting.pop()
        for name, child in parent._modules.items():
            if child is None:
                continue
            if child in new:
                parent._modules[name] = new[child]
            elif child not in seen:
                seen.add(child)
                waiting.append(child)
        for name, value in vars(parent).items():
            if name not in _OF_TORCH:
                vars(parent)[name] = _exchanged(value, new, walked)


_OF_TORCH = vars(nn.Module()).keys()
_DEPTH = 3  # of lists within lists
_PLAIN = frozenset({bool, int, float, str, type(None)})  # what most attributes are


def _exchanged(value: Any, new: Mapping[nn.Module, nn.Module], walked: set[int], depth: int = _DEPTH) -> Any:
    """``value`` with ``new[old]`` for ``old``; what can be changed stays the same object, which others may hold too.
    ``walked``: objects that were looked into, such as a configuration that all modules hold."""
    if isinstance(value, nn.Module):
        return new.get(value, value)
    if depth and isinstance(value, list | deque | dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if (put := _exchanged(item, new, walked, depth - 1)) is not item:
                value[key] = put
        if isinstance(value, dict):
            _exchange_keys_(value, new, walked, depth)
    elif depth and isinstance(value, tuple):
        parts = [_exchanged(item, new, walked, depth - 1) for item in value]
        if any(part is not item for part, item in zip(parts, value, strict=True)):
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    elif isinstance(value, MethodType) and isinstance(value.__self__, nn.Module) and value.__self__ in new:
        return getattr(new[value.__self__], value.__name__, value)
    elif depth and isinstance(value, partial):
        parts = [_exchanged(part, new, walked, depth - 1) for part in (value.func, value.args, value.keywords)]
        if parts[0] is not value.func or parts[1] is not value.args:
            return partial(parts[0], *parts[1], **parts[2])
    elif depth and type(value) not in _PLAIN and id(value) not in walked and _is_holder(value):
        walked.add(id(value))
        _exchanged(vars(value), new, walked, depth - 1)
    return value


def _exchange_keys_(value: dict[Any, Any], new: Mapping[nn.Module, nn.Module], walked: set[int], depth: int) -> None:
    """In the dictionary itself and in its order. Other objects than layers, their methods and tuples of them may not
    change as keys."""
    keys = [_exchanged(key, new, walked, depth - 1 if isinstance(key, tuple) else 0) for key in value]
    if any(key is not old for key, old in zip(keys, value, strict=True)):
        items = list(zip(keys, value.values(), strict=True))
        value.clear()
        value.update(items)


def _is_holder(value: Any) -> bool:
    """Whether this is an object of somebody's own class, which may hold layers."""
    inside = getattr(value, "__dict__", None)
    return isinstance(inside, dict) and not isinstance(value, FunctionType | ModuleType | MethodType | Tensor)


def held_fast(model: nn.Module) -> dict[int, str]:
    """The layers in closures, sets, weak references and objects that are keys, and the parameters in these and in
    lists, by identity; with the attribute that holds each. ``replace_`` finds the others."""
    found, walked = dict[int, str](), set[int]()
    for path, parent in model.named_modules():
        for name, value in vars(parent).items():
            if name not in _OF_TORCH:
                found |= dict.fromkeys(_held(value, walked), f"{path}.{name}".lstrip("."))
    return found


def _held(value: Any, walked: set[int], closed: bool = False, depth: int = _DEPTH) -> Iterator[int]:
    if isinstance(value, nn.Parameter) or (closed and isinstance(value, nn.Module)):
        yield id(value)
    elif depth and isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # one that nothing was put in yet
                yield from _held(cell.cell_contents, walked, True, depth - 1)
    elif isinstance(value, weakref.ref):
        yield from _held(value(), walked, True, depth)
    elif depth and isinstance(value, list | tuple | deque | set | frozenset | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _held(item, walked, closed or isinstance(value, set | frozenset), depth - 1)
        for key in value if isinstance(value, dict) else ():
            yield from _held(key, walked, closed or not isinstance(key, nn.Module | tuple), depth - 1)
    elif depth and not isinstance(value, nn.Module) and _is_holder(value) and id(value) not in walked:
        walked.add(id(value))
        yield from _held(vars(value), walked, closed, depth - 1)


@contextmanager
def opened(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block every module that hides matrices is taken apart where it can be, and the fused kernels are off.

    Parameters are shared, not copied. On leaving, every module is back in its place.
    """
    parts = _parts(_openable(model))
    with attention.without_fused_attention():
        try:
            replace_(model, parts)
            yield model
        finally:
            replace_(model, {new: old for old, new in parts.items()})


def settle_(model: nn.Module, names: Iterable[str]) -> None:
    """Take the modules that hide the sites in ``names`` apart for good, and those that share with them what is cut."""
    wanted, openable = {name.rpartition(".")[0] for name in names}, _openable(model)
    here = {module for path, module in model.named_modules(remove_duplicate=False) if path in wanted}
    apart, more = dict[nn.Module, Opener](), {module: openable[module] for module in openable if module in here}
    while more:
        apart |= more
        cut = {id(parameter) for module, opener in apart.items() for parameter in opener.cut(module)}
        rest = ((module, opener) for module, opener in openable.items() if module not in apart)
        more = {module: opener for module, opener in rest if any(id(each) in cut for each in opener.cut(module))}
    parts = _parts(apart)
    for parameter in {parameter for part in parts.values() for parameter in part.parameters()}:
        parameter.data = parameter.data.clone()
    replace_(model, parts)


def _openable(model: nn.Module) -> dict[nn.Module, Opener]:
    """What can be taken apart in ``model``. A parameter that will be cut must belong to no other layer."""
    hiding = ((module, opener_of(module)) for module in model.modules() if module is not model)
    found = {module: opener for module, opener in hiding if opener is not None and opener.why_not(module) is None}
    closed = list(found)
    while closed:
        others = (module for module in model.modules() if module not in found)
        whole = {id(parameter) for module in others for parameter in module._parameters.values()}
        closed = [each for each, opener in found.items() if any(id(cut) in whole for cut in opener.cut(each))]
        for each in closed:
            del found[each]
    return found


def _parts(apart: Mapping[nn.Module, Opener]) -> dict[nn.Module, nn.Module]:
    parts = {module: opener.split(module) for module, opener in apart.items()}
    attention.share_(parts)
    return parts


def hidden(model: nn.Module, name: str) -> nn.Module | None:
    """The module of ``model`` as it is that hides the site of this name; None for a layer of its own."""
    try:
        parent = model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None
    return parent if opener_of(parent) is not None else None
