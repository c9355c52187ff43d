"""Deep LoRA: the update of a frozen layer as a compressed deep linear product (beyond the C-DLN paper, section 2.3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from rankfold.adapt.finite import finite_pair
from rankfold.adapt.layer import AdaptedLayer, DeepLoRALinear
from rankfold.adapt.places import CONVOLUTIONS
from rankfold.induce.places import in_training
from rankfold.linalg.compressed import compressed_factors
from rankfold.objectives import Objective
from rankfold.run.ordinary import ordinarily
from rankfold.sites import Form, Site, carry_hooks_, leave_fused_kernels_, replace_, sites, unwrap, why_left
from rankfold.sites.adapters import why_adapted
from rankfold.sites.earlier import warn_of_earlier_optimizers
from rankfold.sites.wish import Where
from rankfold.train.step.gradients import weight_gradients
from rankfold.train.step.groups import SCALES

Model = TypeVar("Model", bound=nn.Module)


@ordinarily
def deep_lora_(
    model: Model,
    rank: int | Mapping[str, int],
    where: Where | None = None,
    *,
    depth: int = 3,
    data: Any = None,
    epsilon: float | None = None,
    scaling: float = 1.0,
    rate_scale: float = 1.0,
    samples: int = 1024,
    objective: Objective | str | None = None,
    generator: torch.Generator | None = None,
) -> Model:
    """Give linear layers a trainable update scaling · W_L … W_1 of rank at most ``rank``; everything else is frozen.

    Set ``requires_grad`` of a head anew to train it too (it is then no part of the adapter). Build the optimizer
    afterwards: its parameters are the factors; a living one that holds a weight of the model is named in a
    ``UserWarning``. ``rankfold.adapt.merge_`` adds the updates to the weights, ``remove_`` drops them, ``save_adapter``
    writes ordinary LoRA.

    Args:
        model: changed in place.
        rank: one for all, of which a smaller layer takes what it has (``UserWarning``), or by layer name, which then
            also says which layers.
        where: as in ``rankfold.sites``; by default every linear layer.
        depth: L; 2 is ordinary LoRA.
        data: labelled samples: W_1 then spans the leading right singular subspace of the loss's gradient with respect
            to the layer, so that the first step is the gradient's own, projected. Without data it is random.
        epsilon: None: the update begins as zero, W_L = 0. Otherwise ε U, ε I, ε Vᵀ as in Algorithm 1, which begins as
            ε^L U Vᵀ.
        scaling: of the update.
        rate_scale: the outer factors learn with so many times the rate (``rankfold.train.parameter_groups``).
        samples: of ``data`` that are used, the first.
        objective: whose loss that is, as in ``rankfold.fit``; by default the data tell.
        generator: of random directions.

    Returns:
        ``model``.

    Raises:
        ValueError: before anything is changed: no layer chosen, ranks that do not fit, an adapted model.

    Cost: one forward and one backward pass over the samples with data.

    Source: Yaras, Wang, Balzano, Qu 2024 (Deep LoRA).

    Example:
        >>> net = rf.deep_lora_(nn.Sequential(nn.Linear(16, 8)), rank=2)
        >>> [tuple(p.shape) for p in net.parameters() if p.requires_grad]
        [(8, 2), (2, 2), (2, 16)]
    """
    root = unwrap(model)
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 2:
        raise ValueError(f"depth must be a whole number of at least 2 factors, got {depth!r}")
    for name, value in (("epsilon", epsilon), ("scaling", scaling), ("rate_scale", rate_scale)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value!r}")
    chosen = chosen_layers(root, rank, where)
    guides: dict[str, Tensor] = {}
    if data is not None:
        weights: list[Any] = [root.get_submodule(site.name).weight for site, _ in chosen]
        gradients = weight_gradients(root, weights, data, samples=samples, objective=objective)
        guides = {site.name: -_matrix(site, gradient) for (site, _), gradient in zip(chosen, gradients)}
    scales = [0.0, *[1.0] * (depth - 1)] if epsilon is None else [epsilon] * depth

    def made(site: Site, r: int, base: Any) -> DeepLoRALinear:
        factors = compressed_factors(site.shape, r, scales, guides.get(site.name), generator)
        wide = base.weight.dtype if base.weight.dtype.itemsize > 1 else torch.float32
        new = DeepLoRALinear(base, [factor.to(base.weight.device, wide) for factor in factors], scaling)
        if rate_scale != 1.0:
            setattr(new.factors, SCALES, {"0": rate_scale, str(depth - 1): rate_scale})
        return new

    place_(root, chosen, made, "deep_lora_")
    return model


def place_(
    root: nn.Module,
    chosen: Sequence[tuple[Site, int]],
    made: Callable[[Site, int, nn.Module], AdaptedLayer],
    caller: str,
) -> None:
    """Put what ``made(site, rank, base)`` gives in place of each layer, and freeze everything else.

    All are made before the first is put in place. Hooks of a layer hang on the adapted one afterwards.
    """
    ready = []
    for site, rank in chosen:
        base = root.get_submodule(site.name)
        ready.append((base, made(site, rank, base).train(base.training)))
    warn_of_earlier_optimizers(dict(root.named_parameters()), "which is frozen from now on", caller)
    leave_fused_kernels_(root, [site.name for site, _ in chosen])
    root.requires_grad_(False)
    replace_(root, dict(ready))
    for base, new in ready:
        carry_hooks_(base, new)
        _without_hooks_(base)


def chosen_layers(
    root: nn.Module, rank: int | Mapping[str, int], where: Where | None, *, convolutions: bool = False
) -> list[tuple[Site, int]]:
    """The layers to adapt with the rank of each. ``ValueError``: an adapted model, no layer, ranks that do not fit."""
    check_unadapted(root)
    kinds = ("Linear", "Conv1D", *(CONVOLUTIONS if convolutions else ()))
    found = sites(root, where)
    fitting = [site for site in found if site.kind in kinds and site.groups == 1 and _own_layer(root, site)]
    what = "layer" if convolutions else "linear layer"
    if isinstance(rank, Mapping):
        names = {site.name for site in fitting}
        missing = next((name for name in rank if name not in names), None)
        if missing is not None:
            raise ValueError(
                f"there is no {what} named {missing!r} that can be adapted: there are {', '.join(sorted(names))}"
            )
        fitting = [site for site in fitting if site.name in rank]
    if not fitting:
        reasons = why_left(found.left_out) if where is None else ""
        among = f" among where={where!r}" if where is not None else f" ({reasons})" if reasons else ""
        raise ValueError(f"the model has no {what} that can be adapted{among}")
    chosen = []
    for site in fitting:
        most = min(site.shape)
        r = rank[site.name] if isinstance(rank, Mapping) else rank
        if isinstance(r, bool) or not isinstance(r, int) or r < 1 or (isinstance(rank, Mapping) and r > most):
            raise ValueError(f"{site.title}: rank {r} was asked for, and ranks from 1 to {most} are possible")
        chosen.append((site, min(r, most)))
    _tell_of_smaller(chosen, rank)
    return chosen


def check_unadapted(root: nn.Module) -> None:
    """``ValueError`` for a model that has updates, PEFT's among them."""
    if said := why_adapted(root):
        raise ValueError(f"the model already has adapters: {said}")


