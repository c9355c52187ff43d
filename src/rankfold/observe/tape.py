"""A pass that goes on where an earlier one over the same batch was cut: what lies before is not computed again.

Between two borders a network is Python that calls torch's functions. Up to the cut the Python runs again, and every
function, and every site as a whole, hands out what the tape has: the values of what was still alive at the cut, which
is all that anything behind it can read, and elsewhere a tensor of the right shape that nobody reads.

What makes the weight of a factored layer, where a network reads it, is no function that the network calls.
What a function outside of torch makes is not seen: ``observe/calls.py`` tells whether there is any in a network.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rankfold.batches import changed, tensors_in
from rankfold.layers.weights.reading import being_read
from rankfold.linalg.brief import brief

Place = tuple[int, int]  # number of an event, and of a tensor in what it gives
_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


class AnotherWay(ValueError):
    """A batch for which other modules or functions are called, or in another order, than before."""


@dataclass(frozen=True)
class _Event:
    """``what``: the function, or the name of the site. ``made``: what it gave, its tensors without their numbers.
    ``tensors``: how many these are. ``alike``: which of them an earlier event gave."""

    what: Any
    made: Any
    tensors: int
    alike: tuple[tuple[int, Place], ...] = ()


@dataclass(frozen=True)
class _Live:
    """A tensor that is alive at the cut: where it is in the values that are kept."""

    place: Place
    value: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass
class Tape:
    """Of one network and one batch, up to the cut. The values of ``live`` are kept by whoever has the tape."""

    events: Sequence[_Event] = ()
    live: Sequence[_Live] = ()

    __repr__ = brief


@dataclass(eq=False)
class Taping(TorchFunctionMode):
    """A pass that takes what lies before the cut from ``tape``, whose values are ``values``, and makes the tape of a
    further cut before the first call of one of ``sites``: ``taken``, with its values; None where nothing can be."""

    tape: Tape = field(default_factory=Tape)
    values: Sequence[Tensor] = ()
    sites: frozenset[str] = frozenset()
    taken: tuple[Tape, list[Tensor]] | None = None

    __repr__ = brief

    def __post_init__(self) -> None:
        super().__init__()
        self.active = False
        self.events: list[_Event] = []
        self.open = bool(self.sites)  # whether a further tape can be made
        self.places: dict[int, Place] = {}  # by the id of a tensor
        self.known: dict[Place, tuple[weakref.ref[Tensor], int | None]] = {}
        self.live = {each.place: each for each in self.tape.live}
        self.bases = {each.value: self.values[each.value].clone() for each in self.tape.live}
        self.held: list[Any] = []
        self.within = 0

    def hold(self, value: Any) -> None:
        """It is alive as long as this pass: something behind it will be asked for it."""
        self.held.append(value)

    def given(self, what: Any, value: Any) -> Any:
        """What a call that is left out gives: as it is, unless it has been changed in place since."""
        return self._event(what, lambda: value, given=True)

    def site(self, name: str, go_on: Callable[[], Any]) -> Any:
        """The call of a site: one event, whatever it is made of."""
        if name in self.sites and self.taken is None and self.open:
            with torch._C.DisableTorchFunction():
                self._cut()
        self.within += 1
        try:
            return self._event(name, go_on)
        finally:
            self.within -= 1

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if not self.active or self.within or being_read():
            return func(*args, **kwargs)
        reads = next(tensors_in((args, kwargs)), None) is not None
        return self._event(func, lambda: func(*args, **kwargs), reads=reads)

    def _event(self, what: Any, go_on: Callable[[], Any], given: bool = False, reads: bool = True) -> Any:
        """``reads``: whether it was given tensors. What was not, and gives none, may set something: it is called."""
        number = len(self.events)
        event = self.tape.events[number] if number < len(self.tape.events) else None
        if event is not None and event.what != what:
            raise AnotherWay("other functions are called than in the pass before")
        output = go_on() if event is None or given or not (reads or event.tensors) else event.made
        if not self.open and event is None:  # all that is wanted of the tape has been had
            return output
        with torch._C.DisableTorchFunction():
            if event is None:
                event = self._made(what, output)
            elif event.tensors:
                output = self._again(number, event, output)
            self.events.append(event)
            for leaf, tensor in enumerate(tensors_in(output) if event.tensors else ()):
                self._register((number, leaf), tensor, given)
        return output

    def _again(self, number: int, event: _Event, output: Any) -> Any:
        """``output`` with the values of what is alive, and the same tensors where they had been the same."""
        alike, leaves = dict(event.alike), count()

        def change(tensor: Tensor) -> Tensor:
            leaf = next(leaves)
            live = self.live.get((number, leaf))
            if live is not None:
                return self.bases[live.value].as_strided(live.size, live.stride, live.offset)
            known = self.known.get(alike[leaf]) if leaf in alike else None
            earlier = None if known is None else known[0]()
            return tensor if earlier is None else earlier

        return rebuilt(output, change)

    def _made(self, what: Any, output: Any) -> _Event:
        if not _plain(output):
            self.open = False  # an iterator, say: it cannot be handed out twice
            return _Event(what, None, 0)
        tensors = list(tensors_in(output))
        alike = tuple((leaf, self.places[id(tensor)]) for leaf, tensor in enumerate(tensors) if self._knows(tensor))
        return _Event(what, rebuilt(output, _ghost), len(tensors), alike)

    def _knows(self, tensor: Tensor) -> bool:
        place = self.places.get(id(tensor))
        return place is not None and self.known[place][0]() is tensor

    def _register(self, place: Place, tensor: Tensor, given: bool) -> None:
        """Of what the tape hands out before the cut, what was not alive there is nothing but a shape."""
        behind = place[0] >= len(self.tape.events)
        if (behind or given or place in self.live) and not self._knows(tensor):
            self.places[id(tensor)] = place
            fresh = given and place not in self.live and not tensor.is_inference()
            self.known[place] = weakref.ref(tensor), tensor._version if fresh else None

    def _cut(self) -> None:
        """Keep the values of all tensors that are alive. Those that share memory go on doing so."""
        alive: dict[int, list[tuple[Place, Tensor, bool]]] = {}
        for place, (reference, version) in self.known.items():
            tensor = reference()
            if tensor is not None:
                changed = version is None or version != tensor._version
                alive.setdefault(tensor.untyped_storage()._cdata, []).append((place, tensor, changed))
        live: list[_Live] = []
        values: list[Tensor] = []
        for together in alive.values():
            if not any(changed for _, _, changed in together):  # given, and will be given again
                continue
            if len({tensor.dtype for _, tensor, _ in together}) > 1:
                return
            value, tensors = _kept([tensor for _, tensor, _ in together])
            live += (
                _Live(place, len(values), tensor.shape, tensor.stride(), int(tensor.storage_offset()))
                for (place, _, _), tensor in zip(together, tensors, strict=True)
            )
            values.append(value)
        self.taken, self.open = (Tape(tuple(self.events), live), values), False


def _kept(tensors: Sequence[Tensor]) -> tuple[Tensor, Iterable[Tensor]]:
    """The numbers of tensors with one memory as one row, copied, and what the tensors are as views of it."""
    if len(tensors) > 1:
        (first, *_) = tensors
        whole = first.untyped_storage()
        row = first.new_empty(0).set_(whole, 0, (whole.nbytes() // first.element_size(),), (1,))
        return row.clone(), tensors
    (tensor,) = tensors
    few = tensor.as_strided([1 if s == 0 else n for n, s in zip(tensor.shape, tensor.stride(), strict=True)],
                            tensor.stride(), tensor.storage_offset())  # fmt: skip
    own = few.clone()
    strides = [s if old else 0 for s, old in zip(own.stride(), tensor.stride(), strict=True)]
    return own.as_strided((own.numel(),), (1,)), [own.as_strided(tensor.shape, strides)]


def _ghost(tensor: Tensor) -> Tensor:
    return tensor.new_zeros(()).expand(tensor.shape)


def rebuilt(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor inside changed, of the same types: also outputs that are read by attribute."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        items = {key: rebuilt(item, change) for key, item in value.items()}
        return items if type(value) is dict else type(value)(**items)
    if isinstance(value, tuple | list):
        parts = [rebuilt(item, change) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value):
        return changed(value, lambda item: rebuilt(item, change))
    return value if isinstance(value, _PLAIN) else None  # a cache of keys and values, say, is nobody's input here


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    if isinstance(value, Mapping):
        return all(map(_plain, value.values()))
    if isinstance(value, Tensor):
        return value.layout == torch.strided
    return value is None or isinstance(value, _PLAIN)
