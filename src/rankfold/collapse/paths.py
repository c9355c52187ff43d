"""How many layers lie between a model's input and its output, along its shortest and its longest path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import forward, in_eval_mode, tensors_in
from rankfold.collapse.centroid import without_grad_mode
from rankfold.objectives import main_tensor
from rankfold.observe import after

Node = Any  # of autograd's graph
_INPUT = "input"


@dataclass(frozen=True)
class Paths:
    """Layers on the ``shortest`` and the ``longest`` way from input to output, and how many ``calls`` of layers."""

    shortest: int
    longest: int
    calls: int

    @property
    def chain(self) -> bool:
        """Whether every layer lies on the only path: none is passed by, and none runs beside another."""
        return self.shortest == self.longest == self.calls


def paths(model: nn.Module, names: Sequence[str], inputs: Tensor) -> Paths:
    """Count along the graph of one forward pass of ``inputs`` (N, …); a layer that is called twice counts twice.

    Layers that do not reach the output are not counted. Mode, hooks and gradients as found. Cost: one forward pass.
    """
    calls: dict[Node, list[Tensor]] = {}

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        out = next(tensors_in(output), None)
        if out is not None and out.grad_fn is not None:
            calls[out.grad_fn] = list(tensors_in((args, kwargs)))

    with ExitStack() as stack:
        stack.enter_context(without_grad_mode(model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(after(model, dict.fromkeys(names, hook)))
        stack.enter_context(in_eval_mode(model))
        given = inputs.detach().clone().requires_grad_() if inputs.is_floating_point() else inputs
        last = main_tensor(forward(model, given)).grad_fn

    def is_input(value: Tensor) -> bool:
        return value is given or (value.grad_fn is None and not value.is_floating_point() and given is inputs)

    def before(node: Node) -> list[Node]:
        """What a node depends on, a layer as a whole on what enters it; constants are left out."""
        if node not in calls:
            return [child for child, _ in node.next_functions if child is not None]
        return [
            _INPUT if is_input(value) else value.grad_fn for value in calls[node] if is_input(value) or value.grad_fn
        ]

    lengths: dict[Node, tuple[int, int] | None] = {}  # None: no way from the input, as of a bias
    for node in _children_first(last, before):
        if node is _INPUT or getattr(node, "variable", None) is given:
            lengths[node] = (0, 0)
            continue
        ways = [way for child in before(node) if (way := lengths[child]) is not None]
        step = int(node in calls)
        lengths[node] = (min(low for low, _ in ways) + step, max(high for _, high in ways) + step) if ways else None
    shortest, longest = lengths.get(last) or (0, 0)
    return Paths(shortest, longest, sum(lengths.get(node) is not None for node in calls))


def _children_first(last: Node, before: Callable[[Node], Iterable[Node]]) -> list[Node]:
    """Every node that ``last`` depends on, each behind its own; without recursion, for deep networks."""
    order: list[Node] = []
    seen: set[Node] = set()
    waiting = [] if last is None else [(last, False)]
    while waiting:
        node, done = waiting.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            waiting.append((node, True))
            if node is not _INPUT:
                waiting += [(child, False) for child in before(node)]
    return order
