"""Layers put in the place of linear layers and convolutions for training, and the ordinary ones put back."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankfold.induce.declared import declare_training_
from rankfold.layers import DynamicLowRank, DynamicTucker, InTraining, Phased, Scaled
from rankfold.sites import (
    FOLD_FIRST,
    Factors,
    Form,
    Site,
    carry_hooks_,
    hidden,
    read_layer,
    replace_,
    sites,
    unwrap,
    why_left,
)  # fmt: skip
from rankfold.sites.earlier import warn_of_earlier_optimizers
from rankfold.sites.find import missed
from rankfold.sites.wish import Where

SMALL = 16  # a matrix with a smaller side gains nothing at the ranks that training ends with
Make = Callable[[nn.Module, Tensor, bool], InTraining]  # (ordinary layer, matrix (m, n), stored transposed)


def put_(model: nn.Module, where: Where | None, caller: str, make: Callable[[Site, Tensor], Make]) -> None:
    """Put what ``make`` prepares of each site and its matrix (m, n) in the place of the layers that are chosen.

    Raises ``ValueError``, before anything is changed, what ``make`` raises among it; warns of living optimizers.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            f"the model is already wrapped in DistributedDataParallel: call {caller} first, and wrap the model "
            "afterwards"
        )
    root = unwrap(model)
    chosen, left_out = choice(model, where)
    if not chosen:
        reasons = why_left(left_out) or "it has no matrices"
        raise ValueError(missed(root, where) or f"no layer of the model can be trained at low rank ({reasons})")
    ready = []
    for site in chosen:
        module = root.get_submodule(site.name)
        weight = site.layer.weight(module).detach()
        if weight.is_meta:
            raise ValueError(
                f"{site.title}: its weights are on the meta device, without values: load or draw them first"
            )
        matrix = site.layer.geometry(Form.FACTORED).matrix(weight)
        if not bool(matrix.isfinite().all()):
            raise ValueError(f"{site.title}: its weights are NaN or infinite: load or repair them first")
        ready.append((site, module, matrix, make(site, matrix)))
    weights = {site.parameter: module._parameters["weight"] for site, module, _, _ in ready}
    warn_of_earlier_optimizers(weights, "which is now a product that the optimizer does not know", caller)  # type: ignore[arg-type]
    del weights
    replaced = {}
    for site, module, matrix, made in ready:
        transposed = bool(getattr(site.layer, "stored_transposed", False))
        layer = replaced[module] = made(module, matrix.clone(), transposed).train(module.training)
        carry_hooks_(module, layer)
        layer.prepared = caller
    replace_(root, replaced)
    declare_training_(root)
    # parameters whose place others will take: their optimizer averages what DistributedDataParallel would wait for
    moving = [f"{name}.{entry}".lstrip(".") for name, layer in in_training(root).items() for entry in layer.moving]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(root, moving)


def still_there(layers: Mapping[str, Any]) -> None:
    """``ValueError`` where the model has other layers in the place of these: a step would train all but them."""
    if gone := next((name for name, layer in layers.items() if layer.gone), None):
        raise ValueError(
            f"{gone}: the ordinary layer is in its place again (fold_, merge_ or remove_), of which this optimizer "
            "knows nothing: build a new one to train on"
        )
    if dist.is_available() and dist.is_initialized():
        _check_wrapped({name: layer for name, layer in layers.items() if isinstance(layer, InTraining)})


_ALONE = weakref.WeakSet[nn.Module]()  # layers that were looked at, and that no wrapper waits for


def _check_wrapped(layers: Mapping[str, InTraining]) -> None:
    """``ValueError`` where ``DistributedDataParallel`` waits for parameters whose place others will take, since it
    wraps more than what was prepared; it looks for the names of those on the outermost module alone. Of each layer
    once: the garbage collector is asked, a fifth of a second."""
    if all(layer in _ALONE for layer in layers.values()):
        return
    moving = {id(getattr(layer, entry)): name for name, layer in layers.items() for entry in layer.moving}
    for wrapper in [each for each in gc.get_objects() if type(each) is nn.parallel.DistributedDataParallel]:
        named, ignored = wrapper.module.named_parameters(), wrapper.parameters_to_ignore
        waited = {id(parameter) for name, parameter in named if name not in ignored and parameter.requires_grad}
        ours = [name for key, name in moving.items() if key in waited]
        # it begins to wait when any parameter has a gradient: where it knows none but ours, it never does
        if ours and waited - moving.keys() and not wrapper.find_unused_parameters:
            raise ValueError(
                f"{ours[0]}: DistributedDataParallel waits for the parameters of this "
                "layer, whose place others take in training: prepare the whole model before it is wrapped (where= "
                "chooses the layers), or wrap it with find_unused_parameters=True"
            )
    _ALONE.update(layers.values())


