"""Two checkpoints side by side: whether they belong together, and what differs that no adapter takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.adapt.extraction.named import Named, check_finite, quantised
from rankfold.adapt.places import Places
from rankfold.run.disk.tensors import Checkpoint
from rankfold.sites import unwrap

_CHUNK = 1 << 22  # numbers that are widened at once
_ALIKE = 0.5  # relative change of an embedding above which its rows are those of other tokens
_COUNTED = ("no", "one", "two", "three", "four", "five")
_QUANTISED = ("qweight", "qzeros", "scales", "weight_packed", "weight_scale", "absmax", "SCB", "_packed_params")


@dataclass(frozen=True)
class LeftOut:
    """A tensor that differs and that the adapter does not have: why, and how much it differs, relative to the base's
    norm (None: it has no counterpart there, or one of zeros), and ``moved``, in squares, as ``Extraction.moved``."""

    name: str
    why: str
    change: float | None
    moved: float = 0.0


def check_alike(base: Named, tuned: Named, names: Sequence[str]) -> None:
    """``ValueError`` in one line, with the layer, for checkpoints of which one is no tuning of the other.

    ``names``: of the weights to adapt.
    """
    for named in (base, tuned):
        lacking = [name for name in names if name not in named]
        if lacking:
            more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            raise ValueError(
                f"{named.title} has no tensor {lacking[0]}{more}: it is of another architecture, or quantised: "
                "give a checkpoint and another one that was tuned from it"
            )
    first, second = base.checkpoint, tuned.checkpoint
    for which, other in ((first, second), (second, first)):
        # scales beside the weights of a quantiser have names of their own, which the other side has not
        found = next((n for n in which.names if n not in other and n.rpartition(".")[2] in _QUANTISED), None)
        if found is not None:
            raise ValueError(quantised(which, found))
    for name in names:
        if base.shape(name) != tuned.shape(name):
            raise ValueError(
                f"{name} is {sized(base.shape(name))} in {base.title} and {sized(tuned.shape(name))} in "
                f"{tuned.title}, so their architectures differ: give a checkpoint and another one that was tuned "
                "from it"
            )


def with_new_rows(base: Named, tuned: Named) -> dict[str, tuple[int, int]]:
    """The rows in ``base`` and in ``tuned`` of each tensor of the model that has more of them in ``tuned``, as those of
    new tokens, and is otherwise of one size. Headers alone are read."""
    shapes = {name: (base.shape(name), tuned.shape(name)) for name in tuned.keys if name in base}
    return {
        name: (old[0], new[0])
        for name, (old, new) in shapes.items()
        if old and new and old[1:] == new[1:] and old[0] < new[0]
    }


def differences(
    model: nn.Module, base: Named, tuned: Named, found: Places, taken: Iterable[str]
) -> tuple[LeftOut, ...]:
    """Every tensor that differs and is none of ``taken`` (names of weights), with the reason."""
    whys, done = dict(found.left_out), set(taken)
    first_file, second_file = base.checkpoint, tuned.checkpoint
    held = {name: value for name, value in unwrap(model).state_dict(keep_vars=True).items() if value is not None}
    known, first_of = list(held), {}
    for name, value in reversed(held.items()):
        first_of[id(value)] = name
    left: dict[str, LeftOut | None] = {}
    for name in known:
        if name in done or name not in tuned:
            continue
        first = first_of[id(held[name])]
        why = whys.get(name, _what(held[name]) if name == first else f"tied to {first}")
        if name not in base:
            tuned.finite(name)
            left[name] = LeftOut(name, f"{why}; the base has no such tensor", None)
            continue
        mask = not isinstance(held[name], nn.Parameter)
        item = _left(name, why, first_file, base.keys[name], second_file, tuned.keys[name], mask=mask)
        tied = left.get(first) if name != first else None
        same = item is not None and tied is not None and (item.change, item.moved) == (tied.change, tied.moved)
        left[name] = replace(item, moved=0.0) if item is not None and same else item  # one tensor is counted once
    stray = set(second_file.names) - set(tuned.keys.values())
    for key in sorted(stray):
        why = "belongs to no layer of this model"
        if key in first_file:
            left[key] = _left(key, why, first_file, key, second_file, key, mask=True)
            continue
        check_finite(second_file, key, second_file.read(key))
        left[key] = LeftOut(key, why, None)
    return tuple(item for item in left.values() if item is not None)


def _left(
    name: str, why: str, base: Checkpoint, first: str, tuned: Checkpoint, second: str, *, mask: bool
) -> LeftOut | None:
    """``mask``: it may be one, as it is no parameter."""
    old, new = base.read(first), tuned.read(second)
    if mask and old.shape == new.shape and bool((old == new).all()):
        return None  # it may hold infinities, which are no fault where both have them
    check_finite(base, first, old)
    check_finite(tuned, second, new)
    if old.shape != new.shape:
        rows = min(len(old), len(new)) if old.dim() == new.dim() and old.dim() else 0
        if not rows or old.shape[1:] != new.shape[1:]:
            raise ValueError(
                f"{name} is {sized(old.shape)} in {base.title} and {sized(new.shape)} in {tuned.title}, so their "
                "architectures differ: give a checkpoint and another one that was tuned from it"
            )
        change, moved = _change(old[:rows], new[:rows])
        if len(new) < len(old) or change > _ALIKE:
            raise ValueError(
                f"{name} has {len(old):,} rows in {base.title} and {len(new):,} in {tuned.title}, and the rows "
                f"that both have differ by {change:.0%}, so their vocabularies differ: give checkpoints with the "
                "same tokenizer"
            )
        return LeftOut(
            name, f"{why}; the tuned model has {len(new) - len(old):,} rows more (new tokens)", change, moved
        )
    change, moved = _change(old, new)
    if not new.is_floating_point():
        moved = 0.0  # what counts, as the batches that a norm has seen, is no part of the change
    if change == float("inf"):
        return LeftOut(name, f"{why}; it is all zeros in the base", None, moved)
    return LeftOut(name, why, change, moved) if change > 0 else None


def _what(value: Tensor) -> str:
    """A tensor that no layer is known to own, in words."""
    if not isinstance(value, nn.Parameter):
        return "a buffer"
    if value.dim() < 2:
        return "a vector" if value.dim() else "a number"
    return f"a parameter of {_COUNTED[value.dim()] if value.dim() < len(_COUNTED) else value.dim()} dimensions"


def moved_by(old: Tensor, new: Tensor) -> float:
    """‖new − old‖², 0 where the two do not fit each other."""
    return _change(old, new)[1] if old.shape == new.shape else 0.0


def _change(old: Tensor, new: Tensor) -> tuple[float, float]:
    """‖new − old‖ / ‖old‖ and ‖new − old‖², some numbers at a time."""
    moved = size = 0.0
    for a, b in zip(old.reshape(-1).split(_CHUNK), new.reshape(-1).split(_CHUNK), strict=True):
        first, second = a.to(torch.float64), b.to(torch.float64)
        moved += float((second - first).square().sum())
        size += float(first.square().sum())
    return (moved / size) ** 0.5 if size > 0 else float("inf") if moved > 0 else 0.0, moved


def sized(shape: Any) -> str:
    return "×".join(map(str, shape)) or "one number"
