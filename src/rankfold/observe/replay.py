"""A forward pass that begins at one border of a chain and ends at another: what lies before is given, not computed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rankfold.batches import forward
from rankfold.linalg.brief import brief
from rankfold.observe.calls import called_names, intercepted
from rankfold.observe.chain import Border, Chain, Span
from rankfold.observe.tape import AnotherWay, Taping, rebuilt
from rankfold.observe.watch import Enough

State = dict[int, Any]  # what calls have given, by their numbers
_BEYOND = 4  # calls behind the end of a span that are made for what looks at it, at most


class Looks(AbstractContextManager[Any], Protocol):
    """What looks at a pass."""

    def waits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether it is to be seen yet what takes something, which is not a call that is given these."""


@dataclass
class Replay:
    """Passes through the spans of ``chain`` in one network, which has modules of the same names as the one in which it
    was found. ``shapes``: by batch what the calls that are left out give, without its numbers; the first pass through
    a span learns it, and networks of the same shapes share it. Where modules of the network have been replaced,
    ``look`` again."""

    chain: Chain
    network: nn.Module
    sites: frozenset[str]
    shapes: dict[int, State] = field(default_factory=dict)

    __repr__ = brief

    def __post_init__(self) -> None:
        self.skipped = self.chain.skipped
        self.blank: dict[Any, Tensor] = {}
        self.look()

    def zeros(self, like: Tensor) -> Tensor:
        """Zeros of one shape, the same ones every time: nobody reads them, but they may be written to."""
        key = like.shape, like.dtype, like.device
        if key not in self.blank:
            self.blank[key] = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        return self.blank[key].detach()

    def look(self) -> None:
        """Find the modules of the network by their names."""
        self.names = called_names(self.network, self.sites)

    def run(
        self,
        span: Span,
        index: int,
        batch: Any,
        state: State,
        looking: Looks | None = None,
        graph: bool = False,
        taping: Taping | None = None,
    ) -> tuple[State, Any]:
        """What is kept at the end of ``span`` for the batch of number ``index``, given ``state`` at its start; and what
        the network gives, where that is its end (None elsewhere). ``looking``: entered for the pass itself; what raises
        ``Enough`` ends the pass, and while it waits a few calls are made behind the end of ``span``, too, as far as
        their weights are there: where two branches are added, one may end there. ``graph``: what is kept and given can
        be differentiated by ``state``. ``taping``: the pass goes on from where an earlier one was cut, or is to be
        cut."""
        within = looking or nullcontext()
        with torch.set_grad_enabled(graph):
            if span.start is None and span.end is None and taping is None:
                with suppress(Enough), within:
                    return {}, forward(self.network, batch)
                return {}, None
            step = _Pass(self, span.start, span.end, state, self.shapes.setdefault(index, {}), graph, taping, looking)
            output = None
            with intercepted(self.names, step.call), suppress(Enough), within, taping or nullcontext():
                output = forward(self.network, batch, step.begin)
            return step.kept, output if span.end is None else None


@dataclass
class _Pass:
    replay: Replay
    start: Border | None
    end: Border | None
    given: State
    shapes: State
    graph: bool = False
    taping: Taping | None = None
    looking: Looks | None = None
    kept: State = field(default_factory=dict)
    number: int = 0
    beyond: list[int] = field(default_factory=list)  # of the calls made behind the end: where each of them stops

    def __post_init__(self) -> None:
        self.calls = self.replay.chain.calls
        self.begins = -1 if self.start is None else self.calls[self.start.call].end
        self.wanted = () if self.end is None else self.end.state
        for number in self.wanted:
            if number in self.given:
                self.kept[number] = self.given[number]

    def begin(self) -> None:
        """The network is about to be called: what was computed until now has made its inputs of the batch."""
        if self.taping is not None:
            self.taping.active = self.start is None

    def call(
        self, module: nn.Module, name: str, go_on: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        number = self.number
        if self._ended(number) and not self._goes_on(number, module, args, kwargs):
            raise Enough
        if number >= len(self.calls) or self.calls[number].name != name:
            known = self.calls[number].name if number < len(self.calls) else "the end"
            raise AnotherWay(f"{name} is called where {known} was called for the first samples")
        here = self.calls[number]
        if here.changing and here.end <= self.begins:
            self.number = here.stop
            return self._left_out(number)
        self.number += 1
        output = go_on() if self.taping is None or not here.site else self.taping.site(name, go_on)
        if self.number != here.stop:
            raise AnotherWay(f"{name} calls other modules than it did for the first samples")
        with torch._C.DisableTorchFunction():
            if number in self.wanted:
                self.kept[number] = rebuilt(output, torch.clone if self.graph else _taken)
                if self.taping is not None:
                    self.taping.hold(output)
            if number in self.replay.skipped and number not in self.shapes:
                self.shapes[number] = rebuilt(output, lambda x: x.detach().new_zeros(()).expand(x.shape))
        return output

    def _ended(self, number: int) -> bool:
        return self.end is not None and number >= self.calls[self.end.call].stop and self.end.call in self.kept

    def _goes_on(self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call behind the end is made all the same, for what looks: not with weights that are not there, as
        of another span of a network whose weights stay on the disk."""
        if self.beyond and number < self.beyond[-1]:  # inside of one that is
            return True
        if self.looking is None or number >= len(self.calls) or len(self.beyond) == _BEYOND:
            return False
        if not self.looking.waits(args, kwargs) or any(p.is_meta for p in module.parameters()):
            return False
        self.beyond.append(self.calls[number].stop)
        return True

    def _left_out(self, number: int) -> Any:
        """What a call gives that lies before the start."""
        with torch._C.DisableTorchFunction():
            if number in self.given:
                value = rebuilt(self.given[number], torch.clone)
            else:
                value = rebuilt(self.shapes[number], self.replay.zeros)
        if self.taping is None:
            return value
        value = self.taping.given(number, value)
        if self.start is not None and number == self.start.call:
            self.taping.active = True
        return value


def _taken(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
