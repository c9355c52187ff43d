"""Layers that can become narrower: which layer each stands for, what passes its bottleneck, and a narrower one.

A dense layer counts as one whose bottleneck are its outputs, with the identity as second factor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.forms import Convolution, Form, Layer
from rankfold.forms.geometry import ChannelFolding
from rankfold.layers import LowRankConv, LowRankLinear, SpatialConv2d
from rankfold.sites.convolution import ConvLayer, read_convolution
from rankfold.sites.find import sites
from rankfold.sites.linear import LinearLayer, read_linear
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


def weights_of(module: Any) -> tuple[nn.Parameter, ...]:
    """The parameters that a narrower layer would replace."""
    layers: tuple[Any, ...] = (module,)
    if isinstance(module, LowRankLinear | LowRankConv | SpatialConv2d):
        layers = module.down, module.up
    return tuple(layer.weight for layer in layers)


def _stands_for(module: nn.Module) -> tuple[Layer, Form] | None:
    if isinstance(module, LowRankLinear) and read_linear(module.down) and read_linear(module.up):
        m, n = module.out_features, module.in_features
        return LinearLayer("Linear", (m, n), module.bias is not None), Form.FACTORED
    if not isinstance(module, LowRankConv | SpatialConv2d):
        return None
    down, up = read_convolution(module.down), read_convolution(module.up)
    if down is None or up is None:
        return None
    form = Form.FACTORED if isinstance(module, LowRankConv) else Form.SPATIAL
    kernel = down.kernel if form is Form.FACTORED else (down.kernel[0], up.kernel[1])
    was = down.setting
    conv = Convolution(was.channels_in, up.setting.channels_out, kernel, was.groups, was.transposed)
    layer = ConvLayer(down.kind, conv, up.has_bias)
    return layer, form


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
    batched = inside if inside.dim() == module.up.weight.dim() else inside.unsqueeze(0)
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


def narrower(module: Any, right: Tensor, left: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """The parameters (down, up) for factors shaped as ``pair`` gives them; the module is left as it is."""
    down, up, rank = module.down.weight, module.up.weight, right.shape[-2]
    if isinstance(module, LowRankConv):
        groups, transposed = module.groups, module.transposed
        wide = rank * groups
        shape = (down.shape[0], rank, *down.shape[2:]) if transposed else (wide, *down.shape[1:])
        right = ChannelFolding(groups, transposed).fold(shape, right)
        left = left.reshape(up.shape[0], rank, *up.shape[2:])
    elif isinstance(module, SpatialConv2d):
        right = right.reshape(rank, *down.shape[1:])
        left = left.reshape(up.shape[0], rank, *up.shape[2:])
    return (
        nn.Parameter(right.to(down).contiguous().clone(), down.requires_grad),
        nn.Parameter(left.to(up).contiguous().clone(), up.requires_grad),
    )


@torch.no_grad()
def narrow_(module: Any, down: nn.Parameter, up: nn.Parameter) -> None:
    """Put the parameters that ``narrower`` made in their places; the module stays the same object, hooks and all."""
    module.down.weight, module.up.weight = down, up
    if isinstance(module, LowRankLinear):
        module.rank = module.down.out_features = module.up.in_features = down.shape[0]
        return
    groups = module.groups
    rank = up.shape[1]
    module.down.out_channels = module.up.in_channels = rank * groups
