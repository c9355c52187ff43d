"""Optimizers that were built too early: they hold weights which are about to leave the model."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping

import torch


def warn_of_earlier_optimizers(weights: Mapping[int, str]) -> None:
    """``UserWarning`` if a living optimizer holds one of these parameters (``id`` to name).

    It would go on without an error and change nothing. Found by asking the garbage collector, once.
    """
    if not _holders(weights):
        return
    gc.collect()  # an optimizer that is merely not collected yet says nothing
    for optimizer, name in _holders(weights):
        warnings.warn(
            f"an optimizer built earlier ({optimizer}) holds {name}.weight, which is now a product of factors that it "
            "does not know: build the optimizer after overparametrize_, and step the new one",
            UserWarning,
            stacklevel=3,
        )


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