def _tell_of_smaller(chosen: list[tuple[Site, int]], asked: int | Mapping[str, int]) -> None:
    """One warning that names the layers which are too small for the rank of all."""
    small = [f"{site.title} gets {r}" for site, r in chosen if not isinstance(asked, Mapping) and r < asked]
    if small:
        more = f" and {len(small) - 3} more" if len(small) > 3 else ""
        warnings.warn(
            f"rank {asked} is more than some layers can have: {', '.join(small[:3])}{more}. Leave these layers "
            "out with where=, give a lower rank, or give ranks by layer name",
            UserWarning,
            stacklevel=4,
        )


def _own_layer(root: nn.Module, site: Site) -> bool:
    """Whether it is a layer of its own that is called, with a weight of its own."""
    try:
        module = root.get_submodule(site.name)
    except AttributeError:  # a projection inside nn.MultiheadAttention
        return False
    return not site.tied_to and not isinstance(module, NonDynamicallyQuantizableLinear)


def _matrix(site: Site, gradient: Tensor) -> Tensor:
    return gradient.T if site.kind == "Conv1D" else gradient


def _without_hooks_(base: nn.Module) -> None:
    """Its hooks hang on the adapted layer now; as empty tables of its own, so that they do not run twice."""
    carry_hooks_(nn.Identity(), base)


def updates(model: nn.Module) -> dict[str, AdaptedLayer]:
    """The adapted layers by name."""
    return {name: module for name, module in unwrap(model).named_modules() if isinstance(module, AdaptedLayer)}


@torch.no_grad()
def merge_(model: Model) -> Model:
    """Add every update to its weight and put the ordinary layers back. They stay frozen.

    Args:
        model: changed in place.

    Returns:
        ``model``.

    Raises:
        NonFiniteError: before anything is changed, for an update that is NaN or infinite.

    Example:
        >>> net = rf.adapt.merge_(rf.deep_lora_(nn.Sequential(nn.Linear(16, 8)), rank=2))
        >>> type(net[0]).__name__
        'Linear'
    """
    found = updates(model)
    for name, adapted in found.items():
        finite_pair(
            name, adapted.matrices(),
            "nothing was merged: drop all updates (remove_) and train again with a lower learning rate",
        )  # fmt: skip
    for adapted in found.values():
        weight = adapted.kind.weight(adapted.base)
        update = adapted.kind.geometry(Form.FACTORED).fold(weight.shape, adapted.update().double())
        weight.copy_(weight.double() + update)
    return remove_(model)


@torch.no_grad()
def remove_(model: Model) -> Model:
    """Put the ordinary layers back, without their updates. They stay frozen.

    Args:
        model: changed in place.

    Returns:
        ``model``.

    Example:
        >>> net = nn.Sequential(nn.Linear(16, 8))
        >>> weight = net[0].weight.clone()
        >>> torch.equal(rf.adapt.remove_(rf.deep_lora_(net, rank=2))[0].weight, weight)
        True
    """
    root = unwrap(model)
    found = updates(root).values()
    replace_(root, {adapted: adapted.base for adapted in found})
    for adapted in found:
        carry_hooks_(adapted, adapted.base)
        adapted.gone = True
        for layer in in_training(adapted).values():
            layer.gone = True
    return model
