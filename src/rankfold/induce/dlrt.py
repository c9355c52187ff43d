"""Dynamical low-rank training: layers become left · core · right and are trained on the manifold of low rank."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from rankfold.layers import DynamicLowRank
from rankfold.linalg.errors import NonFiniteError
from rankfold.linalg.tangent import starting
from rankfold.sites import FOLD_FIRST, Factors, Form, Site, hidden, read_layer, replace_, sites, unwrap
from rankfold.sites.find import Where
from rankfold.train.earlier import warn_of_earlier_optimizers

Model = TypeVar("Model", bound=nn.Module)
SMALL = 16  # a matrix with a smaller side gains nothing at the ranks that training ends with


def dlrt_(model: Model, rank: int | None = None, where: Where | None = None) -> Model:
    """Put layers of low rank, to be trained by ``rankfold.Dlrt``, in place of linear layers and convolutions.

    In place; returns ``model``. Each weight W (m, n) becomes the product of its ``rank`` leading singular triples, half
    of min(m, n) by default and never more than that asks: training moves, adds and removes directions. **Build the
    optimizer afterwards**; ``rankfold.fold_`` makes ordinary layers again, or, with ``keep=True``, factored ones that
    can be saved, exported and sliced.

    ``where`` as in ``rankfold.sites``; without it the matrices whose smaller side is below 16 are left as they are.
    Left out as well: grouped and transposed convolutions, projections inside ``nn.MultiheadAttention``, tied and frozen
    weights, embeddings, and what ``rankfold.sites`` leaves out; ``rankfold.induce.dlrt_choice`` lists each with its
    reason. Memory for each layer in training: r(m + n) + r² numbers in place of m·n.

    Raises ``ValueError`` before anything is changed: a rank below 1, a weight that is not finite or has no values yet,
    nothing that can be trained so. Warns (``UserWarning``) of living optimizers that hold a weight which it replaces.
    Cost: one SVD of each weight.

    >>> model = dlrt_(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), rank=4)
    >>> model[0]
    DynamicLowRank(64, 32, rank=4)
    """
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank must be a whole number of at least 1, or None for half of full rank, got {rank!r}")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError("the model is wrapped in DistributedDataParallel already: call dlrt_ first, and wrap it after")
    root = unwrap(model)
    chosen, left_out = dlrt_choice(model, where)
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out[:3]) or "it has no matrices"
        raise ValueError(f"no layer of the model can be trained at low rank ({reasons})")
    ready = []
    for site in chosen:
        module = root.get_submodule(site.name)
        full = min(site.shape)
        ready.append((site, module, _made(site, module, min(rank or max(1, full // 2), full))))
    weights = {site.parameter: module._parameters["weight"] for site, module, _ in ready}
    warn_of_earlier_optimizers(weights, "which is now a product that it does not know", "dlrt_")  # type: ignore[arg-type]
    del weights
    for _, module, (left, core, right) in ready:
        transposed = module.weight.shape != (left.shape[0], right.shape[1]) and not hasattr(module, "kernel_size")
        new = DynamicLowRank(module, left, core, right, stored_transposed=transposed).train(module.training)
        replace_(root, module, new)
    return model


def dlrt_choice(model: nn.Module, where: Where | None = None) -> tuple[tuple[Site, ...], tuple[tuple[str, str], ...]]:
    """The sites that ``dlrt_(model, where=where)`` would replace, and what it leaves as it is, with the reason."""
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
        return "an embedding is looked up, not multiplied"
    if Form.FACTORED not in site.forms:
        return site.note or FOLD_FIRST
    if (around := hidden(root, site.name)) is not None:
        return f"read by its {type(around).__name__} without being called"
    if conv is not None and (conv.groups > 1 or conv.transposed):
        return "a grouped convolution" if conv.groups > 1 else "a transposed convolution"
    if not site.layer.weight(root.get_submodule(site.name)).requires_grad:
        return "frozen (requires_grad=False): training would not change it"
    if where is None and min(site.shape) < SMALL:
        return f"its smaller side is {min(site.shape)}: low rank would save little (choose it with where)"
    return None


def _made(site: Site, module: nn.Module, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    weight = site.layer.weight(module).detach()
    if weight.is_meta:
        raise ValueError(f"{site.title}: not materialised (on the meta device); load or draw its weights first")
    try:
        triple = starting(site.layer.geometry(Form.FACTORED).matrix(weight), rank)
    except (NonFiniteError, RuntimeError) as error:
        raise ValueError(f"{site.title}: {error}; load or mend its weights first") from error
    return triple.left.to(weight).contiguous(), triple.core.to(weight), triple.right.to(weight).contiguous()


def dynamic_layers(model: nn.Module) -> dict[str, DynamicLowRank]:
    """The layers of ``model`` in dynamical low-rank training, by name."""
    return {name: module for name, module in unwrap(model).named_modules() if isinstance(module, DynamicLowRank)}


def ranks_of(model: nn.Module) -> dict[str, int]:
    """The rank of each of these layers, by name."""
    return {name: layer.rank for name, layer in dynamic_layers(model).items()}


def trained_numbers(model: nn.Module) -> int:
    """Parameters in training: all of ``model``, and of layers of low rank r(m + n), as they are when factored."""
    layers = dynamic_layers(model).values()
    count = sum(parameter.numel() for parameter in model.parameters())
    return count + sum(layer.rank * sum(layer.shape) - layer.core.numel() for layer in layers)


def ordinary_(layer: DynamicLowRank) -> nn.Module:
    """The ordinary layer with the product as its weight, and the bias in its place again."""
    ordinary, known = layer.ordinary, read_layer(layer)
    assert known is not None
    with torch.no_grad():
        matrix = (layer.left.double() @ layer.core.double() @ layer.right.double()).to(layer.core)
        weight = known.geometry(Form.FACTORED).fold(layer.weight.shape, matrix).contiguous()
    ordinary._parameters["weight"] = nn.Parameter(weight, layer.core.requires_grad)
    ordinary._parameters["bias"] = layer.bias
    return ordinary.train(layer.training)


@torch.no_grad()
def factored_(layer: DynamicLowRank) -> nn.Module:
    """The factored layer of the same product: ``down`` is √S V, ``up`` is U √S."""
    known, (p, values, q) = read_layer(layer), torch.linalg.svd(layer.core.double())
    assert known is not None
    roots = values.sqrt()
    factors = Factors((roots.unsqueeze(1) * (q @ layer.right.double()), layer.left.double() @ p * roots))
    ordinary = layer.ordinary
    ordinary._parameters["weight"] = nn.Parameter(
        torch.empty(layer.weight.shape, dtype=layer.core.dtype, device="meta")
    )
    new = Form.FACTORED.skeleton(known, ordinary, layer.rank, layer.bias is not None).to_empty(device=layer.core.device)
    ordinary._parameters["weight"] = None
    known.write_(new, Form.FACTORED, factors)
    if layer.bias is not None:
        setattr(new, "bias", layer.bias)  # noqa: B010  # carried by its last stage
    new.requires_grad_(layer.core.requires_grad)
    return new.train(layer.training)
