"""Which modules are called without what they give ever reaching what the model gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.objectives.answer import named_tensors
from rankfold.observe.watch import Seen, after

_RUNS = 32  # runs with disturbed outputs at most; what is not settled then counts as reaching


def unheard(run: Callable[[], Any], modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of ``modules`` that ``run`` calls and whose outputs do not matter to any tensor that it gives.

    What has a path of gradients to an output matters. The others are tried: their outputs are replaced by noise, all at
    once, then in halves. Whatever cannot be told counts as reaching. Cost: one run with its backward pass, and
    a run for every one or two modules without a path.
    """
    called, given, reached = _by_gradient(run, modules)
    if not given:  # nothing to be compared
        return []
    suspects = [name for name in called if name not in reached]
    left = [_RUNS]

    def silent(names: list[str]) -> list[str]:
        if not names or left[0] == 0:
            return []
        left[0] -= 1
        if _same(run, {name: modules[name] for name in names}, given):
            return names
        half = len(names) // 2
        return [] if len(names) == 1 else silent(names[:half]) + silent(names[half:])

    return silent(suspects)


def _by_gradient(run: Callable[[], Any], modules: Mapping[str, nn.Module]) -> tuple[list[str], list[Tensor], set[str]]:
    """Which modules are called, what is given, and from which of them a gradient would come."""
    zeros: dict[str, Tensor] = {}

    def mark(name: str) -> Seen:
        def add(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            zero = zeros.setdefault(name, output.new_zeros((), requires_grad=True))
            return output + zero

        return add

    try:
        with torch.enable_grad():
            with after(None, {module: mark(name) for name, module in modules.items()}):
                ends = [tensor.sum() for _, tensor in named_tensors(run()) if tensor.requires_grad]
            found = torch.autograd.grad(ends, list(zeros.values()), allow_unused=True) if ends else ()
    except (RuntimeError, ValueError, TypeError, AssertionError):  # a forward that takes no gradients, in any way
        found = ()
    with torch.no_grad():  # afterwards, so that what the model keeps of its last run has no graph
        given = [tensor.clone() for _, tensor in named_tensors(run())]
    reached = {name for name, gradient in zip(zeros, found) if gradient is not None}
    return list(zeros), given, reached


def _same(run: Callable[[], Any], modules: Mapping[str, nn.Module], given: Sequence[Tensor]) -> bool:
    """Whether the same is given with noise in place of what these modules give."""
    generator = torch.Generator().manual_seed(0)

    def disturb(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        noise = torch.randn(output.shape, generator=generator)
        return (noise.to(output) * (1 + output.abs().amax())).to(output.dtype)

    try:
        with torch.no_grad(), after(None, dict.fromkeys(modules.values(), disturb)):
            now = [tensor for _, tensor in named_tensors(run())]
    except Exception:  # the model's own code has met the noise
        return False
    return len(now) == len(given) and all(torch.equal(a, b) for a, b in zip(now, given, strict=True))
