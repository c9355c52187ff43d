"""Features at any module of a model: what enters it, or leaves it, as rows in one of three views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.layers import SplitAttention
from rankfold.objectives.answer import unpadded
from rankfold.observe import after, first_of
from rankfold.sites import ordinary_class, setting_of

Side = Literal["input", "output"]
View = Literal["whole", "position", "pooled"]


def rows(features: Tensor, view: View, *, channels_first: bool = True, counted: Tensor | None = None) -> Tensor:
    """Features of n samples as rows.

    ``whole``: one row for each sample, all of its numbers, (n, d). ``position``: one row for each position of a map or
    token of a sequence, (n·P, C), sample by sample. ``pooled``: their mean for each sample, (n, C). Two-dimensional
    features have one position, so that the three are the same. ``channels_first``: of (n, C, …), else of (n, …, C).
    ``counted`` (n, P): the positions that are no padding, which is in no view; for ``whole`` as many of each sample.
    """
    if features.ndim == 1:
        features = features.unsqueeze(1)
    if features.ndim == 2 or (view == "whole" and counted is None):
        return features.flatten(1)
    places = features.movedim(1, -1) if channels_first else features
    places = places.flatten(1, -2)  # (n, P, C)
    if view == "pooled":
        return places.mean(1) if counted is None else _mean(places, counted)
    found = places.flatten(0, 1) if counted is None else places[counted]
    return found.reshape(len(features), -1) if view == "whole" else found


def _mean(places: Tensor, counted: Tensor) -> Tensor:
    known = places.masked_fill(~counted.unsqueeze(-1), 0)  # what stands in padding may be no number
    return known.sum(1) / counted.sum(1, keepdim=True).clamp_min(1)


def counted_in(features: Tensor, batch: Any, *, channels_first: bool) -> Tensor | None:
    """(n, P), which positions of features are no padding, by the ``attention_mask`` of the batch they are of; None
    where all of them count, or it does not say."""
    if features.ndim != 3:
        return None
    mask = unpadded(features.movedim(1, -1) if channels_first else features, batch)
    return None if mask is None or bool(mask.all()) else mask


def has_channels_first(module: nn.Module, features: Tensor) -> bool:
    """Maps (n, C, H, W) and what a one-dimensional convolution or normalisation takes; not token sequences."""
    kind = ordinary_class(module)
    if features.ndim >= 4:
        return not issubclass(kind, nn.Linear | nn.LayerNorm | nn.MultiheadAttention)
    return features.ndim == 3 and (
        issubclass(kind, nn.Conv1d | nn.ConvTranspose1d | nn.BatchNorm1d) or kind.__name__.endswith("Pool1d")
    )


def patches(module: nn.Module, inputs: Tensor) -> Tensor:
    """The rows that meet a layer's matrix: (n, P, k).

    Of a convolution the patches in its own stride, padding and dilation, in the order of the columns of its matrix;
    of anything else the last axis of its input.
    """
    kind: Any = module
    if not inputs.is_floating_point():
        raise ValueError(
            f"a {type(module).__name__} reads whole numbers, so that there are no rows of numbers to compare"
        )
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1:
        given = setting_of(module)
        if isinstance(module, nn.Conv1d):
            inputs = inputs.unsqueeze(2)
            kernel, dilation, stride = ((1, *value) for value in (kind.kernel_size, given.dilation, given.stride))
        else:
            kernel, dilation, stride = kind.kernel_size, given.dilation, given.stride
        mode = "constant" if kind.padding_mode == "zeros" else kind.padding_mode
        sides = list(given.pads)
        if mode != "constant" and isinstance(module, nn.Conv1d):
            padded = F.pad(inputs.squeeze(2), sides, mode=mode).unsqueeze(2)
        else:
            padded = F.pad(inputs, sides, mode=mode)
        return F.unfold(padded, kernel, dilation=dilation, stride=stride).mT
    if isinstance(module, nn.modules.conv._ConvNd):
        raise ValueError(f"the patches of a {type(module).__name__} with {module.groups} groups are not told apart")
    return inputs.reshape(len(inputs), -1, inputs.shape[-1])


def is_swapped(model: nn.Module, name: str) -> bool:
    """Whether (length, samples, width) enters and leaves the module, as inside every split attention."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), SplitAttention)


Taken = Callable[[str, nn.Module, Tensor], None]


@contextmanager
def watched(model: nn.Module, modules: Sequence[str], side: Side, take: Taken) -> Iterator[None]:
    """Within the block ``take(name, module, features)`` is called at every call of each of ``modules``.

    ``features`` is the first tensor that enters (``side`` input) or leaves, samples first. Only own hooks are added
    and removed.
    Raises ``ValueError`` for a name that is no module.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    for name in modules:
        if name not in known:
            raise ValueError(f"there is no module named {name!r}: the modules are {', '.join(filter(None, known))}")

    def watch(name: str, swapped: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if side == "input":
                value = first_of(args, kwargs)
            else:
                value = output[0] if isinstance(output, tuple | list) else output
            if not isinstance(value, Tensor):
                value = getattr(value, "last_hidden_state", value)
            if not isinstance(value, Tensor):
                raise ValueError(f"{name}: its {side} is a {type(value).__name__}, not a tensor")
            if swapped:
                value = value.transpose(0, 1)
            # an activation behind may overwrite what leaves a layer
            take(name, module, value.clone() if side == "output" else value)

        return hook

    with after(model, {name: watch(name, is_swapped(model, name)) for name in modules}):
        yield


def order_of_calls(model: nn.Module, modules: Sequence[str], run: Callable[[], object]) -> tuple[str, ...]:
    """Those of ``modules`` that ``run`` calls, in the order of their first call."""
    seen: dict[str, None] = {}
    with watched(model, modules, "input", lambda name, module, value: seen.setdefault(name)), torch.no_grad():
        run()
    return tuple(seen)
