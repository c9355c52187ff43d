"""The calls of a model's modules in one forward pass, and what lives from before one of them to after it.

A network is cut where few tensors cross: behind a block of a decoder that is the block's output, and what is computed
from the inputs alone (masks, positions) can be had again. Nothing is known of any class: the operations of one forward
pass are watched, with the storage that each reads and writes.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rankfold.batches import forward, tensors_in
from rankfold.objectives.answer import INTERNAL
from rankfold.observe.watch import first_of

Instead = Callable[[nn.Module, str, Callable[[], Any], tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Call:
    """One call of a module. ``begin``, ``end``: moments of the forward pass, in operations and calls; ``stop``: how
    many calls have begun when it ends. ``changing``: it holds, or is given, or gives what depends on a ``site`` or on
    other weights. ``reads``: which tensor it is given first. ``given``: the tensors that it gives, as numbers of
    ``Lived``; ``size``: their bytes. ``alive``: bytes of what had been computed and was still there when it began.
    """

    name: str
    begin: int
    end: int
    stop: int
    site: bool
    changing: bool
    reads: tuple[int, int]
    given: frozenset[int]
    size: int
    alive: int


@dataclass
class Lived:
    """A tensor: when it was written and last read. ``within``: the calls that were under way when it was written."""

    written: int
    read: int
    within: tuple[int, ...]
    changing: bool


@contextmanager
def intercepted(names: Mapping[int, str], instead: Instead) -> Iterator[None]:
    """Within the block, of this thread, ``instead(module, name, go_on, args, kwargs)`` takes the place of every call of
    a module whose id is in ``names``; ``go_on()`` makes the call, hooks and all."""
    way = (threading.get_ident(), names, instead)
    with intercepting():
        _WAYS.append(way)
        try:
            yield
        finally:
            _WAYS.remove(way)


@contextmanager
def intercepting() -> Iterator[None]:
    """Around many blocks of ``intercepted``: each would cost half a millisecond, in which Python forgets where it has
    found the methods of modules."""
    with _LOCK:
        _HOLDERS.append(nn.Module.__call__)
        if len(_HOLDERS) == 1:
            nn.Module.__call__ = let_through  # type: ignore[method-assign]
    try:
        yield
    finally:
        with _LOCK:
            original = _HOLDERS.pop()
            if not _HOLDERS:
                nn.Module.__call__ = original  # type: ignore[method-assign]


_LOCK = threading.Lock()
_HOLDERS: list[Any] = []  # the first one is the method of torch
_WAYS: list[tuple[int, Mapping[int, str], Instead]] = []


def let_through(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    original, thread = _HOLDERS[0], threading.get_ident()
    for owner, names, instead in reversed(_WAYS):
        name = names.get(id(module)) if owner == thread else None
        if name is not None:
            return instead(module, name, lambda: original(module, *args, **kwargs), args, kwargs)
    return original(module, *args, **kwargs)


def called_names(root: nn.Module, sites: Collection[str]) -> dict[int, str]:
    """The modules whose calls are told apart, by their ids: all but the root and what is inside of a site."""
    found: dict[int, str] = {}
    inside = None
    for name, module in root.named_modules():  # what is inside of a module comes right behind it
        if inside is not None and name.startswith(inside):
            continue
        inside = f"{name}." if name in sites else None
        if name:
            found[id(module)] = name
    return found


@dataclass
class Watched:
    """What was seen of one forward pass: every call in the order in which they began, every tensor. ``open``: whether
    all of them are given by functions of torch that can be seen being called. ``whole``: it takes gradients itself, as
    a field of forces does, calls modules inside of a transform (``torch.vmap``), or hands on objects of its own: a call
    gives more than numbers."""

    calls: Sequence[Call]
    lived: Sequence[Lived]
    length: int
    open: bool = True
    whole: bool = False


def watch_calls(root: nn.Module, batch: Any, sites: Collection[str]) -> Watched:
    """One forward pass of ``batch`` (few samples: all its tensors are kept while it runs), in eval mode, no gradients.

    ``sites``: names of the modules that will change, and with them whatever is computed from what they give. What other
    modules with parameters give (embeddings) does not change, and is not to be computed again either.
    """
    weighted = {name for name, module in root.named_modules() if any(True for _ in module.parameters(recurse=False))}
    watch = _Watch(frozenset(sites), frozenset(weighted))
    with torch.no_grad(), intercepted(called_names(root, sites), watch.call), watch, watch.functions:
        output = forward(root, batch)
    watch.clock += 1
    for tensor in tensors_in(output):  # what the model gives is read by whoever called it
        watch.read(tensor)
    calls: Sequence[Call] = watch.calls  # type: ignore[assignment]  # all have ended
    seen = watch.functions
    return Watched(calls, watch.lived, watch.clock, not seen.hidden, seen.whole)


_GRADIENTS = torch.autograd.grad, torch.autograd.backward, Tensor.backward


class _Functions(TorchFunctionMode):
    """Torch's functions being called, and what they have given. ``hidden``: whether something else computes, too.
    ``whole``: whether gradients are asked for, or there is a transform."""

    def __init__(self, current: Mapping[int, int]) -> None:
        super().__init__()
        self.current, self.under_way, self.hidden, self.whole = current, 0, False, False
        self.made: dict[int, weakref.ref[Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            given = list(tensors_in((args, kwargs)))
            self.hidden = self.hidden or any(map(self._strange, given))
            self.whole = self.whole or func in _GRADIENTS or any(map(is_functorch_wrapped_tensor, given))
        self.under_way += 1
        try:
            output = func(*args, **kwargs)
        finally:
            self.under_way -= 1
        for tensor in tensors_in(output):
            self.made[id(tensor)] = weakref.ref(tensor)
        return output

    def _strange(self, tensor: Tensor) -> bool:
        """Whether it was computed in this pass, and no function gave it."""
        known = self.made.get(id(tensor))
        return (known is None or known() is not tensor) and _storage(tensor) in self.current

    def alive(self) -> int:
        """Bytes of what functions have given and is still there."""
        self.made = {key: known for key, known in self.made.items() if known() is not None}
        tensors = [tensor for tensor in (known() for known in self.made.values()) if tensor is not None]
        return sum({_storage(tensor): _memory(tensor).nbytes() for tensor in tensors}.values())


@dataclass
class _Watch(TorchDispatchMode):
    sites: frozenset[str]
    weighted: frozenset[str]
    clock: int = 0
    calls: list[Call | None] = field(default_factory=list)
    lived: list[Lived] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.current: dict[int, int] = {}  # by storage: number of what was written there last
        self.alive: list[Any] = []  # an address is that of one storage only while it lives
        self.under_way: list[int] = []
        self.functions = _Functions(self.current)

    def read(self, tensor: Tensor) -> bool:
        """Whether it depends on a site."""
        number = self.current.get(_storage(tensor))
        if number is None:
            return False
        self.lived[number].read = self.clock
        return self.lived[number].changing

    def read_all(self, tensors: Iterable[Tensor]) -> bool:
        found = [self.read(tensor) for tensor in tensors]
        return any(found)

    def written(self, tensor: Tensor, changing: bool) -> None:
        self.current[_storage(tensor)] = len(self.lived)
        self.alive.append(_memory(tensor))
        self.lived.append(Lived(self.clock, self.clock, tuple(self.under_way), changing))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        self.clock += 1
        self.functions.hidden = self.functions.hidden or not self.functions.under_way
        inputs = list(tensors_in((args, kwargs)))
        changing = self.read_all(inputs)
        output = func(*args, **kwargs)
        before = {_storage(tensor) for tensor in inputs}
        for tensor in tensors_in(output):
            if func._schema.is_mutable or _storage(tensor) not in before:
                self.written(tensor, changing)
        return output

    def call(
        self, module: nn.Module, name: str, go_on: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.clock += 1
        begin, number, site = self.clock, len(self.calls), name in self.sites
        with torch._C.DisableTorchFunction():
            alive = self.functions.alive() if site else 0
            reads = self._reads(number, args, kwargs)
        self.calls.append(None)
        self.under_way.append(number)
        marked = site or name in self.weighted
        changing = self.read_all(tensors_in((args, kwargs))) or marked
        output = go_on()
        self.functions.whole = self.functions.whole or _hides(output)
        self.under_way.pop()
        self.clock += 1
        given = [self.current[key] for key in map(_storage, tensors_in(output)) if key in self.current]
        if marked:
            for each in given:
                self.lived[each].changing = True
        changing = changing or any(self.lived[each].changing for each in given)
        changing = changing or any(each is not None and each.changing for each in self.calls[number + 1 :])
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(output))
        self.calls[number] = Call(
            name, begin, self.clock, len(self.calls), site, changing, reads, frozenset(given), size, alive
        )  # fmt: skip
        return output

    def _reads(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
        first = next(tensors_in((first_of(args, kwargs), args, kwargs)), None)
        return (-1, number) if first is None else self._state(first)

    def _state(self, tensor: Tensor) -> tuple[int, int]:
        """Equal for the same numbers in the same place: of a view, where it begins is part of it."""
        key = _storage(tensor)
        self.alive.append(_memory(tensor))
        return self.current.get(key, -key), int(tensor.storage_offset())


def _hides(output: Any) -> bool:
    """Whether it holds an object of somebody's own with tensors in it, which cannot be handed out again."""
    if isinstance(output, Mapping):
        return any(_hides(value) for name, value in output.items() if name not in INTERNAL)
    if isinstance(output, tuple | list):
        return any(map(_hides, output))
    seen = isinstance(output, Tensor | nn.Module) or is_dataclass(output) or not hasattr(output, "__dict__")
    return not seen and next(tensors_in(list(vars(output).values())), None) is not None


def _storage(tensor: Tensor) -> int:
    return _memory(tensor)._cdata


def _memory(tensor: Tensor) -> Any:
    """The storage of a tensor; of one inside of a transform (``torch.vmap``), that of what it stands for."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor.untyped_storage()
