"""Forward passes that start in the middle: what comes before the changed layer is read from an earlier pass.

Two forward passes on the same input that differ in one layer agree on every call up to the first call of that layer.
A ``Replay`` stands in front of the ``forward`` of every module (hooks cannot leave a computation out), hands out the
recorded outputs of those calls, whole blocks at a time, and lets the rest run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class ReplayError(RuntimeError):
    """The model calls its modules in another order than on the tape."""


@dataclass
class Recorded:
    """One call of a module. ``end``: index of the first call that begins after it has returned.

    ``output`` is None where it cannot be handed out again: no tensor or tuple of tensors, or no memory left.
    """

    module: nn.Module
    end: int = -1
    output: Tensor | tuple[Tensor | None, ...] | None = None
    versions: tuple[int, ...] = ()
    size: int = 0


@dataclass
class Tape:
    """The calls of one forward pass in the order in which they begin."""

    calls: list[Recorded] = field(default_factory=list)

    def first(self, module: nn.Module) -> int:
        """Index of the first call of ``module``; the number of calls where there is none."""
        return next((i for i, call in enumerate(self.calls) if call.module is module), len(self.calls))


class Replay:
    """Stands in front of every module of ``root`` within a ``with`` block, in eval mode and without gradients.

    On leaving, every module has its own ``forward`` back. Exact wherever a module's output depends on nothing but its
    arguments and parameters; extra memory: the outputs of all modules, up to ``memory`` bytes for each tape. What is
    beyond is computed again.
    """

    def __init__(self, root: nn.Module, memory: int = 1 << 30) -> None:
        self.memory = memory
        self.modules = [m for m in root.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self._own: list[tuple[nn.Module, Any]] = []
        self._written_to: set[nn.Module] = set()  # modules whose output is changed in place by what follows
        self._old: list[Recorded] = []
        self._new: list[Recorded] | None = None
        self._next = self._cut = self._bytes = 0

    def __enter__(self) -> Replay:
        for module in self.modules:
            self._own.append((module, module.__dict__.get("forward")))
            module.forward = self._stand_in(module, module.forward)
        return self

    def __exit__(self, *_: object) -> None:
        for module, own in self._own:
            del module.forward
            if own is not None:
                module.forward = own
        self._own.clear()

    def play(self, run: Callable[[], Any], tape: Tape, changed: nn.Module) -> Any:
        """``run()`` with everything before the first call of ``changed`` taken from the tape.

        Raises ``ReplayError`` if the calls come in another order than on the tape.
        """
        self._old, self._next, self._cut = tape.calls, 0, tape.first(changed)
        try:
            return run()
        finally:
            self._old, self._cut = [], 0

    def record(
        self, run: Callable[[], Any], tape: Tape | None = None, changed: nn.Module | None = None
    ) -> tuple[Tape, Any]:
        """(tape, output) of ``run()``; with an earlier tape, only what comes from ``changed`` on is computed."""
        cut = 0
        if tape is not None and changed is not None:
            self._old, cut = tape.calls, tape.first(changed)
        while True:
            self._new, self._next, self._cut, self._bytes = [], 0, cut, 0
            try:
                output, calls = run(), self._new
            finally:
                self._old, self._new, self._cut = [], None, 0
            written = {call.module for call in calls if call.versions != _versions(call.output)}
            if written <= self._written_to:
                return Tape(calls), output
            self._written_to |= written  # once more from the start, keeping copies of their outputs
            cut = 0

    def _stand_in(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._next < self._cut:
                return self._before_cut(module, forward, args, kwargs)
            if self._new is not None:
                return self._recorded(self._new, module, forward, args, kwargs)
            return forward(*args, **kwargs)

        return call

    def _before_cut(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        index = self._next
        known = self._old[index]
        if known.module is not module:
            raise ReplayError(f"{type(module).__name__} called, {type(known.module).__name__} is on the tape")
        if known.end <= self._cut and known.output is not None:
            self._next = known.end
            if self._new is not None:
                self._new += self._old[index : known.end]
                self._bytes += sum(call.size for call in self._old[index : known.end])
            return _copied(known.output) if module in self._written_to else known.output
        self._next += 1
        if self._new is not None:
            return self._recorded(self._new, module, forward, args, kwargs)
        return forward(*args, **kwargs)

    def _recorded(
        self, calls: list[Recorded], module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        call = Recorded(module)
        calls.append(call)
        output = forward(*args, **kwargs)
        call.end = len(calls)
        tensors = _tensors(output)
        size = sum(t.numel() * t.element_size() for t in tensors or ())
        if tensors is not None and self._bytes + size <= self.memory:
            self._bytes += size
            call.size = size
            call.output = _copied(output) if module in self._written_to else output
            call.versions = _versions(call.output)
        return output


def _tensors(output: Any) -> list[Tensor] | None:
    """The tensors of an output that is a tensor, or a tuple of tensors and None; None for anything else."""
    members = output if type(output) is tuple else (output,)
    tensors = [member for member in members if member is not None]
    return tensors if tensors and all(isinstance(tensor, Tensor) for tensor in tensors) else None


def _versions(output: Any) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in _tensors(output) or ())


def _copied(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.clone()
    return tuple(None if member is None else member.clone() for member in output)
