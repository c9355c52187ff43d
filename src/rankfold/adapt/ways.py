"""The ways of adapting by name: how a model is prepared, what trains it, and the adapter that comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from rankfold.adapt.bilevel import Debora
from rankfold.adapt.debora import debora_
from rankfold.adapt.deep_lora import check_unadapted, deep_lora_, remove_
from rankfold.adapt.geolora import GeoLora, geolora_
from rankfold.adapt.peft_format import Adapter
from rankfold.adapt.places import in_words, readable
from rankfold.adapt.saving import adapter_of
from rankfold.objectives import Objective
from rankfold.sites import Form, Names, Site, read_layer, unwrap
from rankfold.sites.wish import Where, fits

METHODS = ("lora", "rslora", "dora", "adalora", "deep-lora", "geolora", "debora")
Chosen = list[tuple[Site, int]]
Reasons = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Way:
    """A model that is ready to be trained. ``optimizer``: makes it, as ``rankfold.fit`` asks (None: an ordinary one).

    ``finish()`` gives what was trained as an adapter. ``drop()`` takes the layers of the way out of the model, which is
    the base again. ``left_out``: the matrices that are not adapted, by parameter, each with its reason.
    """

    optimizer: Callable[..., torch.optim.Optimizer] | None
    finish: Callable[[], Adapter]
    drop: Callable[[], Any]
    left_out: Reasons = ()


@dataclass(frozen=True)
class Wish:
    """``numbers`` of the adapter in the end, ``steps`` of training, ``radius`` of debora; ``where`` as in ``sites``;
    ``objective`` of the training, as the data tell by default."""

    method: str
    numbers: int
    steps: int
    radius: float = 8.0
    where: Where | None = None
    seed: int = 0
    base_model: str = ""
    objective: Objective | str | None = None


def uniform_ranks(
    model: nn.Module, numbers: int, where: Where | None, *, convolutions: bool, norms: bool = False
) -> tuple[Chosen, Reasons]:
    """Every layer at the largest rank at which all together take at most ``numbers``; ``ValueError`` below rank 1.
    ``norms``: each also has m numbers beside its factors.

    Layers whose adapter PEFT would read wrong are left out, with the reason; ``ValueError`` where a pattern of
    ``where`` names such layers alone, or nothing else is there.
    """
    check_unadapted(unwrap(model))
    found, left = readable(model, where, convolutions=convolutions)
    _check_named(where, found, left)
    left_out = tuple((site.parameter, why) for site, why in left)
    if not found:
        what = "layer" if convolutions else "linear layer"
        among = "" if where is None else f" among where={where!r}"
        reasons = f": {in_words(left_out)}" if left_out else ""
        raise ValueError(f"the model has no {what} that can be adapted{among}{reasons}")
    price = sum(sum(site.shape) for site in found)
    beside = sum(site.shape[0] for site in found) if norms else 0
    if numbers < price + beside:
        raise ValueError(
            f"params={numbers} is too few: rank 1 in each of the {len(found)} layers takes {price + beside:,} "
            f"numbers; allow that many (params={price + beside}), or choose fewer layers (--only)"
        )
    return [(site, min((numbers - beside) // price, *site.shape)) for site in found], left_out


def _check_named(where: Where | None, found: list[Site], left: list[tuple[Site, str]]) -> None:
    """``ValueError`` where somebody asks for layers by a pattern all of which are left out."""
    patterns = where.only if isinstance(where, Names) else [where] if isinstance(where, str) else []
    for pattern in patterns:
        meant = [(site.parameter, why) for site, why in left if _named(site, pattern)]
        if meant and not any(_named(site, pattern) for site in found):
            raise ValueError(
                f"the pattern {pattern!r} (--only, where) chooses no layer that can be adapted: {in_words(meant)}: "
                "choose other layers"
            )


def _named(site: Site, pattern: str) -> bool:
    return any(fits(name, pattern) for name in (site.name, *site.aliases))


@contextmanager
def prepared_(model: nn.Module, wish: Wish, data: Any) -> Iterator[Way]:
    """``prepare_`` for the block; behind it, however it ends, the layers of the way are gone and the model is as it was
    found, what is frozen too."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        way = prepare_(model, wish, data)
        try:
            yield way
        finally:
            way.drop()
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def prepare_(model: nn.Module, wish: Wish, data: Any) -> Way:
    """Prepare ``model`` in place as ``wish.method`` does, with ``data`` for the starts that are taken from gradients.

    "lora", "rslora", "dora" and "adalora" are PEFT's own. Methods whose ranks move start at twice the uniform rank.
    """
    linear = wish.method in ("deep-lora", "adalora", "dora")
    chosen, left_out = uniform_ranks(
        model, wish.numbers, wish.where, convolutions=not linear, norms=wish.method == "dora"
    )
    return replace(_prepared_(model, wish, data, chosen), left_out=left_out)


