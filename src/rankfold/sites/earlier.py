"""Optimizers that were built too early: they hold weights which leave the model, or are trained no more."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_OURS = 3  # references: in the mapping, by the loop, by the question itself


def warn_of_earlier_optimizers(weights: Mapping[str, Tensor], became: str, function: str) -> None:
    """``UserWarning`` if a living optimizer holds one of these parameters, by name.

    It would go on without an error and change nothing. ``became``: what they are now; ``function``: after which the
    optimizer is to be built. Found by asking the garbage collector, a fifth of a second; not where nothing but
    ``weights`` holds them.
    """
    names = {id(weight): name for name, weight in weights.items()}
    if all(sys.getrefcount(weight) <= _OURS for weight in weights.values()) or not _holders(names):
        return
    gc.collect()  # an optimizer that is merely not collected yet says nothing
    for optimizer, name in _holders(names):
        warnings.warn(
            f"an optimizer built earlier ({optimizer}) holds {name}, {became}: build the optimizer after "
            f"{function}, and use the new one",
            UserWarning,
            stacklevel=3,
        )


def warn_of_replaced(before: dict[str, nn.Parameter], root: nn.Module, function: str) -> None:
    """``UserWarning`` if a living optimizer holds one of the parameters ``before``, by name, that ``root`` has lost;
    takes the others out of the mapping."""
    staying = set(root.parameters())
    for name in [name for name, parameter in before.items() if parameter in staying]:
        del before[name]
    warn_of_earlier_optimizers(before, "which is no longer in the model: factors have taken its place", function)


def _holders(weights: Mapping[int, str]) -> list[tuple[str, str]]:
    kinds, found = _subclasses(torch.optim.Optimizer), []
    for optimizer in [thing for thing in gc.get_objects() if type(thing) in kinds]:
        held = (id(p) for group in vars(optimizer).get("param_groups", ()) for p in group["params"])
        name = next((weights[key] for key in held if key in weights), None)
        if name is not None:
            found.append((type(optimizer).__name__, name))
    return found


def _subclasses(kind: type) -> set[type]:
    below: list[type] = kind.__subclasses__()
    return {kind}.union(*map(_subclasses, below))
