"""Adaptation by atoms whose gains share one budget over all layers: the ranks choose themselves (dEBORA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from rankfold.adapt.deep_lora import chosen_layers, place_
from rankfold.adapt.layer import AtomicLayer
from rankfold.objectives import Objective
from rankfold.run.ordinary import ordinarily
from rankfold.sites import Form, Site, unwrap
from rankfold.sites.wish import Where
from rankfold.train.step.gradients import weight_gradients

Model = TypeVar("Model", bound=nn.Module)
Frame = Literal["oblique", "stiefel"]


@ordinarily
def debora_(
    model: Model,
    rank: int | Mapping[str, int] = 16,
    radius: float = 8.0,
    where: Where | None = None,
    *,
    frame: Frame = "oblique",
    data: Any = None,
    samples: int = 1024,
    objective: Objective | str | None = None,
    generator: torch.Generator | None = None,
) -> Model:
    """Give layers an update Σ sᵢ uᵢ vᵢᵀ of at most ``rank`` atoms, Σ s over all layers at most ``radius``.

    **Everything else is frozen.** Train it with ``rankfold.Debora``, which moves the atoms by an ordinary optimizer and
    the gains by away-step Frank–Wolfe, so that atoms that no longer pay are dropped and layers compete for the budget.
    The update begins as zero.

    Args:
        model: changed in place.
        rank: one for all, or by layer name.
        radius: budget of all gains.
        where: as in ``rankfold.sites``; convolutions are adapted too.
        frame: "oblique", columns u and v of unit length, or "stiefel", orthonormal ones. Oblique atoms may coincide, so
            that there may be more of them than the update has rank; whatever is saved is cut to its rank.
        data: labelled samples: the atoms are then the leading singular pairs of minus the loss's gradient. Without data
            they are random.
        samples: of ``data`` that are used, the first.
        objective: whose loss that is, as in ``rankfold.fit``; by default the data tell.
        generator: of random atoms.

    Returns:
        ``model``.

    Raises:
        ValueError: before anything is changed: as ``deep_lora_``, and a radius that is not positive.

    Cost: one forward and one backward pass over the samples with data.

    Source: Zangrando, Venturini, Rinaldi, Tudisco, "dEBORA" (2025), with the gradient in s as it is: the printed
    formula is minus the partial derivative (docs/debora.md).

    Example:
        >>> net = rf.debora_(nn.Sequential(nn.Linear(16, 8)), rank=2, radius=1.0)
        >>> x = torch.randn(2, 16)
        >>> torch.equal(net(x), rf.adapt.remove_(net)(x))  # the update begins as zero
        True
    """
    root = unwrap(model)
    if frame not in get_args(Frame):
        raise ValueError(f"frame must be one of {', '.join(get_args(Frame))}, got {frame!r}")
    if not 0 < radius < float("inf"):
        raise ValueError(f"radius must be positive and finite, got {radius!r}")
    chosen = chosen_layers(root, rank, where, convolutions=True)
    guides: dict[str, Tensor] = {}
    if data is not None:
        weights: list[Any] = [site.layer.weight(root.get_submodule(site.name)) for site, _ in chosen]
        found = weight_gradients(root, weights, data, samples=samples, objective=objective)
        guides = {site.name: -_matrix(site, gradient) for (site, _), gradient in zip(chosen, found, strict=True)}

    def made(site: Site, count: int, base: nn.Module) -> AtomicLayer:
        left, right = starting_atoms(site.shape, count, guides.get(site.name), generator)
        like = site.layer.weight(base)
        dtype = like.dtype if like.dtype.itemsize > 1 else torch.float32
        parts = (left, torch.zeros(count), right)
        left, gains, right = (part.to(like.device, dtype) for part in parts)
        return AtomicLayer(base, left, gains, right, radius, frame)

    place_(root, chosen, made, "debora_")
    return model


def starting_atoms(
    shape: tuple[int, int], count: int, guide: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Orthonormal U (m, count) and Vᵀ (count, n): the leading singular pairs of ``guide`` (m, n), or random."""
    (m, n) = shape
    if guide is not None and float(guide.norm()) > 0:
        u, _, vh = torch.linalg.svd(guide.double(), full_matrices=False)
        return u[:, :count], vh[:count]
    draws = (torch.randn(side, count, dtype=torch.float64, generator=generator) for side in (m, n))
    left, right = (torch.linalg.qr(draw)[0] for draw in draws)
    return left, right.T


def atomic_layers(model: nn.Module) -> dict[str, AtomicLayer]:
    """The layers of ``model`` that ``debora_`` has prepared, by name."""
    return {name: module for name, module in unwrap(model).named_modules() if isinstance(module, AtomicLayer)}


def _matrix(site: Site, gradient: Tensor) -> Tensor:
    return site.layer.geometry(Form.FACTORED).matrix(gradient)
