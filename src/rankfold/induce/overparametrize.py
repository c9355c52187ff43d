"""Weights become products of factors (LoRITa, section 4), in place and reversibly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rankfold.induce.choose import Choice, Target, choose
from rankfold.induce.declared import declare_training_
from rankfold.induce.fold import is_overparametrized
from rankfold.induce.serial import composed_class
from rankfold.induce.start import Start, starting_factors
from rankfold.linalg.errors import NonFiniteError, NotMaterialisedError
from rankfold.sites import Product, factors_of, ordinary_class, products, why_left
from rankfold.sites.earlier import warn_of_earlier_optimizers
from rankfold.sites.find import missed
from rankfold.sites.wish import Where

Model = TypeVar("Model", bound=nn.Module)
Inner = int | Sequence[int] | Literal["paper", "thin"]


def overparametrize_(
    model: Model,
    depth: int = 3,
    where: Where | None = None,
    *,
    start: Start = "balanced",
    inner: Inner | None = None,
    generator: torch.Generator | None = None,
) -> Model:
    """Make every site's weight W (m, n) a product R_1 R_2 … R_N of N = ``depth`` trainable factors.

    Plain weight decay on the factors is then a penalty on W by a Schatten quasi-norm with exponent 2/N, which drives
    singular values to zero. **Build the optimizer afterwards**: an earlier one holds the former weights, which are no
    longer part of the model, and a living one is named in a ``UserWarning``. ``rankfold.fold_`` makes it the ordinary
    model again. Tied weights stay tied, through shared factors. The state dict holds
    ``LAYER.parametrizations.weight.original0`` … in place of ``LAYER.weight``.

    Args:
        model: changed in place.
        depth: N, at least 2.
        where: narrows the choice, as in ``rankfold.sites``; ``rankfold.induce.choose`` lists what is chosen, and why
            the rest is not.
        start: "balanced" factors of the present weights, which leave the function as it is up to rounding; "random", as
            in the paper; or "orthogonal".
        inner: "paper": R_1 (m, n) and the others (n, n); for convolutions, whose matrix is (C_out, C_in·k), R_N of the
            weight's size and the others (C_out, C_out). "thin": one factor of the weight's size and the others square
            on its smaller side. None: "thin" for a balanced start, else "paper". Otherwise the widths d_1 … d_{N−1}
            themselves, one for all or one each. Grouped convolutions and packed attention have a leading axis of
            matrices.
        generator: of random numbers, on the CPU; None: torch's global state.

    Returns:
        ``model``.

    Raises:
        ValueError: before anything is changed: a depth below 2, inner widths that do not fit, an unknown start, a
            weight that is not finite or has no values yet, nothing to compose, a model already in
            DistributedDataParallel.

    Cost: memory and time of training grow by the factors and their product; see docs/lorita.md.

    Source: LoRITa, proposition 4.2.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(8, 6)), torch.randn(2, 8)
        >>> before = net(x)
        >>> torch.allclose(rf.overparametrize_(net, depth=3)(x), before, atol=1e-5), len(list(net.parameters()))
        (True, 4)
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 2:
        raise ValueError(f"depth must be a whole number of at least 2 factors, got {depth!r} (1 is the ordinary model)")
    if start not in get_args(Start):
        raise ValueError(f"start must be one of {', '.join(get_args(Start))}, got {start!r}")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "the model is already wrapped in DistributedDataParallel, which only knows its former weights: call "
            "overparametrize_ first, and wrap the model afterwards"
        )
    if inner is None:
        inner = "thin" if start == "balanced" else "paper"
    widths = _widths(depth, inner)
    choice = choose(model, where)
    if not choice.targets:
        raise ValueError(_why_nothing(model, where, choice))
    ready = [(target, *_started(target, depth, widths, start, generator)) for target in choice.targets]
    weights = {f"{target.name}.weight": target.weight for target in choice.targets}
    became = "which is now a product of factors that the optimizer does not know"
    warn_of_earlier_optimizers(weights, became, "overparametrize_")
    for target, product, factors in ready:
        compose_(target, product, factors)
    declare_training_(model)
    return model


def _why_nothing(model: nn.Module, where: Where | None, choice: Choice) -> str:
    if said := missed(model, where):
        return said
    if is_overparametrized(model):
        return "the model is already over-parametrised: fold it first (rankfold.fold_)"
    reasons = why_left(choice.left_out) or "it has no parameters"
    return f"no weight of the model can become a product ({reasons}): choose others with where="


def _widths(depth: int, inner: Inner) -> tuple[int, ...] | Literal["paper", "thin"]:
    if inner == "paper" or inner == "thin":
        return inner
    if isinstance(inner, str):
        raise ValueError(f"inner must be 'paper', 'thin', or one or several widths, got {inner!r}")
    widths = (inner,) * (depth - 1) if isinstance(inner, int) else tuple(inner)
    if len(widths) != depth - 1 or any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths):
        raise ValueError(
            f"inner must be one width, or {depth - 1} of them for {depth} factors, each a whole number of at "
            f"least 1; got {inner!r}"
        )
    return widths


def _started(
    target: Target,
    depth: int,
    widths: tuple[int, ...] | Literal["paper", "thin"],
    start: Start,
    generator: torch.Generator | None,
) -> tuple[Product, tuple[Tensor, ...]]:
    weight = valued(target)
    (m, n), rank = target.shape, min(target.shape)
    if isinstance(widths, str):
        widths = (target.paper_width if widths == "paper" else rank,) * (depth - 1)
    sizes = (m, *widths, n)
    if start == "balanced" and min(sizes) < rank:
        raise ValueError(
            f"{target.title}: an inner width of {min(sizes)} cannot hold its present weights, which may have "
            f"rank {rank}: give inner widths of at least {rank}, use start='random', or leave the layer out with "
            "where="
        )
    try:
        factors = starting_factors(target.geometry.matrix(weight), sizes, start, generator)
    except (NonFiniteError, NotMaterialisedError, RuntimeError) as error:
        raise ValueError(f"{target.title}: {error}: load or repair its weights first") from error
    return Product(target.geometry, weight.shape, sizes, target.groups), factors


def valued(target: Target) -> Tensor:
    """Its weight; ``ValueError`` where that has no values: its device cannot multiply factors out."""
    weight = target.weight.detach()
    if weight.is_meta:
        raise ValueError(f"{target.title}: its weights are on the meta device, without values: load or draw them first")
    return weight


def compose_(target: Target, product: Product, factors: tuple[Tensor, ...]) -> None:
    _register_(target.module, target.parameter, product, factors)
    shared = factors_of(target.module, target.parameter)
    for module, parameter in target.tied:
        _register_(module, parameter, Product(product.geometry, product.shape, product.sizes, target.groups), factors)
        for index, factor in enumerate(shared):
            setattr(module.parametrizations[parameter], f"original{index}", factor)  # type: ignore[index]


def _register_(module: nn.Module, parameter: str, product: Product, factors: tuple[Tensor, ...]) -> None:
    if not products(module):
        module.__class__ = composed_class(ordinary_class(module), tuple(module._parameters))
    product.right_inverse = lambda weight: factors  # type: ignore[method-assign] # known: no second SVD
    with torch.autocast(module._parameters[parameter].device.type, enabled=False):  # type: ignore[union-attr]
        parametrize.register_parametrization(module, parameter, product)
    del product.right_inverse
