"""Compressed deep linear products in place of linear layers (section 2.3 of the C-DLN paper), in place, reversibly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from rankfold.forms.geometry import Plain, Transposed
from rankfold.induce.choose import Target, choose
from rankfold.induce.correlations import correlations
from rankfold.induce.declared import declare_training_
from rankfold.induce.overparametrize import compose_, valued
from rankfold.linalg.compressed import compressed_factors
from rankfold.linalg.errors import NonFiniteError, NotMaterialisedError
from rankfold.sites import Product, Site, sites, unwrap
from rankfold.sites.earlier import warn_of_earlier_optimizers
from rankfold.train.step.gradients import weight_gradients
from rankfold.train.step.groups import SCALES

Model = TypeVar("Model", bound=nn.Module)
CdlnStart = Literal["correlation", "gradient", "random"]


def cdln_(
    model: Model,
    layer: str | Sequence[str],
    rank: int | Mapping[str, int],
    *,
    depth: int = 3,
    data: Any = None,
    start: CdlnStart | None = None,
    epsilon: float | None = None,
    rate_scale: float = 1.0,
    samples: int = 2048,
    generator: torch.Generator | None = None,
) -> Model:
    """Replace linear layers by compressed deep linear products W_L … W_1, L = ``depth``.

    W_L is (m, r), W_1 (r, n), what is between them (r, r): fewer parameters and multiply-adds than the layer, unlike
    ``overparametrize_``. The layer's present weights are given up, its bias stays. **Build the optimizer afterwards**;
    ``rankfold.fold_`` makes the ordinary layer again. Factors begin as in Algorithm 1: ε U, ε I, …, ε Vᵀ.

    Args:
        model: changed in place.
        layer: names of linear layers.
        rank: r, one for all or by name.
        depth: L, at least 2.
        data: labelled samples, for the start; those with a negative label, which losses ignore, tell no correlation.
        start: where U and V come from. "correlation" (the default with data): V from the cross-correlation Y Xᵀ of
            one-hot labels and the layer's inputs, U too where the layer gives one output for each class. "gradient":
            both from the gradient of the loss with respect to the layer, which makes sense anywhere. "random" (the
            default without data). Missing directions are random.
        epsilon: ε; None: as large as makes the product's norm that of the present weight.
        rate_scale: α: the outer two factors learn with α times the rate, in ``rankfold.fit`` and in optimizers built
            from ``rankfold.train.parameter_groups``.
        samples: of ``data`` that are used, the first.
        generator: of random directions.

    Returns:
        ``model``.

    Raises:
        ValueError: before anything is changed: a name that is no linear layer, a rank above min(m, n), labels that are
            missing where they are needed, weights that are not finite.

    Cost: one pass over the samples with data.

    Source: C-DLN, algorithm 1.

    Example:
        >>> net = rf.cdln_(nn.Sequential(nn.Linear(16, 16)), "0", rank=3)
        >>> int(torch.linalg.matrix_rank(net[0].weight))
        3
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 2:
        raise ValueError(f"depth must be a whole number of at least 2 factors, got {depth!r}")
    if epsilon is not None and not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon must be positive and finite, got {epsilon!r}")
    if not 0 < rate_scale < float("inf"):
        raise ValueError(f"rate_scale must be positive and finite, got {rate_scale!r}")
    start = start or ("random" if data is None else "correlation")
    if start not in get_args(CdlnStart):
        raise ValueError(f"start must be one of {', '.join(get_args(CdlnStart))}, got {start!r}")
    if start != "random" and data is None:
        raise ValueError(f"start={start!r} needs labelled data: give data=, or use start='random'")
    targets = linear_targets(model, [layer] if isinstance(layer, str) else list(layer))
    weights = {name: valued(target) for name, target in targets.items()}
    ranks = _ranks(unwrap(model), targets, rank)
    guides = _guides(unwrap(model), targets, start, data, samples)
    ready = []
    for name, target in targets.items():
        weight = weights[name]
        scale = _scale(target, ranks[name], depth) if epsilon is None else epsilon
        factors = compressed_factors(target.shape, ranks[name], [scale] * depth, guides.get(name), generator)
        sizes = (target.shape[0], *(ranks[name],) * (depth - 1), target.shape[1])
        product = Product(target.geometry, weight.shape, sizes, target.groups)
        ready.append((target, product, tuple(factor.to(weight) for factor in factors)))
    before = {f"{name}.weight": target.weight for name, target in targets.items()}
    warn_of_earlier_optimizers(before, "which is now a product of factors that the optimizer does not know", "cdln_")
    for target, product, factors in ready:
        compose_(target, product, factors)
        if rate_scale != 1.0:
            for module, parameter in ((target.module, target.parameter), *target.tied):
                outer = {"original0": rate_scale, f"original{depth - 1}": rate_scale}
                setattr(module.parametrizations[parameter], SCALES, outer)  # type: ignore[index]
    declare_training_(model)
    return model


