"""The one tensor that a network must take for bounds, since centroids are means of it: of batches of any form."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import arguments


def one_tensor(model: nn.Module, batches: Sequence[Any]) -> tuple[Tensor | None, str]:
    """All inputs (N, …) that ``model`` takes of ``batches``, or None and, in words, why they are not one tensor."""
    parts: list[Tensor] = []
    for batch in batches:
        args, kwargs = arguments(batch, model)
        given = [*args, *kwargs.values()]
        if len(given) > 1:
            return None, "the model takes more than one input"
        if not given or not isinstance(given[0], Tensor):
            return None, "the model's input is not one tensor"
        if kwargs and not _is_first(model, next(iter(kwargs))):
            return None, f"the model takes its input as {next(iter(kwargs))}, which is not its first argument"
        parts.append(given[0])
    if len({part.shape[1:] for part in parts}) > 1:
        return None, "the samples have different shapes"
    return (torch.cat(parts), "") if parts else (None, "there are no samples")


def _is_first(model: nn.Module, name: str) -> bool:
    try:
        return next(iter(inspect.signature(model.forward).parameters), None) == name
    except (TypeError, ValueError):
        return False
