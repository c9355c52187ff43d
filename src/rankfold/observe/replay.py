"""A forward pass that begins at one border of a chain and ends at another: what lies before is given, not computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import forward
from rankfold.linalg.brief import brief
from rankfold.observe.calls import called_names, intercepted
from rankfold.observe.chain import Border, Chain, Span
from rankfold.observe.watch import Enough

State = dict[int, Any]  # what calls have given, by their numbers
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.Size)


class AnotherWay(ValueError):
    """A batch for which other modules are called, or in another order, than for the one that the chain was found by."""


@dataclass
class Replay:
    """Passes through the spans of ``chain`` in one network, which has modules of the same names as the one in which it
    was found. ``shapes``: by batch what the calls that are left out give, without its numbers; the first pass through
    a span learns it, and networks of the same shapes share it."""

    chain: Chain
    network: nn.Module
    sites: frozenset[str]
    shapes: dict[int, State] = field(default_factory=dict)

    __repr__ = brief

    def __post_init__(self) -> None:
        self.skipped = self.chain.skipped

    def run(
        self,
        span: Span,
        index: int,
        batch: Any,
        state: State,
        looking: AbstractContextManager[Any] | None = None,
        graph: bool = False,
    ) -> tuple[State, Any]:
        """What is kept at the end of ``span`` for the batch of number ``index``, given ``state`` at its start; and what
        the network gives, where that is its end (None elsewhere). ``looking``: entered for the pass itself; what raises
        ``Enough`` ends the pass. ``graph``: what is kept and given can be differentiated by ``state``."""
        looking = looking or nullcontext()
        with torch.set_grad_enabled(graph):
            if span.start is None and span.end is None:
                with suppress(Enough), looking:
                    return {}, forward(self.network, batch)
                return {}, None
            step = _Pass(self, span.start, span.end, state, self.shapes.setdefault(index, {}), graph)
            output = None
            with intercepted(called_names(self.network, self.sites), step.call), suppress(Enough), looking:
                output = forward(self.network, batch)
            return step.kept, output if span.end is None else None


@dataclass
class _Pass:
    replay: Replay
    start: Border | None
    end: Border | None
    given: State
    shapes: State
    graph: bool = False
    kept: State = field(default_factory=dict)
    number: int = 0

    def __post_init__(self) -> None:
        self.calls = self.replay.chain.calls
        self.begins = -1 if self.start is None else self.calls[self.start.call].end
        self.wanted = () if self.end is None else self.end.state
        for number in self.wanted:
            if number in self.given:
                self.kept[number] = self.given[number]

    def call(
        self, module: nn.Module, name: str, go_on: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        number = self.number
        if self.end is not None and number >= self.calls[self.end.call].stop and self.end.call in self.kept:
            raise Enough
        if number >= len(self.calls) or self.calls[number].name != name:
            known = self.calls[number].name if number < len(self.calls) else "the end"
            raise AnotherWay(f"{name} is called where {known} was called for the first samples")
        here = self.calls[number]
        if here.changing and here.end <= self.begins:
            self.number = here.stop
            return rebuilt(self.given[number] if number in self.given else self.shapes[number], torch.clone)
        self.number += 1
        output = go_on()
        if self.number != here.stop:
            raise AnotherWay(f"{name} calls other modules than it did for the first samples")
        if number in self.wanted:
            self.kept[number] = rebuilt(output, torch.clone if self.graph else _taken)
        if number in self.replay.skipped and number not in self.shapes:
            self.shapes[number] = rebuilt(output, lambda x: x.detach().new_zeros(()).expand(x.shape))
        return output


def _taken(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


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
    return value if isinstance(value, _PLAIN) else None  # a cache of keys and values, say, is nobody's input here