def _prepared_(model: nn.Module, wish: Wish, data: Any, chosen: Chosen) -> Way:
    generator = torch.Generator().manual_seed(wish.seed)
    ranks = {site.name: rank for site, rank in chosen}
    larger = {site.name: min(2 * rank, *site.shape) for site, rank in chosen}
    if wish.method in ("lora", "rslora", "dora", "adalora"):
        return _by_peft(model, wish, chosen)
    finish, drop = partial(adapter_of, model, base_model=wish.base_model, tolerance=1e-6), partial(remove_, model)
    start: Any = {"data": data, "objective": wish.objective, "generator": generator}
    if wish.method == "deep-lora":
        deep_lora_(model, ranks, **start)
        return Way(None, finish, drop)
    if wish.method == "geolora":
        geolora_(model, larger, **start)
        # ranks are found in a tenth of all steps: factors that are trained themselves adapt faster than cores
        window = max(1, min(20, wish.steps // 10))
        reach = max(1, wish.steps // 10 // window)
        made = partial(GeoLora, params=wish.numbers, window=window, reach=reach, factors=True)
        return Way(made, finish, drop)
    debora_(model, larger, wish.radius, **start)
    return Way(Debora, finish, drop)


def _by_peft(model: nn.Module, wish: Wish, chosen: Chosen) -> Way:
    from rankfold.adapt import by_peft

    if wish.method == "adalora":
        tuner = by_peft.with_adalora_(model, chosen, wish.steps, wish.seed)
        make: Any = partial(by_peft.AdaLoraOptimizer, tuner)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(wish.seed)
            tuner = by_peft.with_lora_(model, chosen, wish.method)
        make = None
    return Way(make, partial(by_peft.trained_adapter, model, chosen, wish.base_model), tuner.unload)


@torch.no_grad()
def add_(model: nn.Module, adapter: Adapter) -> nn.Module:
    """Add the updates of an adapter to the weights of its base; returns ``model``."""
    for name, (a, b) in adapter.pairs.items():
        module = unwrap(model).get_submodule(name)
        layer = read_layer(module)
        if layer is None:
            raise ValueError(f"the model has no layer {name} with a matrix: the adapter belongs to another network")
        weight, geometry = layer.weight(module), layer.geometry(Form.FACTORED)
        update = adapter.scaling * b.double() @ a.double()
        update = update.T if name in adapter.lookups else update
        if name in adapter.magnitudes:
            rows = geometry.matrix(weight).double() + update.to(weight.device)
            rows *= (adapter.magnitudes[name].to(rows) / rows.norm(dim=1)).unsqueeze(1)
            weight.copy_(geometry.fold(weight.shape, rows))
        else:
            weight += geometry.fold(weight.shape, update.to(weight.device)).to(weight)
    for name, tensor in adapter.whole.items():
        unwrap(model).get_parameter(name).copy_(tensor)
    return model
