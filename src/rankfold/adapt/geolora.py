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
from rankfold.layers import DynamicLowRank
from rankfold.sites import Form, Site, unwrap
from rankfold.sites.find import Where
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


def geolora_(
    model: Model,
    rank: int | Mapping[str, int] = 8,
    where: Where | None = None,
    *,
    data: Any = None,
    samples: int = 1024,
    generator: torch.Generator | None = None,
) -> Model:
    """Give layers an update U S Vᵀ on the manifold of low rank, S = 0 at the start; returns ``model``.

    In place. **Everything else is frozen**; train it with ``rankfold.GeoLora``, which takes the settings of
    ``rankfold.Dlrt``: no inverse of S is needed, so that zero is a start like any other, and ranks grow and fall.
    ``where`` and ``rank``, here that of the start, as in ``deep_lora_``; convolutions are adapted too. With labelled
    ``data`` U and V are the leading singular pairs of minus the loss's gradient on the first ``samples``; without data
    they are random. The scaling is 1 whatever the rank, so that nothing jumps where a rank changes. Raises
    ``ValueError`` before anything is changed, as ``deep_lora_``.

    Source: Schotthöfer, Zangrando, Ceruti, Tudisco, Kusch, "GeoLoRA" (2024).
    """
    root = unwrap(model)
    chosen = chosen_layers(root, rank, where, convolutions=True)
    guides: dict[str, Tensor] = {}
    if data is not None:
        weights: list[Any] = [site.layer.weight(root.get_submodule(site.name)) for site, _ in chosen]
        found = weight_gradients(root, weights, data, samples=samples)
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

    ``params``: numbers r(m + n) that all updates may take together; their directions compete for it at the end of each
    window, by energy for the numbers they take, and it is reached over ``reach`` windows. Everything else as in
    ``Dlrt``. Raises ``ValueError`` also for a budget below rank 1 in every layer.
    """

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
            raise ValueError("budget is a share of a dense network: of an adapter give params=, how many numbers")
        super().__init__(model, optimizer, reach=reach, **settings)
        least = sum(sum(layer.shape) for layer in self.layers.values())
        if params is not None and params < least:
            raise ValueError(f"params={params} is below rank 1 in each of {len(self.layers)} layers, {least} numbers")
        self.cut.budget = params
