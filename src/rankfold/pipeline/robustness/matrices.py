"""Every matrix that a network multiplies by, as it is in effect: parametrised, normalised, factored, whole or bare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import copied, evaluating
from rankfold.forms.geometry import Below, Beside, ChannelFolding, Matricization, Plain, Transposed
from rankfold.layers import FactoredConv, InTraining, LowRankConv1D, LowRankEmbedding, LowRankLinear
from rankfold.layers.experts import LowRankEnter, LowRankLeave
from rankfold.layers.shared import Shared
from rankfold.sites import Form, opened, read_layer, sites, unwrap
from rankfold.sites.find import MERGE_FIRST
from rankfold.sites.foreign import why_foreign

_FACTORED = LowRankLinear, FactoredConv, LowRankEnter, LowRankLeave, InTraining
Matrix = tuple[str, Tensor, float]  # name, (m, n) or (groups, m, n), relative rounding of the entries


@torch.no_grad()
def matrices(model: nn.Module) -> tuple[list[Matrix], tuple[str, ...]]:
    """The matrices of ``model`` in the order of its modules, and what else it may multiply by, each with the reason why
    it is no such matrix. Modules are walked, not sites: what cannot be factored amplifies all the same."""
    root = unwrap(model)
    holder, found, left = nn.Sequential(root), list[Matrix](), list[str]()  # a bare layer is inside of something too
    adapted = {f"0.{site.name}" for site in sites(root) if site.note == MERGE_FIRST}
    with evaluating(holder), opened(holder):  # reading some parametrised weights in training mode changes them
        for path, module in _own(holder):
            name = path[2:] or type(module).__name__
            if path in adapted:
                left.append(f"{name} (inside a PEFT adapter: merge it first)")
            elif (why := _why_not(module)) is not None:
                left.append(f"{name} ({why})")
            elif (read := _matrix(module)) is not None:
                found.append((name, *read))
            elif not _is_lookup(module):
                left += [f"{f'{path}.{key}'[2:]} (used in code of its own)" for key in _wide(module)]
    return found, tuple(left)


def _own(holder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each module below ``holder`` once, those inside of a layer that counts as a whole left aside."""
    inside: tuple[str, ...] = ()
    for path, module in holder.named_modules():
        if path and not path.startswith(inside):
            yield path, module
            if isinstance(module, (*_FACTORED, LowRankEmbedding)) or _reads(module):
                inside += (f"{path}.",)


def _reads(module: nn.Module) -> bool:
    return why_foreign(module) is not None or read_layer(module) is not None


def _why_not(module: Any) -> str | None:
    if why_foreign(module) is not None:
        return "its weights are quantized, packed or in pieces"
    if "forward" in vars(module) and _wide(module):
        return "its forward was replaced from outside"
    return None


def _matrix(module: Any) -> tuple[Tensor, float] | None:
    """The matrix of this very module and its rounding; None where it computes with no matrix that is known."""
    if isinstance(module, _FACTORED):
        return _product(module)
    layer = read_layer(module)
    if layer is None or layer.lookup:
        return None
    weight = layer.weight(module).detach()
    if not weight.is_floating_point() or not weight.numel():
        return None
    return layer.geometry(Form.FACTORED).matrix(weight), torch.finfo(weight.dtype).eps


def _product(module: Any) -> tuple[Tensor, float]:
    """Thin factors say the rank, so they are multiplied in float64; one that another layer holds stays as it is."""
    shared = isinstance(module, Shared)
    weight = (module if shared else copied(module).double()).weight.detach()
    if isinstance(module, InTraining):
        layer: Any = read_layer(module)
        geometry: Matricization = layer.geometry(Form.FACTORED)
    elif isinstance(module, FactoredConv):
        geometry = ChannelFolding(module.groups, module.transposed)
    elif isinstance(module, LowRankEnter | LowRankLeave):
        geometry = Below() if isinstance(module, LowRankEnter) else Beside()
    else:
        geometry = Transposed() if isinstance(module, LowRankConv1D) else Plain()
    return geometry.matrix(weight), torch.finfo(weight.dtype).eps


def _is_lookup(module: nn.Module) -> bool:
    """Whether rows are looked up here, and nothing is multiplied."""
    if isinstance(module, LowRankEmbedding):
        return True
    layer = read_layer(module)
    return layer is not None and layer.lookup


def _wide(module: nn.Module) -> list[str]:
    """The parameters of this very module that are more than vectors."""
    return [key for key, value in module._parameters.items() if value is not None and value.dim() > 1 and len(value)]