def linear_targets(model: nn.Module, names: Sequence[str]) -> dict[str, Target]:
    """The linear layers of ``model`` with these names; ``ValueError`` for any other name, with the reason."""
    root = unwrap(model)
    choice = choose(root)
    known = {
        target.name: target
        for target in choice.targets
        if isinstance(target.geometry, Plain | Transposed) and target.parameter == "weight"
    }
    if not names or len(set(names)) < len(names):
        raise ValueError("give the name of at least one layer, and none of them twice")
    found = {}
    for name in names:
        site = next((s for s in sites(root) if name in (s.name, *s.aliases)), None)
        if site is None or site.name not in known:
            why = next(
                (why for path, why in choice.left_out if path.rpartition(".")[0] == name), _tied(root, known, site)
            )
            reason = f" ({why})" if why else f": the linear layers are {', '.join(known) or 'none'}"
            raise ValueError(f"there is no linear layer {name!r} that can be replaced{reason}")
        found[site.name] = known[site.name]
    return found


def _tied(root: nn.Module, known: Mapping[str, Target], site: Site | None) -> str:
    """Why a layer is not among ``known`` whose very weight one of these has."""
    module = None if site is None else dict(root.named_modules()).get(site.name)  # None too inside of attention
    for target in known.values():
        if any(other is module for other, _ in target.tied):
            return f"its weight is that of {target.name}: name that layer, and both share the factors"
    return ""


def _ranks(root: nn.Module, targets: Mapping[str, Target], rank: int | Mapping[str, int]) -> dict[str, int]:
    """The rank of each target; by name it may be any name of a module that hangs in several places."""
    ranks = dict.fromkeys(targets, rank) if not isinstance(rank, Mapping) else {}
    known = {name: site.name for site in sites(root) for name in (site.name, *site.aliases)}
    for given, value in rank.items() if isinstance(rank, Mapping) else ():
        name = known.get(given, "")
        if name not in targets:
            raise ValueError(
                f"rank= names {given!r}, which is none of the layers that were given: {', '.join(targets)}"
            )
        ranks[name] = value
    for name, target in targets.items():
        if name not in ranks:
            raise ValueError(
                f"{target.title}: rank= has no rank for it: give one for each layer, or one number for all"
            )
        value, most = ranks[name], min(target.shape)
        if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= most:
            raise ValueError(f"{target.title}: rank {value} was asked for, and ranks from 1 to {most} are possible")
    return {name: int(ranks[name]) for name in targets}


def _scale(target: Target, rank: int, depth: int) -> float:
    """ε with √r ε^L = ‖W‖; for a weight of zeros that of a layer as torch begins it."""
    norm = float(target.weight.detach().double().norm()) or (target.shape[0] / 3) ** 0.5
    if not norm < float("inf"):
        raise ValueError(f"{target.title}: its weights are NaN or infinite: load or repair them, or give epsilon")
    return (norm / rank**0.5) ** (1 / depth)


def _guides(
    root: nn.Module, targets: Mapping[str, Target], start: CdlnStart, data: Any, samples: int
) -> dict[str, Tensor]:
    if start == "random":
        return {}
    if start == "correlation":
        return correlations(root, targets, data, samples)
    try:
        weights = [target.weight for target in targets.values()]
        gradients = weight_gradients(root, weights, data, samples=samples)
    except (NonFiniteError, NotMaterialisedError) as error:
        raise ValueError(f"the gradients: {error}") from error
    return {name: -target.geometry.matrix(gradient) for (name, target), gradient in zip(targets.items(), gradients)}