def check_prepared(layers: Mapping[str, InTraining], caller: str) -> None:
    """``ValueError`` where another function than ``caller`` has put one of these layers in its place."""
    for name, layer in layers.items():
        if layer.prepared not in ("", caller):
            raise ValueError(
                f"{name}: {layer.prepared} has prepared this layer, and {caller} another kind: take the optimizer that "
                "belongs to the former, or fold the model first (rankfold.fold_) and prepare it anew"
            )


def same_everywhere_(layers: Collection[InTraining]) -> None:
    """Between processes: the weights of the first, of which ``DistributedDataParallel`` knows nothing."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for layer in layers:
            for entry in layer.moving:
                dist.broadcast(getattr(layer, entry).data, src=0)


def averaged_(gradients: Iterable[Tensor]) -> None:
    """The mean over processes, in place."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient.div_(dist.get_world_size())


def choice(model: nn.Module, where: Where | None = None) -> tuple[tuple[Site, ...], tuple[tuple[str, str], ...]]:
    """The sites that ``put_(model, where)`` would replace, and what it leaves as it is, with the reason."""
    root = unwrap(model)
    found = sites(root, where)
    chosen, left_out = [], []
    for site in found:
        reason = _why_not(root, site, where)
        if reason is None:
            chosen.append(site)
        else:
            left_out.append((site.parameter, reason))
    return tuple(chosen), (*left_out, *found.left_out)


def _why_not(root: nn.Module, site: Site, where: Where | None) -> str | None:
    conv = site.layer.convolution
    if site.layer.lookup:
        return "an embedding, which looks up rows and does not multiply"
    if (around := hidden(root, site.name)) is not None:
        return f"read directly by its {type(around).__name__}, which does not call it"
    if Form.FACTORED not in site.forms:
        return site.note or FOLD_FIRST
    if conv is not None and (conv.groups > 1 or conv.transposed):
        return "a grouped convolution" if conv.groups > 1 else "a transposed convolution"
    if not site.layer.weight(root.get_submodule(site.name)).requires_grad:
        return "frozen (requires_grad=False): training would not change it"
    if where is None and min(site.shape) < SMALL:
        return f"its smaller side is only {min(site.shape)}, so that low rank saves little (where= can choose it)"
    return None


def in_training(model: nn.Module) -> dict[str, InTraining]:
    """The layers of ``model`` that stand in the place of ordinary ones for training, by name."""
    return {name: module for name, module in unwrap(model).named_modules() if isinstance(module, InTraining)}


def ranks_of(model: nn.Module) -> dict[str, int]:
    """The rank of each of these layers, by name."""
    return {name: layer.rank for name, layer in in_training(model).items()}


def trained_numbers(model: nn.Module) -> int:
    """Parameters of ``model``, and of layers in training those that they are stored in at the end, as a rule
    r(m + n)."""
    layers = in_training(model).values()
    own = {id(p) for layer in layers for p in layer.trained}
    return sum(p.numel() for p in model.parameters() if id(p) not in own) + sum(layer.numbers for layer in layers)


def dense_numbers(model: nn.Module) -> int:
    """Parameters of the ordinary network that ``model`` stands for."""
    return trained_numbers(model) + sum(prod(x.shape) - x.numbers for x in in_training(model).values())


def numbers_within(model: nn.Module, share: float) -> int:
    """What the layers in training may take together within a share of the dense network's parameters; ``ValueError``
    for a share below rank 1 in every layer."""
    layers = in_training(model).values()
    rest, dense = trained_numbers(model) - sum(layer.numbers for layer in layers), dense_numbers(model)
    least, left = sum(layer.numbers_at(1) for layer in layers), int(share * dense) - rest
    if left < least:
        raise ValueError(
            f"budget {share:g} of {dense} parameters cannot be met: {rest} of them are in no layer of low rank, "
            f"and rank 1 in each of the {len(layers)} layers takes {least}. Allow at least "
            f"budget={(rest + least) / dense:.4f}"
        )
    return left


