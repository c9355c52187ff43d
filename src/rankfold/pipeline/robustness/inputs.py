"""The samples that are attacked, and the space that their inputs may move in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from rankfold.batches import moved, place_of, samples_of, size_of
from rankfold.pipeline.quality.halves import draws
from rankfold.pipeline.robustness.attack import Space, movable
from rankfold.train.feed import in_memory, ordered
from rankfold.zoo import Split

OWN = "of the inputs"  # the unit of radii
_READ = 4096  # samples at once, to know their extremes


def taken(model: nn.Module, part: Any, batch_size: int, samples: int | None) -> list[Any]:
    """The samples to attack, on the model's device and in its dtype."""
    place = place_of(model.modules())
    found, left = list[Any](), samples
    for batch in ordered(part, batch_size):
        size = size_of(batch)
        if left is not None and size > left:
            batch, size = samples_of(batch, size, slice(left)), left
        found.append(batch if place is None else moved(batch, place.device, place.dtype))
        left = None if left is None else left - size
        if left == 0:
            break
    if not found:
        raise ValueError("the data are empty: give at least one sample")
    if not movable(found[0]):
        raise ValueError(
            "the inputs are whole numbers, such as tokens, which cannot be changed by a small amount: robustness is "
            "measured for models that read real numbers, such as images"
        )
    return found


def check_finite(batches: list[Any], data: Any, batch_size: int) -> None:
    """``ValueError`` for a sample that no attack can start from: a NaN has no neighbours, and spoils the extremes that
    all samples stay in. Its number is that in the data; a loader that draws anew has none."""
    place = _not_finite(batches)
    if place is None:
        return
    if in_memory(data) is not None:  # of which some were drawn
        place = _not_finite(ordered(data, batch_size))
    which = "a sample" if draws(data) else f"sample {place}"
    raise ValueError(f"{which} holds NaN or infinity in its input: leave this sample out, or mend it")


def _not_finite(batches: Iterable[Any]) -> int | None:
    """The number of the first sample with an input that is not finite."""
    before = 0
    for batch in batches:
        finite = torch.stack([x.isfinite().flatten(1).all(1).cpu() for x in movable(batch)]).all(0)
        if not bool(finite.all()):
            return before + int(finite.to(torch.uint8).argmin())
        before += len(finite)
    return None


def space_of(
    data: Any, batches: list[Any], pixels: tuple[Tensor, Tensor] | None, bounds: tuple[float, float] | None
) -> tuple[Space, str]:
    """Units and extremes of the inputs, and what the unit is called."""
    groups = list(zip(*map(movable, batches), strict=True))
    if pixels is None and isinstance(data, Split) and data.inputs.dtype == torch.uint8:
        pixels = data.mean, data.std
    if pixels is None:
        one = tuple(torch.ones(()) for _ in groups)
        low, high = _extremes(data, batches) if bounds is None else (_ends(end, groups) for end in bounds)
        space, unit = Space(one, low, high), OWN
    else:
        mean, std = (torch.as_tensor(part, dtype=torch.float64).reshape(-1) for part in pixels)
        if any(len(mean) not in (1, group[0].shape[1]) or len(mean) != len(std) for group in groups):
            raise ValueError(
                f"pixels=: {len(mean)} means and {len(std)} deviations do not fit the channels of the inputs"
            )
        ends = bounds or (0.0, 1.0)
        shaped = [tuple(_channels(v, g[0]) for g in groups) for v in (1 / std, *((end - mean) / std for end in ends))]
        space, unit = Space(*shaped), "of pixels between 0 and 1"
    _check_inside(space, groups)
    return space, unit


def _ends(end: float, groups: list[Any]) -> tuple[Tensor, ...]:
    return (torch.tensor(float(end)),) * len(groups)


def held_whole(data: Any) -> Any:
    """The data where all of them are in memory, else None."""
    if isinstance(data, DataLoader) and isinstance(data.dataset, TensorDataset) and data.collate_fn is default_collate:
        return data.dataset
    return data if in_memory(data) is not None or isinstance(data, list | Mapping) else None


def _extremes(data: Any, batches: list[Any]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The least and the largest finite entry of each input tensor: of all data in memory, else of ``batches``."""
    whole = held_whole(data)
    lows, highs = list[tuple[Tensor, ...]](), list[tuple[Tensor, ...]]()
    for batch in chain(batches, () if whole is None else ordered(whole, _READ)):
        parts = [x[x.isfinite()].double().cpu() for x in movable(batch)]
        if all(map(len, parts)):
            lows.append(tuple(x.min() for x in parts))
            highs.append(tuple(x.max() for x in parts))
    low, high = (tuple(map(torch.stack, zip(*ends, strict=True))) for ends in (lows, highs))
    return tuple(x.min() for x in low), tuple(x.max() for x in high)


def _channels(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *(1,) * (like.dim() - 2))


def _check_inside(space: Space, groups: list[tuple[Tensor, ...]]) -> None:
    """``ValueError`` for a sample that lies outside of what inputs may be, beyond rounding."""
    for low, high, unit, group in zip(space.low, space.high, space.unit, groups, strict=True):
        for x in group:
            slack = (1e-3 * unit).to(x)
            if bool((x < low.to(x) - slack).any()) or bool((x > high.to(x) + slack).any()):
                raise ValueError(
                    f"some inputs lie outside of the bounds: they run from {float(x.min()):.4g} to {float(x.max()):.4g}"
                )
