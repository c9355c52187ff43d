"""The ordinary model again: products multiplied out, classes and keys as they were."""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch
from torch import Tensor, nn

from rankfold.forms.geometry import Stacked
from rankfold.induce.declared import declare_folded_
from rankfold.induce.places import factored_, in_training, ordinary_
from rankfold.sites import factors_of, ordinary_class, products, replace_, unwrap
from rankfold.sites.product import other_parametrizations

Model = TypeVar("Model", bound=nn.Module)


def fold_(model: Model, *, keep: bool = False) -> Model:
    """Make products ordinary weights again: the inverse of ``overparametrize_``, ``cdln_`` and ``dlrt_``.

    Classes, state-dict keys and their order, shared modules and tied weights are as before, hooks and modes stay;
    weights are the products to the last bit, in the dtype of the factors. Only part of a model may be composed; one
    without products stays as it is. An optimizer that trained the factors does not know the weights: build a new one
    for further training; a step of that of ``dlrt_`` or of a way is refused.

    Args:
        model: changed in place.
        keep: make factored layers, which can be exported and sliced, where the training kept low rank. A model of
            transformers with them is saved by ``save_pretrained``, and loaded after ``import rankfold.hub``.
            ``rankfold.save`` takes the plan that leads to them, which folding does not make: fold without ``keep``, and
            ``rankfold.plan`` at these ranks by the method "truncate" and ``rankfold.apply_`` give the same layers and
            their plan (docs/dlrt.md).

    Returns:
        ``model``.

    Raises:
        ValueError: before anything is changed, for a layer that carries another parametrization beside; with ``keep``
            for a model in which nothing was trained at low rank.

    Warns where layers were to come within a budget (``Dlrt(budget=…)``) and have not.

    Cost: the products.

    Example:
        >>> net = rf.fold_(rf.overparametrize_(nn.Sequential(nn.Linear(8, 6))))
        >>> sorted(net.state_dict()), type(net[0]).__name__
        (['0.bias', '0.weight'], 'Linear')
    """
    composed = [
        (path, module) for path, module in unwrap(model).named_modules() if ordinary_class(module) is not type(module)
    ]
    for path, module in composed:
        if other_parametrizations(module):
            raise ValueError(
                f"{path}: its weight has another parametrization besides the product: remove that first "
                "(torch.nn.utils.parametrize.remove_parametrizations)"
            )
    low = in_training(model)
    if keep and not low:
        raise ValueError(
            "keep=True keeps the factors of layers that were trained at low rank, and this model has none: prepare it "
            "with rankfold.dlrt_ before training, or leave keep out"
        )
    lacking = next((layer.lacking for layer in low.values() if layer.lacking), "")
    if lacking:
        warnings.warn(lacking, stacklevel=2)
    new: dict[nn.Module, nn.Module] = {layer: factored_(layer) if keep else ordinary_(layer) for layer in low.values()}
    replace_(unwrap(model), new)
    for layer in low.values():
        layer.gone = True
    made: dict[tuple[int, ...], nn.Parameter] = {}
    for _, module in composed:
        _fold_module_(module, made)
    declare_folded_(model, low, new)
    return model


@torch.no_grad()
def _fold_module_(module: nn.Module, made: dict[tuple[int, ...], nn.Parameter]) -> None:
    """``made``: the weights so far by the identity of their factors, so that tied ones are one parameter again."""
    for name in products(module):
        factors = factors_of(module, name)
        key = tuple(id(factor) for factor in factors)
        if key not in made:
            with torch.autocast(factors[0].device.type, enabled=False):
                weight: Tensor = getattr(module, name)
            trained = any(factor.requires_grad for factor in factors)
            made[key] = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), trained)
        module._parameters[name] = made[key]
    kind = type(module)
    order: tuple[str, ...] = kind.parameter_order  # type: ignore[attr-defined]
    # not torch's remove_parametrizations: it takes the property from a class that deep copies of the layer share
    del module._modules["parametrizations"]
    module.__class__ = kind.ordinary_class  # type: ignore[attr-defined]
    for name in order:
        module._parameters[name] = module._parameters.pop(name)


def factors(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """R_1, …, R_N of every product by the name of its site; ``PATH.in_proj`` for packed q, k, v, (3, E, E) each."""
    found = {}
    for path, module in unwrap(model).named_modules():
        for parameter, product in products(module).items():
            if parameter == "weight":
                name = path
            else:
                leaf = "in_proj" if isinstance(product.geometry, Stacked) else parameter.removesuffix("_weight")
                name = f"{path}.{leaf}".lstrip(".")
            found[name] = factors_of(module, parameter)
    return found


def is_overparametrized(model: nn.Module) -> bool:
    """Whether any weight of ``model`` is a product of factors."""
    return any(bool(products(module)) for module in model.modules())
