"""Layers that can become narrower: which layer each stands for, what passes its bottleneck, and a narrower one.

A dense layer counts as one whose bottleneck are its outputs, with the identity as second factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.forms import Convolution, Form, Layer
from rankfold.forms.geometry import ChannelFolding
from rankfold.forms.pivoted import stored
from rankfold.layers import Completion, LowRankConv, LowRankLinear, SpatialConv2d
from rankfold.layers.residual import ResidualLinear
from rankfold.layers.rounded import is_whole
from rankfold.layers.shared import Shared
from rankfold.layers.weights.refuse import RefusesWeight
from rankfold.sites.find import sites
from rankfold.sites.kinds.convolution import ConvLayer, read_convolution
from rankfold.sites.kinds.linear import LinearLayer, read_linear
from rankfold.sites.patches import patches
from rankfold.sites.site import Site, SiteList


def factored_sites(model: nn.Module) -> SiteList:
    """Every layer of ``model`` that is a pair of factors with a bottleneck, as the site that it stands for.

    Its one form beside ``keep`` is the one it has. Tucker and CP layers are left out: their ranks are tied to one
    another.
    """
    names: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(path)
    found = []
    for module, paths in names.items():
        read = _stands_for(module)
        if read is not None:
            layer, form = read
            parameter = f"{paths[0]}.up.weight".lstrip(".")
            found.append(Site(paths[0], parameter, layer, frozenset({Form.KEEP, form}), (), tuple(paths[1:])))
    return SiteList(tuple(found))


def factored_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer that is a product of factors that can be trained, by name: of every form, those over a base too; not
    what is stored as int8. More than ``factored_sites``, which can become narrower."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, RefusesWeight) and (isinstance(module, ResidualLinear) or not is_whole(module))
    }


def narrowable_sites(model: nn.Module) -> SiteList:
    """``factored_sites``, and dense layers whose outputs are few beside their inputs (at most half as many).

    Their moments are then small beside their weights. Transposed convolutions, tied weights and the projections inside
    ``nn.MultiheadAttention`` are left out.
    """
    factored = factored_sites(model)
    inside = tuple(f"{site.name}." for site in factored)
    dense = []
    for site in sites(model):
        m, n = site.shape
        fits = Form.FACTORED in site.forms and 2 * m <= n and not getattr(site.layer, "transposed", False)
        fits = fits and not site.layer.lookup
        if fits and not f"{site.name}.".startswith(inside) and _is_own(model, site.name):
            dense.append(replace(site, forms=frozenset({Form.KEEP, Form.FACTORED})))
    return SiteList((*factored, *dense))


def _is_own(model: nn.Module, name: str) -> bool:
    try:
        return _dense(model.get_submodule(name)) is not None
    except AttributeError:  # of an attention module, which ``sites`` takes apart
        return False


def _dense(module: nn.Module) -> Layer | None:
    return None if isinstance(module, nn.MultiheadAttention) else read_linear(module) or read_convolution(module)


def weights_of(module: Any) -> tuple[Tensor, ...]:
    """The tensors that a narrower layer would replace: its weights, and the order of a pivoted one."""
    if not isinstance(module, LowRankLinear | LowRankConv | SpatialConv2d):
        return (module.weight,)
    up = module.up
    return (module.down.weight, *((up.rest.weight, up.order) if isinstance(up, Completion) else (up.weight,)))


def _stands_for(module: nn.Module) -> tuple[Layer, Form] | None:
    if not isinstance(module, LowRankLinear | LowRankConv | SpatialConv2d) or is_whole(module):
        return None
    if isinstance(module, Shared):  # others have the same factor: it is not narrowed for one of them
        return None
    completed = isinstance(module.up, Completion)
    down, up = module.down, module.up.rest if completed else module.up
    pair = Form.PIVOTED if completed else Form.FACTORED
    if isinstance(module, LowRankLinear):
        if not (read_linear(down) and read_linear(up)):
            return None
        m, n = module.out_features, module.in_features
        return LinearLayer("Linear", (m, n), module.bias is not None), pair
    first, last = read_convolution(down), read_convolution(up)
    if first is None or last is None:
        return None
    form = pair if isinstance(module, LowRankConv) else Form.SPATIAL
    kernel = (first.kernel[0], last.kernel[1]) if form is Form.SPATIAL else first.kernel
    was = first.setting
    conv = Convolution(was.channels_in, module.up.out_channels, kernel, was.groups, was.transposed)
    return ConvLayer(first.kind, conv, module.bias is not None), form


def positions(module: Any) -> int:
    """At how many places the second factor looks at once: the width of a spatial pair, else 1."""
    return module.up.kernel_size[1] if isinstance(module, SpatialConv2d) else 1


def output_rows_alone(module: Any, output: Tensor) -> Tensor:
    """The outputs of a dense layer without its bias, as rows (N, m) or (groups, N, m)."""
    layer: Any = _dense(module)
    rows = layer.output_rows(output)
    if module.bias is None:
        return rows
    bias = module.bias.detach().to(rows)
    return rows - (bias if layer.groups == 1 else bias.reshape(layer.groups, 1, -1))


def bottleneck_rows(module: Any, inside: Tensor) -> Tensor:
    """What enters the second factor, as rows (N, r), (groups, N, r), or (N, r·k) patches of a spatial pair."""
    if isinstance(module, LowRankLinear):
        return inside.reshape(-1, module.rank)
    if isinstance(module, SpatialConv2d):
        return patches(module.up, inside)
    batched = inside if inside.dim() == module.down.weight.dim() else inside.unsqueeze(0)
    rows = batched.movedim(1, -1).flatten(0, -2)
    groups = module.groups
    return rows if groups == 1 else rows.unflatten(1, (groups, -1)).transpose(0, 1)


def pair(module: Any) -> tuple[Tensor, Tensor]:
    """(right (…, r, n), left (…, m, q)) of a factored layer, detached; q = r, or r·k of a spatial pair.

    Of a dense layer (W, I).
    """
    if not isinstance(module, LowRankLinear | LowRankConv | SpatialConv2d):
        layer: Any = _dense(module)
        matrix = layer.geometry(Form.FACTORED).matrix(module.weight.detach())
        eye = torch.eye(matrix.shape[-2], dtype=matrix.dtype, device=matrix.device)
        return matrix, eye.expand(*matrix.shape[:-1], matrix.shape[-2])
    down, up = module.down.weight.detach(), module.up.weight.detach()
    if isinstance(module, LowRankLinear):
        return down, up
    if isinstance(module, SpatialConv2d):
        return down.flatten(1), up.flatten(1)
    right = ChannelFolding(module.groups, module.transposed).matrix(down)
    return right, up.flatten(1) if module.groups == 1 else up.reshape(module.groups, -1, up.shape[1])


def narrower(module: Any, right: Tensor, left: Tensor) -> tuple[Tensor, ...]:
    """What ``weights_of`` gives for factors shaped as ``pair`` gives them; the module is left as it is."""
    rank, (down, up, *order) = right.shape[-2], weights_of(module)
    places: tuple[Tensor, ...] = ()
    if order:
        right, left, place = stored(right, left)
        places = (place.to(order[0]),)
    if isinstance(module, LowRankConv) and module.transposed:
        right = ChannelFolding(module.groups, True).fold((down.shape[0], rank, *down.shape[2:]), right)
    else:
        right = right.reshape(-1, *down.shape[1:])
    left = left.reshape(-1, rank, *up.shape[2:])
    made = (nn.Parameter(a.to(b).contiguous().clone(), b.requires_grad) for a, b in ((right, down), (left, up)))
    return *made, *places


@torch.no_grad()
def narrow_(module: Any, made: Sequence[Tensor]) -> None:
    """Put what ``narrower`` made in its place; the module stays the same object, hooks and all."""
    down, rest, *order = made
    module.down.weight = down
    last = module.up.rest if order else module.up
    last.weight = rest
    rank = rest.shape[1]
    if order:
        module.up.order = order[0]  # not copied: what was there may be put back
        module.up.rank = rank
    if isinstance(module, LowRankLinear):
        module.rank = module.down.out_features = last.in_features = rank
        last.out_features = rest.shape[0]
        return
    module.down.out_channels = last.in_channels = rank * module.groups
    last.out_channels = rest.shape[0]
