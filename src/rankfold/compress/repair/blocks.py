"""Blocks of a network, and how far what they give is off from what the original's give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.objectives.answer import named_tensors, unpadded
from rankfold.observe import after
from rankfold.observe.halves import WHOLE, Halves
from rankfold.sites import factored_layers

Given = Mapping[str, Sequence[Tensor]]
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks(root: nn.Module, layers: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the innermost blocks that hold one of ``layers`` and more than that; "" for the whole model."""
    found: list[str] = []
    for path, module in root.named_modules():
        parent = path.rpartition(".")[0]
        inside = path and isinstance(root.get_submodule(parent), _CONTAINERS)
        holds = any(layer.startswith(f"{path}.") for layer in layers)
        if inside and holds and not isinstance(module, _CONTAINERS) and not any(within(path, other) for other in found):
            found.append(path)
    return tuple(found) or ("",)


def within(path: str, block: str) -> bool:
    return not block or path == block or path.startswith(f"{block}.")


def numbers(output: Any) -> list[Tensor]:
    """What of a block's output is compared; ``TypeError`` where nothing can be seen in it."""
    found = [x for _, x in named_tensors(output) if x.is_floating_point()]
    if not found:
        raise TypeError(
            f"a block of the network returned a {type(output).__name__}, in which there are no tensors of real numbers "
            "to compare: let it return a tensor, tuple, mapping or dataclass"
        )
    return found


def off(x: Tensor, wanted: Tensor) -> Tensor:
    """The squared error over the energy that there should be."""
    x, wanted = _unmasked(x, wanted)
    return (x.float() - wanted.float()).square().sum() / wanted.float().square().sum().clamp_min(1e-30)


def _unmasked(x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Both with zeros where they hold the same infinity, by which a network says that there is no number."""
    same = wanted.isinf() & (x == wanted)
    return x.masked_fill(same, 0), wanted.masked_fill(same, 0)


def blocks_of_both(root: nn.Module, original: nn.Module) -> tuple[str, ...]:
    """The blocks with factored layers that both networks have; none where ``root`` is not made of blocks."""
    known = dict(original.named_modules())
    return tuple(name for name in blocks(root, tuple(factored_layers(root))) if name and name in known)


def differentiate(loss: Tensor, by: str) -> None:
    """Its gradients, or ``ValueError`` where there are none. ``by``: "whole" or "blocks", as it is tuned."""
    try:
        loss.backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of code that detaches what it gives, or has used its graph up itself
        words = " ".join(str(error).split())
        other = ", or tune the blocks where the network is made of them (by='blocks', --tune-by blocks)"
        raise ValueError(
            f"tuning needs outputs that can be differentiated, and these cannot ({words[:120]}): leave tuning out"
            f"{other if by == 'whole' else ''}"
        ) from None


@contextmanager
def noted(root: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What the blocks give within the block of code, call after call."""
    given: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            given.setdefault(name, []).extend(x for _, x in named_tensors(output) if x.is_floating_point())

        return hook

    with after(root, {name: note(name) for name in names}, last=True):
        yield given


def blocks_off(given: Given, wanted: Given, batch: Any, halves: Halves = WHOLE) -> Tensor:
    """The mean over the blocks of how far each position is off, as a share of its own energy; padding counts nowhere,
    nor what has another shape than in the original. Zero where there is nothing to compare. ``halves``: which blocks
    are of a decoder beside an encoder."""
    shares = [
        _share(x, then, batch, halves.decodes(name))
        for name, found in given.items()
        for x, then in zip(found, wanted.get(name, ()))
        if x.shape == then.shape and x.dim() > 1
    ]
    return torch.stack(shares).mean() if shares else torch.zeros(())


def _share(x: Tensor, wanted: Tensor, batch: Any, decodes: bool | None) -> Tensor:
    """Positions are rows of the last axis; of a map (samples, channels, places …) its samples are."""
    mask = unpadded(x, batch, decodes)
    if mask is not None:
        x, wanted = x[mask], wanted[mask]
    x, wanted = _unmasked(x, wanted)
    axes = -1 if x.dim() < 4 else tuple(range(1, x.dim()))
    error, energy = (each.float().square().sum(axes) for each in (x - wanted, wanted))
    return (error / energy.clamp_min(torch.finfo(energy.dtype).tiny)).mean()
