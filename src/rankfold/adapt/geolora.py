"""Adaptation on the manifold of low rank: the update moves as layers in dynamical low-rank training do (GeoLoRA)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rankfold.adapt.debora import starting_atoms
from rankfold.adapt.deep_lora import chosen_layers, place_
from rankfold.adapt.layer import AdaptedLayer
from rankfold.induce import Dlrt
from rankfold.induce.dynamic.cut import check_one_of
from rankfold.layers import DynamicLowRank
from rankfold.objectives import Objective
from rankfold.run.ordinary import ordinarily
from rankfold.sites import Form, Site, unwrap
from rankfold.sites.wish import Where
from rankfold.train.step.gradients import weight_gradients

Model = TypeVar("Model", bound=nn.Module)


class DynamicAdapter(AdaptedLayer):
    """``base`` with an update left · core · right, of which ``rankfold.GeoLora`` moves, adds and removes directions."""

    def __init__(self, base: nn.Module, left: Tensor, core: Tensor, right: Tensor) -> None:
        super().__init__(base)
        shadow = copy.copy(base)  # the same settings, and parameters that can be taken away
        shadow._parameters = dict(base._parameters) | {"bias": None}
        self.dynamic = DynamicLowRank(shadow, left, core, right)

    @property
    def rank(self) -> int:
        return self.dynamic.rank

    def matrices(self) -> tuple[Tensor, Tensor]:
        return self.dynamic.left @ self.dynamic.core, self.dynamic.right

    def forward(self, input: Tensor) -> Tensor:
        return self.base(input) + self.dynamic(input)


@ordinarily
def geolora_(
    model: Model,
    rank: int | Mapping[str, int] = 8,
    where: Where | None = None,
    *,
    data: Any = None,
    samples: int = 1024,
    objective: Objective | str | None = None,
    generator: torch.Generator | None = None,
) -> Model:
    """Give layers an update U S Vᵀ on the manifold of low rank, S = 0 at the start; everything else is frozen.

    Train it with ``rankfold.GeoLora``: no inverse of S is needed, so that zero is a start like any other, and ranks
    grow and fall. The scaling is 1 whatever the rank, so that nothing jumps where a rank changes.

    Args:
        model: changed in place.
        rank: at the start, one for all or by layer name.
        where: as in ``rankfold.sites``; convolutions are adapted too.
        data: labelled samples: U and V are then the leading singular pairs of minus the loss's gradient. Without data
            they are random.
        samples: of ``data`` that are used, the first.
        objective: whose loss that is, as in ``rankfold.fit``; by default the data tell.
        generator: of random directions.

    Returns:
        ``model``.

    Raises:
        ValueError: before anything is changed, as ``deep_lora_``.

    Cost: one forward and one backward pass over the samples with data.

    Source: Schotthöfer, Zangrando, Ceruti, Tudisco, Kusch, "GeoLoRA" (2024).

    Example:
        >>> net, x = nn.Sequential(nn.Linear(16, 8)), torch.randn(2, 16)
        >>> before = net(x)
        >>> torch.equal(rf.geolora_(net, rank=2)(x), before)
        True
    """
    root = unwrap(model)
    chosen = chosen_layers(root, rank, where, convolutions=True)
    guides: dict[str, Tensor] = {}
    if data is not None:
        weights: list[Any] = [site.layer.weight(root.get_submodule(site.name)) for site, _ in chosen]
        found = weight_gradients(root, weights, data, samples=samples, objective=objective)
        guides = {
            site.name: -site.layer.geometry(Form.FACTORED).matrix(gradient)
            for (site, _), gradient in zip(chosen, found, strict=True)
        }

    def made(site: Site, count: int, base: nn.Module) -> DynamicAdapter:
        left, right = starting_atoms(site.shape, count, guides.get(site.name), generator)
        like = site.layer.weight(base)
        dtype = like.dtype if like.dtype.itemsize > 1 else torch.float32
        left, core, right = (part.to(like.device, dtype) for part in (left, torch.zeros(count, count), right))
        return DynamicAdapter(base, left.contiguous(), core, right.contiguous())

    place_(root, chosen, made, "geolora_")
    return model


class GeoLora(Dlrt):
    """``rankfold.Dlrt`` for what ``geolora_`` has prepared, with a budget that counts the numbers of the adapter.

    Args:
        model: prepared by ``geolora_``.
        optimizer: a class of ``torch.optim``.
        params: numbers r(m + n) that all updates may take together; their directions compete for it at the end of each
            window, by what the loss would change by without them, for the numbers that they take. None: a tolerance
            decides, as in ``Dlrt``.
        reach: windows after which the budget holds.
        settings: of ``Dlrt`` and of ``optimizer``.

    Raises:
        ValueError: as ``Dlrt``, and a budget below rank 1 in every layer.

    Cost: as ``Dlrt``.

    Source: as ``geolora_``.

    Example:
        >>> net = rf.geolora_(nn.Sequential(nn.Linear(16, 8)), rank=2)
        >>> list(rf.GeoLora(net, torch.optim.Adam, lr=1e-3, params=48).ranks.values())
        [2]
    """

    lengthens = False  # an update is a small part of the weight, and is trained at the rates of LoRA

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        *,
        params: int | None = None,
        reach: int = 40,
        **settings: Any,
    ) -> None:
        if "budget" in settings:
            raise ValueError(
                "budget= is a share of a dense network: of an adapter give params=, the number of its parameters"
            )
        check_one_of(settings.get("tolerance"), params=params)
        super().__init__(model, optimizer, reach=reach, **settings)
        least = sum(sum(layer.shape) for layer in self.layers.values())
        if params is not None and params < least:
            raise ValueError(
                f"params={params} is too few: rank 1 in each of the {len(self.layers)} layers takes {least} numbers; "
                "allow that many, or choose fewer layers"
            )
        self.cut.budget = params
