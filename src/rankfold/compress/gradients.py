"""Second moments of the gradients at every site: summed in two halves, which tell signal from noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rankfold.run.processes.team import Team
from rankfold.sites import Site

FULL = 1024  # outputs up to which the whole matrix is kept; above, its diagonal


@dataclass
class Sums:
    """Σ g gᵀ of each site, or what ``moment`` makes of its gradients, in two halves of the chunks; formed in float64,
    kept as exact as the gradients are (at least float32): of a large model they are several times its weights."""

    halves: tuple[dict[str, Tensor], dict[str, Tensor]] = field(default_factory=lambda: ({}, {}))
    samples: list[float] = field(default_factory=lambda: [0, 0])
    moment: Callable[[Site, Tensor], Tensor] = field(default_factory=lambda: partial(gradient_moment, {}))

    def add(self, gradients: Sequence[tuple[Site, Tensor]], samples: float, half: int) -> None:
        mine = self.halves[half]
        self.samples[half] += samples
        for site, gradient in gradients:
            moment = self.moment(site, gradient).to(torch.promote_types(gradient.dtype, torch.float32))
            mine[site.name] = mine[site.name] + moment if site.name in mine else moment

    def metrics(self, team: Team, towards: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """D of each site, drawn towards a multiple of the identity, or of WᵀW for W in ``towards``; the sums are let go
        of one by one, as all of them take several times the memory of the result."""
        halves, samples = self.halves, self.samples
        if team.size > 1:
            shares: list[Any] = [None] * team.size
            dist.all_gather_object(shares, (halves, samples))
            halves = tuple(_summed([share[0][i] for share in shares]) for i in (0, 1))  # type: ignore[assignment]
            samples = [sum(share[1][i] for share in shares) for i in (0, 1)]
        found = {}
        for name in dict.fromkeys((*halves[0], *halves[1])):
            counts = [samples[i] for i in (0, 1) if name in halves[i] and samples[i]]
            sums = [half.pop(name, None) for half in halves]
            means = [total / n for total, n in zip(sums, samples, strict=True) if total is not None and n]
            if all(bool(mean.isfinite().all()) for mean in means):
                weight = (towards or {}).get(name)
                found[name] = shrunk(means, counts, None if weight is None else weight.double().mT @ weight.double())
        return found


def _summed(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part[name] for part in parts if name in part) for name in names}  # type: ignore[misc]


def gradient_moment(inner: Mapping[str, Tensor], site: Site, gradient: Tensor) -> Tensor:
    """Σ g gᵀ over the rows of gradients, or its diagonal above ``FULL`` outputs; Σ (g W)ᵀ(g W) for W in ``inner``."""
    rows = site.layer.output_rows(gradient).double()
    if site.name in inner:
        rows = rows @ inner[site.name].to(rows)
    return rows.mT @ rows if rows.shape[-1] <= FULL or site.layer.tapped == "input" else rows.square().sum(-2)


def shrunk(means: Sequence[Tensor], samples: Sequence[float], towards: Tensor | None = None) -> Tensor:
    """The mean of two estimates (…, m, m), or diagonals (m,), drawn towards μI by the share of noise in its structure.

    What both halves say beyond a multiple of the identity is signal, what they differ in is noise: with A, B the halves
    less μI, 1 − λ = ⟨A, B⟩ / (⟨A, B⟩ + ‖A − B‖²/4), the λ that one half would choose for the other in least squares,
    at twice the samples. ``towards``: what WᵀDW is drawn to in place of the identity, WᵀW.
    """
    kept_as, means = means[0].dtype, [mean.double() for mean in means]
    whole = sum(m * n for m, n in zip(means, samples, strict=True)) / sum(samples)
    assert isinstance(whole, Tensor)
    if len(means) < 2:
        return whole.to(kept_as)
    if towards is not None:
        identity = towards.to(whole)
        level = whole.trace() / identity.trace().clamp_min(torch.finfo(whole.dtype).tiny)
    elif whole.dim() == 1:
        identity, level = torch.ones_like(whole), whole.mean()
    else:
        identity = torch.eye(whole.shape[-1], dtype=whole.dtype, device=whole.device)
        level = whole.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    a, b = (mean - level * identity for mean in means)
    signal, noise = float((a * b).sum()), float((a - b).square().sum()) / 4
    kept = signal / (signal + noise) if signal > 0 else 0.0
    return (level * identity + kept * (whole - level * identity)).to(kept_as)
