"""Work that takes gradients or changes weights, called within ``torch.inference_mode()`` or ``torch.autocast``.

In inference mode no gradient is taken, whatever is asked for, and every tensor made there can never be trained.
Autocast keeps the copies of weights that it has rounded until its outermost context ends: whatever is learnt meanwhile,
a network would go on computing with what it began with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rankfold.batches import mapped, tensors_in

P = ParamSpec("P")
R = TypeVar("R")


def ordinarily(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` outside of inference mode wherever it is called, and by weights as they are under autocast; tensors
    among its data that were made in inference mode are copied. ``ValueError`` for a network whose own parameters were.
    """

    @functools.wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        _check((*args, *kwargs.values()))
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext(), rounded_anew():
            given, named = _ordinary(dict(enumerate(args))), _ordinary(kwargs)
            return function(*given.values(), **named)

    return outside


@contextmanager
def rounded_anew() -> Iterator[None]:
    """Within the block autocast rounds a weight whenever it is used, also where autocast began outside."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _check(given: Sequence[Any]) -> None:
    for model in (each for each in given if isinstance(each, nn.Module)):
        for name, parameter in model.named_parameters():
            if not is_lazy(parameter) and parameter.is_inference():  # one without a shape was made nowhere yet
                raise ValueError(
                    f"{name} of this {type(model).__name__} was made in torch.inference_mode(), so that it takes no "
                    "gradients and cannot be trained: copy the network outside of that mode, copy.deepcopy(model), "
                    "and give the copy"
                )


def _ordinary(given: Mapping[Any, Any]) -> dict[Any, Any]:
    """The arguments; copies of data that have tensors of inference mode in them, which autograd does not take."""
    kinds = Tensor | tuple | list | Mapping
    made = {
        key
        for key, value in given.items()
        if isinstance(value, kinds) and any(map(Tensor.is_inference, tensors_in(value)))
    }
    return {key: mapped(value, Tensor.clone) if key in made else value for key, value in given.items()}