def warn_of_dense(model: nn.Module, share: float) -> None:
    """Warns where what has no low rank takes half and more of what ``share`` allows, or matrices that are left out for
    being small a third: the layers in training pay for it with their ranks."""
    root, allowed = unwrap(model), share * dense_numbers(model)
    small = {s.name: prod(s.shape) for s in sites(root) if min(s.shape) < SMALL and _why_not(root, s, "*") is None}
    if 3 * sum(small.values()) >= allowed:
        taken, told = sum(small.values()), f"those of {', '.join(small)}, dense since one side is below {SMALL}"
        remedy = "where='*' lets these have low rank too"
    else:
        trained = {id(p) for layer in in_training(root).values() for p in layer.trained}
        left = {name: p.numel() for name, p in root.named_parameters() if id(p) not in trained}
        taken = sum(left.values())
        if 2 * taken < allowed:
            return
        reasons = dict(choice(root)[1])
        reasons |= {  # of a matrix that holds three
            name.replace("q_proj.weight", "in_proj_weight"): why for name, why in reasons.items()
        }
        largest = sorted(left, key=lambda name: -left[name])[:3]
        told = "in no layer of low rank, most of them " + "; ".join(
            f"in {name}" + (f" ({reasons[name]})" if name in reasons else "") for name in largest
        )
        remedy = "Allow more, or choose further layers (where=)"
    warnings.warn(
        f"{taken:,} of the {int(allowed):,} parameters that budget={share:g} allows are {told}: the other layers share "
        f"the rest. {remedy}",
        stacklevel=3,
    )


def _folded(layer: InTraining, matrix: Tensor) -> Tensor:
    """As the ordinary layer keeps it."""
    known = read_layer(layer)
    assert known is not None
    return known.geometry(Form.FACTORED).fold(layer.weight.shape, matrix).contiguous()


@torch.no_grad()
def ordinary_(layer: InTraining) -> nn.Module:
    """The ordinary layer with the product as its weight, and the bias in its place again."""
    ordinary, first = layer.ordinary, layer.trained[0]
    parts = [part.double() for part in _parts(layer)]
    if isinstance(layer, DynamicTucker):
        weight = torch.einsum("qc,pq...,op->oc...", *parts).to(first).contiguous()
    else:
        weight = _folded(layer, (parts[0] if len(parts) == 1 else parts[1] @ parts[0]).to(first))
    ordinary._parameters["weight"] = nn.Parameter(weight, first.requires_grad)
    ordinary._parameters["bias"] = layer.bias
    carry_hooks_(layer, ordinary)
    return ordinary.train(layer.training)


@torch.no_grad()
def factored_(layer: InTraining) -> nn.Module:
    """The factored layer of the same product: of one on the manifold ``down`` is √S V, ``up`` is U √S, of others the
    factors as they are, in their order; of Tucker's form bases and core as they are. A layer that is dense stays
    ordinary."""
    known, parts, first = read_layer(layer), _parts(layer), layer.trained[0]
    if len(parts) == 1:
        return ordinary_(layer)
    form = Form.TUCKER if isinstance(layer, DynamicTucker) else Form.FACTORED
    assert known is not None
    ordinary = layer.ordinary
    ordinary._parameters["weight"] = nn.Parameter(torch.empty(layer.weight.shape, dtype=first.dtype, device="meta"))
    new = form.skeleton(known, ordinary, layer.rank, layer.bias is not None).to_empty(device=first.device)
    ordinary._parameters["weight"] = None
    known.write_(new, form, Factors(parts))
    new.requires_grad_(first.requires_grad)
    if layer.bias is not None:
        setattr(new, "bias", layer.bias)  # noqa: B010  # carried by its last stage
    carry_hooks_(layer, new)
    return new.train(layer.training)


def _parts(layer: InTraining) -> tuple[Tensor, ...]:
    """(right (r, n), left (m, r)), or the matrix of a layer that is dense: what remains of it. Of Tucker's form (right,
    core, left), with zeros where the ladder has more directions at the layer's rank than there are."""
    if isinstance(layer, DynamicTucker):
        (p, q), (has_p, has_q) = layer.ladder[layer.rank - 1], layer.core.shape[:2]
        core = layer.core.new_zeros(p, q, *layer.core.shape[2:])
        core[:has_p, :has_q] = layer.core
        right, left = layer.right.new_zeros(q, layer.right.shape[1]), layer.left.new_zeros(layer.left.shape[0], p)
        right[:has_q], left[:, :has_p] = layer.right, layer.left
        return right, core, left
    if not isinstance(layer, DynamicLowRank):
        if isinstance(layer, Phased) and layer.dense:
            return (layer.left,)
        if isinstance(layer, Scaled):
            return layer.right, layer.left * layer.scale
        return layer.right, layer.left
    p, values, q = torch.linalg.svd(layer.core.double(), full_matrices=False)
    roots = values.sqrt()
    return roots.unsqueeze(1) * (q @ layer.right.double()), layer.left.double() @ p * roots
